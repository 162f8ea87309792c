"""A volume read over QUIC on the loopback interface, natively, beside a bare QUIC stream of the same bytes."""

import os
import re
import subprocess
import sys
from pathlib import Path
from statistics import median

from kit import machine
from kit.plot import Bar, Panel
from kit.report import Report

QUICK = bool(os.environ.get("BENCH_QUICK"))
SIZE_MIB, ROUNDS = (128, 2) if QUICK else (1024, 9)
WANTED = 0.85
TITLE = "Reads over QUIC, loopback"
INTRO = f"""\
Server and client in one process with a run time each, over the loopback interface, the bytes in memory. Throughput: {SIZE_MIB} MiB
read through a remote volume in requests of 1 MiB, 8 in flight, beside a bare quinn stream of the same bytes with the same
transport settings, {ROUNDS} rounds, taking turns to go first. The ratio is the median of the ratios of each round."""


def main():
    """Runs the example and writes the page."""
    facts = machine.facts()
    said = run_example()
    rounds = [tuple(map(float, row)) for row in re.findall(r"^\s*\d+\s+(\d+)\s+(\d+)\s+[\d.]+\s+(\d+)\s+(\d+)$", said, re.M)]
    reads = re.findall(r"^4 KiB random reads,\s+(\d+) at a time:\s+(\d+)/s, p50\s+([\d.]+) us, p99\s+([\d.]+) us", said, re.M)
    if not rounds or not reads:
        sys.exit(f"bench: quic_throughput said something else:\n{said}")
    volume, bare, volume_cpu, bare_cpu = zip(*rounds)
    ratio = median(ours / stream for ours, stream in zip(volume, bare))
    report = Report("quic", TITLE, INTRO)
    report.plot(f"{facts['kernel']}; {facts['processor']}; medians of {ROUNDS} rounds", panels(volume, bare, reads), columns=1)
    report.table(["throughput", "median MB/s", "lowest", "highest", "CPU ms a GB, both ends"], [
        [label, *(f"{f(rates):.0f}" for f in (median, min, max)), f"{median(cpu):.0f}"]
        for label, rates, cpu in (("remote volume", volume, volume_cpu), ("bare stream", bare, bare_cpu))
    ])
    report.table(["ratio", "measured", "wanted", ""], [
        ["remote volume / bare stream", f"{ratio:.2f}", f"≥ {WANTED}", "met" if ratio >= WANTED else "**missed**"],
    ])
    report.table(["4k random reads", "IOPS", "p50 µs", "p99 µs"], [[f"depth {depth}", iops, p50, p99] for depth, iops, p50, p99 in reads])
    report.facts(facts)
    report.write()


def run_example():
    """What the example prints."""
    if not os.environ.get("BLOCKFERRY"):
        sys.exit("bench: quic measures blockferry alone; run it without --peers-only")
    program = Path(os.environ["BLOCKFERRY"]).parent / "examples/quic_throughput"
    if not program.exists():
        sys.exit(f"bench: there is no {program}; build it with `cargo build --release --examples`")
    done = subprocess.run([program, str(SIZE_MIB), str(ROUNDS)], capture_output=True, text=True, timeout=900)
    if done.returncode != 0:
        sys.exit(f"bench: quic_throughput failed: {done.stderr.strip()}")
    return done.stdout


def panels(volume, bare, reads):
    """Throughput, then 4k reads."""
    goal = WANTED * median(bare)
    return [
        Panel("1 MiB requests, 8 in flight", "MB/s", [
            Bar("bare quinn stream", "peer", median(bare), min(bare), max(bare)),
            Bar("blockferry volume", "ours", median(volume), min(volume), max(volume), goal),
        ]),
        Panel("4k random reads through the volume", "IOPS", [
            Bar(f"depth {depth}", "ours", float(iops), float(iops), float(iops)) for depth, iops, _, _ in reads
        ]),
    ]


if __name__ == "__main__":
    main()

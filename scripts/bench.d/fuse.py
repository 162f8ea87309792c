"""FUSE, and FUSE with a loop device on top, natively, beside a plain loop device on the same file."""

import os
import sys
import tempfile
from pathlib import Path
from statistics import median

from kit import fio, machine, rounds, servers, ublk_page
from kit.plot import Bar, Panel
from kit.report import Report, times
from kit.servers import Blockferry, KernelLoop

QUICK = bool(os.environ.get("BENCH_QUICK"))
POINTS = ["read-1", "read-32", "read-32-batch", "write-1", "write-32", "read-8-128k"]
ROUNDS, RUNTIME_S = (2, 0.3) if QUICK else (5, 1.0)
TITLE = "FUSE and loop devices"
INTRO = f"""\
The fallback for machines without ublk, on the machine's own kernel, as root: our FUSE file, the loop device on top of it, and
the kernel's loop device straight on a tmpfs file of the same kind. fio with io_uring, direct I/O, working set
{fio.WORKING_SET_MIB} MiB, all of it written before, {RUNTIME_S:g} s a run, {ROUNDS} rounds in rotating order, medians. There is no mark for these; they are reported."""


def main():
    """Measures here, as root."""
    if os.geteuid() != 0:
        sys.exit("bench: fuse needs root, for the loop devices")
    facts = machine.facts() | {"fio": fio.version()}
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="blockferry-bench.") as folder:
        figures, missing = measure(folder)
    report = Report("fuse", TITLE, INTRO)
    report.plot(f"{facts['kernel']}; {facts['processor']}; medians of {ROUNDS} rounds", panels(figures))
    report.table(["IOPS", *(ublk_page.short(key) for key in figures)], ublk_page.figure_rows(figures))
    if ratios := ratio_rows(figures):
        report.table(["against the plain loop device", *(ublk_page.short(key) for key in figures)], ratios)
    for label, why in missing.items():
        report.text(f"Not measured: {label} ({why}).")
    report.facts(facts)
    report.write()


def measure(folder):
    """All devices at once, then the rounds."""
    plain, ours = (str(Path(folder) / name) for name in ("plain.img", "ours.img"))
    for file in (plain, ours):
        servers.fill(file)
    group = [KernelLoop("kernel loop, tmpfs", plain)]
    if os.environ.get("BLOCKFERRY"):
        group += [Blockferry(f"blockferry {url.partition(':')[0]}:, FUSE + loop", url, "--device", "fuse") for url in ("mem:256MiB", f"file:{ours}")]
    paths, missing = servers.start_all(group)
    with_files = {}
    for label, path in paths.items():
        with_files[label] = path
        if label.startswith("blockferry"):
            with_files[label.replace(" + loop", " file")] = under(path)
    try:
        return rounds.measure(with_files, POINTS, ROUNDS, RUNTIME_S), missing
    finally:
        servers.stop_all([server for server in group if server.label in paths])


def under(loop_device):
    """The FUSE file under a loop device."""
    return (Path("/sys/block") / Path(loop_device).name / "loop/backing_file").read_text().strip()


def panels(figures):
    """A panel a load."""
    return [
        Panel(fio.POINTS[key].title, "IOPS", [
            Bar(label, ublk_page.kind_of(label), median(values), min(values), max(values)) for label, values in devices.items()
        ])
        for key, devices in figures.items()
    ]


def ratio_rows(figures):
    """Ours against the kernel's loop device, a row a device."""
    labels = [label for label in next(iter(figures.values())) if label.startswith("blockferry")]
    return [
        [label, *(times(rounds.ratio(figures, key, label, "kernel loop, tmpfs")) for key in figures)]
        for label in labels
    ]


if __name__ == "__main__":
    main()

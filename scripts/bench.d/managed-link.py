"""Managed mounts over a link with delay, loss and a rate, natively, beside direct mounts and a bare QUIC stream."""

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

from kit import lines, machine
from kit.lines import Line, Panel
from kit.report import Report

QUICK = bool(os.environ.get("BENCH_QUICK"))
RTTS_MS = [0, 10, 25, 50]
LOSSES = [0, 1] if QUICK else [0, 0.1, 1]
RATE_MBIT, QUEUE_KIB, SIZE_MIB = 1000, 1024, 1024
ROUNDS, TIME_S = (1, 0.5) if QUICK else (3, 1.8)
FIRST_BYTE = (1.1, 2.0)  # round trips, and milliseconds
PULL = 0.85
WRITE = 1.25
ADDRESS = "10.77.0.1"
TITLE = "Managed mounts over a link"
INTRO = f"""\
Server, link and client are on one machine with two CPUs: the link (`examples/link_relay`) is a relay of {RATE_MBIT} Mbit/s each way
with a queue of {QUEUE_KIB} KiB, packets of at most 1500 bytes, and the delay and the loss (each way) that the tables say. The client is
`examples/managed_link`: a queue with a ring as a device has, without a device's own cost; the origin and the local store are in memory.
{ROUNDS} rounds in which the mounts take turns; each mount has a connection and a store that are new. Requests are of 4 KiB, one at a time
unless a table says otherwise. Loss makes QUIC itself slow: there the bare stream, with the same transport settings, is what can be had."""


def main():
    """Measures every link and writes the page."""
    facts = machine.facts()
    links = {}
    for loss in LOSSES:
        for rtt in RTTS_MS:
            print(f"  {rtt} ms, {loss} %", file=sys.stderr, flush=True)
            links[rtt, loss] = measure(rtt, loss)
    facts["load after"] = f"{os.getloadavg()[0]:.2f}"
    report = Report("managed-link", TITLE, INTRO)
    where = f"{facts['kernel']}; {facts['processor']}; {RATE_MBIT} Mbit/s"
    report.lines("managed-link", where, "round trip time, ms", RTTS_MS, panels(links))
    first_byte(report, links)
    pull(report, links)
    demand(report, links)
    writes(report, links)
    reads(report, links, where)
    truth(report, links)
    report.facts(facts)
    report.write()


def measure(rtt_ms, loss):
    """Runs the example in a network of its own, where packets are what they are on a network."""
    if not os.environ.get("BLOCKFERRY"):
        sys.exit("bench: managed-link measures blockferry alone; run it without --peers-only")
    program = Path(os.environ["BLOCKFERRY"]).parent / "examples/managed_link"
    if not program.exists():
        sys.exit(f"bench: there is no {program}; build it with `cargo build --release --examples`")
    options = {
        "address": ADDRESS, "rtt-ms": rtt_ms, "loss": loss, "rate-mbit": RATE_MBIT, "queue-kib": QUEUE_KIB, "mib": SIZE_MIB,
        "rounds": ROUNDS, "time": TIME_S, "only": "open,pull,demand,write",
    }
    command = " ".join([str(program), *(f"--{name} {value}" for name, value in options.items())])
    network = f"ip link set lo up && ip address add {ADDRESS}/24 dev lo && exec {command}"
    unshare = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--net", "--map-root-user"]
    done = subprocess.run([*unshare, "sh", "-c", network], capture_output=True, text=True, timeout=600)
    if done.returncode != 0:
        sys.exit(f"bench: managed_link failed: {done.stderr.strip()}")
    return json.loads(done.stdout)


def firsts(link):
    """How long the first reads took: at once, and when a device would be there."""
    return link["open"]["first_read_ms"] + link["open"]["first_read_10_ms_later_ms"]


def first_byte_limit(rtt_ms):
    """In milliseconds."""
    return FIRST_BYTE[0] * rtt_ms + FIRST_BYTE[1]


def pull_ratio(link):
    """The median of the ratios within a round."""
    return median(ours / bare for ours, bare in zip(link["pull"]["pull_bytes_a_second"], link["pull"]["bare_bytes_a_second"]))


def demand_limit(link):
    """The idle time and that of a chunk on the link, in milliseconds."""
    return link["demand"]["idle"]["p50_ms"] + link["demand"]["chunk_ms"]


def written(link, what, figure="p50_us", depth=1):
    """The median of the rounds."""
    return median(done[figure] for done in link["write"][f"depth_{depth}"][what])


def verdict(is_met, counts=True):
    """In a word."""
    return ("met" if is_met else "**missed**") if counts else "reported"


def first_byte(report, links):
    """From nothing to a mount, and to the first byte."""
    report.heading("Time to first byte")
    report.text(
        "From the moment the mount is there, its pull under way, to the end of a read in the middle of the volume: at once, or 10 ms later, "
        f"as after a device came up. Wanted: {FIRST_BYTE[0]} round trips and {FIRST_BYTE[1]:g} ms."
    )
    report.table(["RTT ms", "loss %", "open ms", "direct open ms", "first read ms", "10 ms later", "direct", "both", "wanted", ""], [
        [rtt, loss, ms(link["open"]["open_ms"]), ms(link["open"]["direct_open_ms"]), ms(link["open"]["first_read_ms"]),
         ms(link["open"]["first_read_10_ms_later_ms"]), ms(link["open"]["direct_first_read_ms"]), ms(firsts(link)),
         f"≤ {first_byte_limit(rtt):.1f}", verdict(median(firsts(link)) <= first_byte_limit(rtt))]
        for (rtt, loss), link in links.items()
    ])


def pull(report, links):
    """The background pull beside the bare stream."""
    report.heading("Background pull")
    report.text(f"In the first {TIME_S:g} s of a connection, its start included. Wanted: {PULL} of a bare QUIC stream.")
    report.table(["RTT ms", "loss %", "pull MB/s", "bare stream MB/s", "ratio", "wanted", ""], [
        [rtt, loss, mb(link["pull"]["pull_bytes_a_second"]), mb(link["pull"]["bare_bytes_a_second"]), f"{pull_ratio(link):.2f}",
         f"≥ {PULL}", verdict(pull_ratio(link) >= PULL)]
        for (rtt, loss), link in links.items()
    ])


def demand(report, links):
    """Reads of what is not here beside a pull."""
    report.heading("Demand reads beside a pull at full speed")
    report.text(
        "Reads of blocks that are not here, one at a time, each in another chunk: with nothing else under way, and beside a pull. "
        "Wanted in the median, without loss: the idle time and that of a chunk on the link."
    )
    report.table(["RTT ms", "loss %", "idle p50 ms", "p99", "pulling p50 ms", "p99", "reads", "pull MB/s", "wanted p50", ""], [
        [rtt, loss, *(f"{link['demand'][kind][figure]:.1f}" for kind in ("idle", "pulling") for figure in ("p50_ms", "p99_ms")),
         link["demand"]["pulling"]["count"], mb(link["demand"]["pull_bytes_a_second"]), f"≤ {demand_limit(link):.1f}",
         verdict(link["demand"]["pulling"]["p50_ms"] <= demand_limit(link), counts=loss == 0)]
        for (rtt, loss), link in links.items()
    ])


def writes(report, links):
    """Writes that are pushed beside writes that stay."""
    report.heading("Writes")
    report.text(
        "Of 64 MiB at random, absent at first: pushed all the time, and with `--push off`. Wanted at depth 1: in the median at most "
        f"{WRITE} times as long as writes that stay local."
    )
    report.table(["RTT ms", "loss %", "pushed p50 µs", "p99", "stay p50 µs", "p99", "direct p50 µs", "pushed IOPS", "stay", "32 deep", "stay", "wanted p50", ""], [
        [rtt, loss, *(f"{written(link, what, figure):.1f}" for what in ("pushed", "kept") for figure in ("p50_us", "p99_us")),
         f"{written(link, 'direct'):.0f}", *(f"{written(link, what, 'iops', depth) / 1000:.0f}k" for depth in (1, 32) for what in ("pushed", "kept")),
         f"≤ {WRITE * written(link, 'kept'):.1f}", verdict(written(link, "pushed") <= WRITE * written(link, "kept"))]
        for (rtt, loss), link in links.items()
    ])


def reads(report, links, where):
    """The picture for the front page."""
    report.heading("Read time, direct and managed")
    picture = Panel("4 KiB read, median", "ms", [
        Line("direct: every read", "peer", over_rtt(links, lambda link: link["demand"]["direct"]["p50_ms"])),
        Line("managed: the first read of a block, beside a pull at full speed", "ours", over_rtt(links, lambda link: link["demand"]["pulling"]["p50_ms"])),
        Line("managed: every other read", "local", over_rtt(links, lambda link: link["demand"]["again"]["p50_ms"])),
    ], logarithmic=True)
    report.lines("managed-link-reads", where, "round trip time, ms", RTTS_MS, [picture], title="Read time over distance")
    report.table(["RTT ms", "direct p50 ms", "p99", "managed, absent, pulling p50 ms", "p99", "managed, local p50 ms", "p99"], [
        [rtt, *(f"{links[rtt, 0]['demand'][kind][figure]:.3g}" for kind in ("direct", "pulling", "again") for figure in ("p50_ms", "p99_ms"))]
        for rtt in RTTS_MS
    ])


def truth(report, links):
    """How true the link was."""
    late = sum(link["link"]["late"] for link in links.values())
    delivered = sum(link["link"]["delivered"] for link in links.values())
    report.text(f"Of {delivered} packets the relay delivered {100 * late / delivered:.2f} % more than a millisecond late: it shares the two CPUs with both ends.")


def over_rtt(links, figure, loss=0):
    """A figure at each delay."""
    return [figure(links[rtt, loss]) for rtt in RTTS_MS]


def panels(links):
    """One for each mark."""
    shades = list(enumerate(LOSSES))
    times = Panel("Time to first byte", "ms", [
        *(Line(f"managed, {loss} % loss", "ours", over_rtt(links, lambda link: median(firsts(link)), loss), shade) for shade, loss in shades),
        Line("direct, no loss", "peer", over_rtt(links, lambda link: median(link["open"]["direct_first_read_ms"]))),
        Line("wanted", "local", [first_byte_limit(rtt) for rtt in RTTS_MS], dashed=True),
    ])
    rates = Panel("Background pull", "MB/s", [
        line
        for shade, loss in shades
        for line in (
            Line(f"pull, {loss} % loss", "ours", over_rtt(links, lambda link: median(link["pull"]["pull_bytes_a_second"]) / 1e6, loss), shade),
            Line(f"bare stream, {loss} % loss", "peer", over_rtt(links, lambda link: median(link["pull"]["bare_bytes_a_second"]) / 1e6, loss), shade),
        )
    ])
    asked = Panel("Demand read, median, no loss", "ms", [
        Line("beside a pull at full speed", "ours", over_rtt(links, lambda link: link["demand"]["pulling"]["p50_ms"])),
        Line("with nothing else under way", "ours", over_rtt(links, lambda link: link["demand"]["idle"]["p50_ms"]), 1),
        Line("direct", "peer", over_rtt(links, lambda link: link["demand"]["direct"]["p50_ms"])),
        Line("wanted beside a pull", "local", over_rtt(links, demand_limit), dashed=True),
    ])
    stored = Panel("4 KiB write, median, no loss", "µs", [
        Line("managed, pushed all the time", "ours", over_rtt(links, lambda link: written(link, "pushed"))),
        Line("managed, --push off", "local", over_rtt(links, lambda link: written(link, "kept"))),
        Line("direct", "peer", over_rtt(links, lambda link: written(link, "direct"))),
    ], logarithmic=True)
    return [times, rates, asked, stored]


def ms(values):
    """The median of milliseconds."""
    return f"{median(values):.1f}"


def mb(values):
    """The median of rates."""
    return f"{median(values) / 1e6:.1f}"


if __name__ == "__main__":
    main()

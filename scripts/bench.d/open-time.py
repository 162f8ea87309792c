"""How long a device takes to be there, beside rublk in the same boot."""

import os
from statistics import median

from kit import machine, vm
from kit.plot import Bar, Panel
from kit.report import Report

ROUNDS = 4 if os.environ.get("BENCH_QUICK") else 20
WANTED = 1.0
PAIRS = [("blockferry mem:", "rublk null"), ("blockferry file:", "rublk loop")]
TITLE = "Time to open a device"
INTRO = f"""\
From the start of the process to a device that can be opened: for blockferry until its path is printed, for rublk until
`rublk add` has ended, after which the device is there. One queue of 128 tags each, devices one after the other and alone, {ROUNDS} times in rotating order, on tmpfs, in one boot
of User Mode Linux, where starting a program costs some 8 ms. Milliseconds; the ratio is that of the medians."""


def main():
    """Measures in the test kernel and writes the page."""
    facts = machine.facts() | machine.peers()
    result = vm.run("open_time.py", {"rounds": ROUNDS})
    facts["test kernel"] = f"Linux {result['kernel']}, User Mode Linux, {result['cpus']} CPU"
    times = result["times_ms"]
    report = Report("open-time", TITLE, INTRO)
    goals = {ours: WANTED * median(times[peer]) for ours, peer in PAIRS if peer in times}
    bars = [
        Bar(label, "ours" if label.startswith("blockferry") else "peer", median(ms), min(ms), max(ms), goals.get(label))
        for label, ms in times.items()
    ]
    report.plot(f"{facts['test kernel']}; medians of {ROUNDS}; less is better", [Panel("Process start to device", "ms", bars)], columns=1)
    report.table(["device", "median", "lowest", "highest"], [[label, *(f"{f(ms):.1f}" for f in (median, min, max))] for label, ms in times.items()])
    rows = [
        [f"{ours} / {peer}", f"{median(times[ours]) / median(times[peer]):.2f}", f"≤ {WANTED}",
         "met" if median(times[ours]) <= WANTED * median(times[peer]) else "**missed**"]
        for ours, peer in PAIRS if ours in times and peer in times
    ]
    if rows:
        report.table(["ratio", "measured", "wanted", ""], rows)
    for label, why in result["missing"].items():
        report.text(f"Not measured: {label} ({why}).")
    report.facts(facts)
    report.write()


if __name__ == "__main__":
    main()

"""Fully local managed mounts beside direct mounts of the same kind of store, in one boot of User Mode Linux."""

import os
from statistics import median

from kit import fio, machine, marks, ublk_page, vm
from kit.marks import Mark
from kit.plot import Bar, Panel
from kit.report import Report

QUICK = bool(os.environ.get("BENCH_QUICK"))
WANTED = 0.95
POINTS = ["read-1", "read-32", "read-32-batch", "write-1", "write-32", "write-32-batch"]
PLAN = {
    "points": POINTS,
    "count_points": ["read-1", "read-32-batch", "write-1", "write-32-batch"],
    "rounds": 3 if QUICK else 15,
    "runtime_s": 0.3 if QUICK else 0.8,
}
TITLE = "Managed mounts that are fully local"
INTRO = f"""\
A ublk device of a managed mount, all of it pulled before, and one of a direct mount of a file on the same file system, in one
boot of User Mode Linux. One queue of 128 tags each, no I/O scheduler, fio with io_uring and direct I/O, working set
{fio.WORKING_SET_MIB} MiB, {PLAN['runtime_s']:g} s a run, {PLAN['rounds']} rounds in rotating order. Figures are medians in requests a second; ratios are
medians of the ratios within one round. Local writes stay local (`--push off`): the origin is a process on the same, only CPU.
The managed mount looks each request's blocks up in its state map, and notes each write there before and after. The mark
counts on tmpfs, where nothing else costs time; ext4, on a disk in memory, is reported."""


def main():
    """Measures in the test kernel and writes the page."""
    facts = machine.facts() | {"fio": fio.version()}
    result = vm.run("managed_local.py", PLAN)
    facts["test kernel"] = f"Linux {result['kernel']}, User Mode Linux, {result['cpus']} CPU"
    report = Report("managed-local", TITLE, INTRO)
    tmpfs = result["groups"]["tmpfs"]["figures"]
    report.plot(f"{facts['test kernel']}; {facts['processor']}; medians of {PLAN['rounds']} rounds", panels(tmpfs))
    for kind, group in result["groups"].items():
        figures = group["figures"]
        report.heading(f"Stores on {kind}")
        report.table(["IOPS", *map(ublk_page.short, figures)], ublk_page.figure_rows(figures))
        wanted = [Mark(key, f"managed, {kind}", f"direct file:, {kind}", WANTED if kind == "tmpfs" else None) for key in POINTS]
        if rows := marks.rows(wanted, figures, ublk_page.short):
            report.table(["ratio", "load", "measured", "wanted", ""], rows)
        ublk_page.missing(report, group)
    ublk_page.counts(report, result["groups"])
    report.facts(facts)
    report.write()


def panels(figures):
    """A panel a load."""
    drawn = []
    for key, devices in figures.items():
        panel = Panel(fio.POINTS[key].title, "IOPS")
        for label, values in devices.items():
            goal = WANTED * median(devices["direct file:, tmpfs"]) if label.startswith("managed") else None
            kind = "ours" if label.startswith("managed") else "peer"
            panel.bars.append(Bar(label, kind, median(values), min(values), max(values), goal))
        drawn.append(panel)
    return drawn


if __name__ == "__main__":
    main()

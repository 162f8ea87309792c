"""The page that the two ublk benchmarks share."""

from statistics import median

from kit import copies, fio, machine, marks, vm
from kit.counts import RUN_S
from kit.plot import Bar, Panel
from kit.report import Report, iops

INTRO = """\
Every device was up in the same boot, with one queue of 128 tags and no I/O scheduler, and was measured in turn by fio
(io_uring, direct I/O, working set {size} MiB, all of it written before), {seconds:g} s a run after {ramp:g} s of warm-up, {rounds} rounds in rotating
order. Figures are medians in requests a second; ratios are medians of the ratios within one round. `rublk null` moves no data; `blockferry mem:` moves all of it."""
COUNTED = """\
What each server does for a request. System calls: {calls}. rublk and blockferry enter the kernel once for all
requests that they meet; blockferry's ring returns with the first of them, so that it enters more often in bursts (why: docs/design.md, Decisions). Sleeps: how often a thread of the server gave up its CPU,
seen in /proc beside an undisturbed run. To workers: how often ring I/O was handed to an io-wq thread{hand_overs}, with
the CPU time of these threads in a run of {seconds:g} s."""
CALLS = {
    "strace": "counted by strace in a run of its own; it slows the server down, so that more requests meet in one call at depth: there the sleeps say more",
    "tracepoint": "counted by the kernel's raw_syscalls tracepoint",
}
HAND_OVERS = {
    "strace": ", seen as the wake-ups of these threads (one may take several requests)",
    "tracepoint": ", counted by the kernel's io_uring_queue_async_work tracepoint",
}


def make(name, title, plan, qemu, nbd_key, about):
    """Measures in the test kernel and writes the page."""
    facts = machine.facts() | machine.peers()
    result = vm.run("ublk.py", plan, qemu=qemu)
    facts["test kernel"] = f"Linux {result['kernel']}, {'QEMU' if qemu else 'User Mode Linux'}, {result['cpus']} CPU{'s' * (result['cpus'] > 1)}"
    report = Report(name, title, INTRO.format(size=fio.WORKING_SET_MIB, seconds=plan["runtime_s"], ramp=fio.RAMP_S, rounds=plan["rounds"]))
    report.text(about)
    memory = result["groups"]["memory"]
    wanted = marks.ublk(nbd_key)
    report.plot(f"{facts['test kernel']}; {facts['processor']}; medians of {plan['rounds']} rounds", panels(memory["figures"], wanted))
    for kind, group in result["groups"].items():
        report.heading("In memory and on tmpfs" if kind == "memory" else f"Files on {kind}")
        report.table(["IOPS", *(short(key) for key in group["figures"])], figure_rows(group["figures"]))
        missing(report, group)
        if kind == "memory":
            if ratios := marks.rows(wanted, group["figures"], short):
                report.heading("Marks")
                report.table(["ratio", "load", "measured", "wanted", ""], ratios)
            copies.write(report, result["copies"], group["figures"], short)
    counts(report, result["groups"])
    report.facts(facts)
    report.write()


def short(key):
    """A load in a table's head."""
    point = fio.POINTS[key]
    return f"{point.block_size} {point.rw.removeprefix('rand')} {point.depth}{f' by {point.batch}' if point.batch else ''}"


def figure_rows(figures):
    """A row a device."""
    labels = next(iter(figures.values()))
    return [[label, *(iops(median(figures[key][label])) for key in figures)] for label in labels]


def panels(figures, wanted):
    """A panel a load, with the highest mark on our bars."""
    drawn = []
    for key, devices in figures.items():
        panel = Panel(fio.POINTS[key].title, "IOPS")
        for label, values in devices.items():
            goals = [mark.wanted * median(devices[mark.peer]) for mark in wanted
                     if mark.key == key and mark.ours == label and mark.wanted and mark.peer in devices]
            panel.bars.append(Bar(label, kind_of(label), median(values), min(values), max(values), max(goals, default=None)))
        drawn.append(panel)
    return drawn


def kind_of(label):
    """Whose it is."""
    if label.startswith("blockferry"):
        return "ours"
    return "kernel" if label.startswith(("null_blk", "kernel loop")) else "peer"


def counts(report, groups):
    """The table of what servers do for a request."""
    rows, by = [], "strace"
    for group in groups.values():
        for label, points in group["counts"].items():
            for key, count in points.items():
                by = count["by"]
                rows.append([label, short(key), f"{count['calls']:.2f}", f"{count['sleeps']:.2f}",
                             f"{count.get('hand_overs', count['worker_wakes']):.2f}", f"{count['worker_cpu_s']:.2f} s"])
    report.heading("System calls and workers")
    report.text(COUNTED.format(calls=CALLS[by], hand_overs=HAND_OVERS[by], seconds=RUN_S))
    report.table(["a request", "load", "system calls", "sleeps", "to workers", "worker CPU"], rows)


def missing(report, group):
    """Says what could not be measured."""
    for label, why in group["missing"].items():
        report.text(f"Not measured: {label} ({why}).")

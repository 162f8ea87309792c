"""What a server does for each request: system calls, sleeps, hand-overs to io-wq workers."""

import re
import signal
import subprocess
import tempfile
from pathlib import Path

from kit import fio

TICKS_PER_S = 100
RUN_S = 0.6
EVENTS = Path("/sys/kernel/tracing/events")
SYSTEM_CALLS, HAND_OVERS = "raw_syscalls/sys_enter", "io_uring/io_uring_queue_async_work"


def count(server, path, point):
    """Counts for one server under one load, a request each.

    Sleeps and workers are read from /proc beside an undisturbed run. System calls are counted by the kernel's tracepoint in
    the same run, where there is one; else by strace in a run of its own, which slows the server down."""
    before = _threads(server.pids())
    traced = _trace((SYSTEM_CALLS, HAND_OVERS)) if (EVENTS / SYSTEM_CALLS).exists() else None
    requests = _load(server, path, point)
    after = _threads(server.pids())
    workers = {tid: now for tid, now in after.items() if now["worker"]}
    counted = {
        "sleeps": _grown(before, {tid: now for tid, now in after.items() if not now["worker"]}, "sleeps") / requests,
        "workers": len(workers),
        "worker_wakes": _grown(before, workers, "sleeps") / requests,
        "worker_cpu_s": _grown(before, workers, "ticks") / TICKS_PER_S,
    }
    if traced:
        calls, hand_overs = (_traced(event, after) / requests for event in traced)
        return counted | {"calls": calls, "hand_overs": hand_overs, "by": "tracepoint"}
    return counted | {"calls": _straced(server, path, point), "by": "strace"}


def _load(server, path, point):
    return fio.run(point, {server.label: path}, RUN_S, ramp_s=0)[server.label].requests


def _threads(pids):
    threads = {}
    for task in (task for pid in pids for task in Path(f"/proc/{pid}/task").iterdir()):
        try:
            status, stat = (task / "status").read_text(), (task / "stat").read_text()
        except OSError:
            continue  # it ended just now
        fields = stat.rsplit(")", 1)[1].split()
        threads[task.name] = {
            "worker": "(iou-wrk-" in stat,
            "sleeps": int(re.search(r"^voluntary_ctxt_switches:\s*(\d+)", status, re.M)[1]),
            "ticks": int(fields[11]) + int(fields[12]),
        }
    return threads


def _grown(before, after, what):
    return sum(now[what] - before.get(tid, {what: 0})[what] for tid, now in after.items())


def _trace(events):
    """Lets the kernel count these events by thread, from now on."""
    for event in events:
        trigger = EVENTS / event / "trigger"
        trigger.write_text("hist:keys=common_pid\n")
    return events


def _traced(event, threads):
    """How often the threads met the event; the count ends with it."""
    counted = re.findall(r"common_pid:\s*(\d+)\s*\} hitcount:\s*(\d+)", (EVENTS / event / "hist").read_text())
    (EVENTS / event / "trigger").write_text("!hist:keys=common_pid\n")
    return sum(int(hits) for tid, hits in counted if tid in threads)


def _straced(server, path, point):
    """System calls a request, with strace attached."""
    with tempfile.NamedTemporaryFile("r", suffix=".strace") as said:
        who = [word for pid in server.pids() for word in ("-p", str(pid))]
        tracer = subprocess.Popen(["strace", "-c", "-f", "-o", said.name, *who], stderr=subprocess.PIPE, text=True)
        tracer.stderr.readline()  # it says when it has attached
        requests = _load(server, path, point)
        tracer.send_signal(signal.SIGINT)
        tracer.communicate(timeout=30)
        total = re.search(r"^\s*100\.00(?:\s+\S+){2}\s+(\d+).*total$", said.read(), re.M)
    return int(total[1]) / requests if total else 0.0

"""What a server does for each request: system calls, sleeps, hand-overs to io-wq workers."""

import re
import signal
import subprocess
import tempfile
from pathlib import Path

from kit import fio

TICKS_PER_S = 100
RUN_S = 1.0


def count(server, path, point):
    """Counts for one server under one load, a request each.

    Sleeps and workers are read from /proc beside an undisturbed run. System calls are counted in a run of their own: by
    the kernel's tracepoint where there is one, else by strace, which slows the server down."""
    before = _threads(server.pids())
    requests = _load(server, path, point)
    after = _threads(server.pids())
    calls, calls_requests, by = _system_calls(server, path, point)
    workers = {tid: now for tid, now in after.items() if now["worker"]}
    return {
        "sleeps": _grown(before, {tid: now for tid, now in after.items() if not now["worker"]}, "sleeps") / requests,
        "workers": len(workers),
        "worker_wakes": _grown(before, workers, "sleeps") / requests,
        "worker_cpu_s": _grown(before, workers, "ticks") / TICKS_PER_S,
        "calls": calls / calls_requests,
        "by": by,
    }


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


def _system_calls(server, path, point):
    pids = ",".join(map(str, server.pids()))
    if Path("/sys/kernel/tracing/events/raw_syscalls").exists():
        command, by = ["perf", "stat", "-x,", "-e", "raw_syscalls:sys_enter", "-p", pids, "-o"], "tracepoint"
    else:
        command, by = ["strace", "-c", "-f", "-U", "calls,name", *(part for pid in pids.split(",") for part in ("-p", pid)), "-o"], "strace"
    with tempfile.NamedTemporaryFile("r", suffix=".count") as said:
        counter = subprocess.Popen([*command, said.name], stderr=subprocess.PIPE, text=True)
        if by == "strace":
            counter.stderr.readline()  # it says when it has attached
        requests = _load(server, path, point)
        counter.send_signal(signal.SIGINT)
        counter.communicate(timeout=30)
        text = said.read()
    return _parse_calls(text, by), requests, by


def _parse_calls(text, by):
    if by == "strace":
        return int(re.search(r"^\s*(\d+)\s+total", text, re.M)[1])
    return int(re.search(r"^(\d+),", text, re.M)[1])

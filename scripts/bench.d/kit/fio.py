"""One place that knows fio's options and its JSON."""

import json
import subprocess
from dataclasses import dataclass

WORKING_SET_MIB = 256
RAMP_S = 0.2


@dataclass(frozen=True)
class Point:
    """One kind of load."""

    key: str
    title: str
    rw: str
    block_size: str
    depth: int
    batch: int = 0  # requests a submission; 0: one at a time


POINTS = {
    point.key: point
    for point in (
        Point("read-1", "4k random read, depth 1", "randread", "4k", 1),
        Point("read-32", "4k random read, depth 32", "randread", "4k", 32),
        Point("read-32-batch", "4k random read, depth 32, batches of 16", "randread", "4k", 32, 16),
        Point("write-1", "4k random write, depth 1", "randwrite", "4k", 1),
        Point("write-32", "4k random write, depth 32", "randwrite", "4k", 32),
        Point("write-32-batch", "4k random write, depth 32, batches of 16", "randwrite", "4k", 32, 16),
        Point("read-8-128k", "128k random read, depth 8", "randread", "128k", 8),
        Point("write-8-128k", "128k random write, depth 8", "randwrite", "128k", 8),
    )
}


@dataclass(frozen=True)
class Result:
    """What one job did."""

    iops: float
    requests: int
    p50_us: float
    p99_us: float


def run(point, targets, runtime_s=1.0, ramp_s=RAMP_S):
    """Puts the load on each target in turn, in one fio process; `targets` maps labels to paths."""
    lines = ["[global]", *(f"{key}={value}" for key, value in _options(point, runtime_s, ramp_s).items())]
    labels = list(targets)
    for number, label in enumerate(labels):
        lines += [f"[job{number}]", "stonewall", f"filename={targets[label]}"]
    done = subprocess.run(
        ["fio", "--output-format=json", "-"],
        input="\n".join(lines), capture_output=True, text=True, timeout=60 + 10 * runtime_s * len(labels),
    )
    if done.returncode != 0:
        raise RuntimeError(f"fio failed on {point.title}: {(done.stderr or done.stdout).strip()[-500:]}")
    jobs = json.loads(done.stdout[done.stdout.index("{"):])["jobs"]
    return {label: _parse(job, point) for label, job in zip(labels, jobs, strict=True)}


def _options(point, runtime_s, ramp_s):
    options = {
        "ioengine": "io_uring",
        "thread": 1,
        "direct": 1,
        "rw": point.rw,
        "bs": point.block_size,
        "iodepth": point.depth,
        "size": f"{WORKING_SET_MIB}m",
        "norandommap": 1,
        "time_based": 1,
        "runtime": f"{round(runtime_s * 1000)}ms",
        "ramp_time": f"{round(ramp_s * 1000)}ms",
        # Reading the clock is a system call in User Mode Linux, and would be measured with the rest.
        "clocksource": "cpu",
    }
    if point.batch:
        options |= {
            "iodepth_batch_submit": point.batch,
            "iodepth_batch_complete_min": 1,
            "iodepth_batch_complete_max": point.batch,
        }
    return options


def _parse(job, point):
    if job["error"]:
        raise RuntimeError(f"fio saw error {job['error']} on {point.title}")
    side = job["read" if "read" in point.rw else "write"]
    percentile_ns = side["clat_ns"].get("percentile", {})
    return Result(
        iops=side["iops"],
        requests=side["total_ios"],
        p50_us=percentile_ns.get("50.000000", 0) / 1000,
        p99_us=percentile_ns.get("99.000000", 0) / 1000,
    )


def version():
    """fio's version."""
    return subprocess.run(["fio", "--version"], capture_output=True, text=True, check=True).stdout.strip().removeprefix("fio-")

"""Measures the block devices of one boot side by side. Runs as root in the test kernel."""

import os
import platform
import subprocess
import sys
from pathlib import Path

from kit import copies, counts, fio, rounds, servers, vm
from kit.marks import MEMORY_BY_VECTORS
from kit.servers import Blockferry, KernelLoop, KernelNbd, NullBlk, Rublk

MEMORY = "/dev/shm"
FILE_SYSTEM_MIB = 900


def main():
    """Runs the plan: the devices on memory first, then those on files of ext4 and xfs."""
    plan = vm.plan()
    for kind, folder in (("tracefs", "/sys/kernel/tracing"), ("configfs", "/sys/kernel/config")):
        subprocess.run(["mount", "-t", kind, kind, folder], capture_output=True)  # where it is missing
    result = {"kernel": platform.release(), "cpus": os.cpu_count(), "groups": {}}
    result["groups"]["memory"] = measure_group(in_memory(plan), plan["points"], plan["rounds"], plan)
    result["copies"] = copies.measure()
    for file in Path(MEMORY).glob("*.img"):
        file.unlink()
    for kind in plan["file_systems"]:
        result["groups"][kind] = measure_on(kind, plan)
    vm.answer(result)


def in_memory(plan):
    """Everybody's fastest stores."""
    files = [f"{MEMORY}/{name}.img" for name in ("loop", "rublk", "rublk-zc", "ours")]
    for file in files:
        servers.fill(file)
    memory = f"mem:{fio.WORKING_SET_MIB}MiB"
    by_vectors = ours((MEMORY_BY_VECTORS, memory), environment=copies.BY_VECTORS) if plan.get("by_vectors") else []
    return [
        NullBlk("null_blk"),
        KernelLoop("kernel loop, tmpfs", files[0]),
        Rublk("rublk null", "null"),
        Rublk("rublk loop, tmpfs", "loop", "-f", files[1]),
        Rublk("rublk loop -z, tmpfs", "loop", "-z", "-f", files[2]),
        KernelNbd("kernel nbd, nbdkit memory"),
        *ours(("blockferry mem:", memory), ("blockferry file:, tmpfs", f"file:{files[3]}")),
        *by_vectors,
    ]


def on_files(folder, kind):
    """The servers of files, on one file system."""
    files = [f"{folder}/{name}.img" for name in ("loop", "rublk", "ours")]
    for file in files:
        servers.fill(file)
    return [
        KernelLoop(f"kernel loop, {kind}", files[0]),
        Rublk(f"rublk loop, {kind}", "loop", "-f", files[1]),
        *ours((f"blockferry file:, {kind}", f"file:{files[2]}")),
    ]


def ours(*devices, environment=None):
    """Our devices, where our program is there."""
    if not os.environ.get("BLOCKFERRY"):
        return []
    return [Blockferry(label, url, "--device", "ublk", environment=environment) for label, url in devices]


def measure_on(kind, plan):
    """A file system of its own, on a disk in memory."""
    with servers.memory_disk(kind, FILE_SYSTEM_MIB) as folder:
        return measure_group(on_files(folder, kind), plan["file_system_points"], plan["file_system_rounds"], plan)


def measure_group(group, points, round_count, plan):
    """Starts the group, measures it in rounds, counts what its user processes do, stops it."""
    print("starting " + ", ".join(server.label for server in group), file=sys.stderr, flush=True)
    paths, missing = servers.start_all(group)
    for label, why in missing.items():
        print(f"{label} is missing: {why}", file=sys.stderr, flush=True)
    running = [server for server in group if server.label in paths]
    result = {"missing": missing}
    result["figures"] = rounds.measure(paths, points, round_count, plan["runtime_s"])
    result["counts"] = {server.label: count(server, paths[server.label], plan) for server in running if server.pids()}
    servers.stop_all(running)
    return result


def count(server, path, plan):
    """What one server does for each request."""
    print(f"  counting {server.label}", file=sys.stderr, flush=True)
    return {key: counts.count(server, path, fio.POINTS[key]) for key in plan["count_points"]}


if __name__ == "__main__":
    main()

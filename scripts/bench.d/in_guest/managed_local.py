"""Measures fully local managed mounts beside direct mounts of the same kind of store. Runs as root in the test kernel."""

import os
import platform
import subprocess
import sys
from pathlib import Path

from kit import counts, fio, rounds, servers, vm
from kit.servers import Blockferry, Managed

MEMORY = "/dev/shm"
DISK_MIB = 900


def main():
    """Runs the plan: stores on tmpfs, then on ext4."""
    plan = vm.plan()
    for kind, folder in (("tracefs", "/sys/kernel/tracing"), ("configfs", "/sys/kernel/config")):
        subprocess.run(["mount", "-t", kind, kind, folder], capture_output=True)  # where it is missing
    servers.output(["ip", "link", "set", "lo", "up"])
    origin = f"{MEMORY}/origin.img"
    servers.fill(origin)
    result = {"kernel": platform.release(), "cpus": os.cpu_count(), "groups": {}}
    result["groups"]["tmpfs"] = measure_in(MEMORY, "tmpfs", origin, plan)
    with servers.memory_disk("ext4", DISK_MIB) as folder:
        result["groups"]["ext4"] = measure_in(folder, "ext4", origin, plan)
    vm.answer(result)


def measure_in(folder, kind, origin, plan):
    """A direct mount of a file in `folder`, and managed mounts whose stores are there."""
    direct = f"{folder}/direct.img"
    servers.fill(direct)
    group = [
        Blockferry(f"direct file:, {kind}", f"file:{direct}", "--device", "ublk"),
        Managed(f"managed, {kind}", origin, f"{folder}/cache", "--device", "ublk", "--push", "off"),
    ]
    print("starting " + ", ".join(server.label for server in group), file=sys.stderr, flush=True)
    paths, missing = servers.start_all(group)
    for label, why in missing.items():
        print(f"{label} is missing: {why}", file=sys.stderr, flush=True)
    running = [server for server in group if server.label in paths]
    result = {"missing": missing}
    result["figures"] = rounds.measure(paths, plan["points"], plan["rounds"], plan["runtime_s"])
    result["counts"] = {
        server.label: {key: counts.count(server, paths[server.label], fio.POINTS[key]) for key in plan["count_points"]}
        for server in running
    }
    servers.stop_all(running)
    Path(direct).unlink()
    return result


if __name__ == "__main__":
    main()

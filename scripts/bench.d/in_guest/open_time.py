"""Times, in turn, how long each server takes from process start to a device that can be opened. Runs as root in the test kernel."""

import os
import platform
import time
from pathlib import Path

from kit import servers, vm
from kit.fio import WORKING_SET_MIB
from kit.servers import Blockferry, Rublk

FILES = {"rublk loop": "/dev/shm/rublk.img", "blockferry file:": "/dev/shm/ours.img"}


def main():
    """Alternates the plan's count of times, each device alone."""
    plan = vm.plan()
    for file in FILES.values():
        servers.fill(file)
    group = [Rublk("rublk null", "null"), Rublk("rublk loop", "loop", "-f", FILES["rublk loop"])]
    if os.environ.get("BLOCKFERRY"):
        urls = {"blockferry mem:": f"mem:{WORKING_SET_MIB}MiB", "blockferry file:": f"file:{FILES['blockferry file:']}"}
        group += [Blockferry(label, url, "--device", "ublk") for label, url in urls.items()]
    times, missing = {}, {}
    for number in range(plan["rounds"]):
        turn = number % len(group)
        for server in group[turn:] + group[:turn]:
            if server.label not in missing:
                attempt(server, times, missing)
    vm.answer({"kernel": platform.release(), "cpus": os.cpu_count(), "times_ms": times, "missing": missing})


def attempt(server, times, missing):
    """One start and stop."""
    try:
        times.setdefault(server.label, []).append(open_ms(server))
    except (OSError, RuntimeError, TypeError) as error:
        missing[server.label] = str(error)
        times.pop(server.label, None)


def open_ms(server):
    """From the start of the process to the line that says the device is there, which is then opened to see whether that is true."""
    begin = time.perf_counter()
    path = server.start()
    took_ms = (time.perf_counter() - begin) * 1000
    with open(path, "rb", buffering=0) as device:
        device.read(4096)
    server.stop()
    servers.wait_for(lambda: not Path(path).exists(), f"the end of {path}")
    return took_ms


if __name__ == "__main__":
    main()

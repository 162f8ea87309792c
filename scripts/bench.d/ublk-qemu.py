"""ublk devices in one boot of QEMU with an unmodified distribution kernel."""

import os

from kit import ublk_page

QUICK = bool(os.environ.get("BENCH_QUICK"))
PLAN = {
    "points": ["read-1", "read-32", "read-32-batch", "write-32", "read-8-128k"],
    "count_points": ["read-1", "read-32", "read-32-batch", "write-32"],
    "rounds": 1 if QUICK else 3,
    "file_systems": [],
    "runtime_s": 0.5 if QUICK else 1.5,
}
ABOUT = """\
QEMU without hardware virtualisation: 2 CPUs, user code about 6 times slower than native, and a hand-over between threads
costs milliseconds. Depth 1 mostly measures the emulator, and moving bytes weighs more than on metal: these figures are reported, the marks are
meant for User Mode Linux. The counts are exact here, by the kernel's tracepoints."""

if __name__ == "__main__":
    ublk_page.make("ublk-qemu", "ublk servers side by side, QEMU", PLAN, qemu=True, nbd_key="read-32", about=ABOUT)

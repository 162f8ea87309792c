"""ublk devices in one boot of User Mode Linux."""

import os

from kit import ublk_page

QUICK = bool(os.environ.get("BENCH_QUICK"))
PLAN = {
    "points": ["read-1", "read-32", "read-32-batch", "write-1", "write-32", "write-32-batch", "read-8-128k"],
    "count_points": ["read-1", "read-32", "write-32"],
    "rounds": 2 if QUICK else 5,
    "file_systems": ["ext4", "xfs"],
    "file_system_points": ["read-1", "read-32", "read-32-batch", "write-32", "read-8-128k"],
    "file_system_rounds": 1 if QUICK else 3,
    "runtime_s": 0.3 if QUICK else 0.8,
}
ABOUT = """\
User Mode Linux has one CPU, and a system call costs about 5 µs there, some 50 times what it costs on metal: it shows who
saves system calls and wake-ups. Absolute figures say nothing about metal; ratios within this boot are what counts."""

if __name__ == "__main__":
    ublk_page.make("ublk-uml", "ublk servers side by side, User Mode Linux", PLAN, qemu=False, nbd_key="read-32-batch", about=ABOUT)

"""ublk devices in one boot of QEMU with an unmodified distribution kernel."""

import os

from kit import ublk_page

QUICK = bool(os.environ.get("BENCH_QUICK"))
PLAN = {
    "points": ["read-1", "read-32", "read-32-batch", "write-32", "read-8-128k"],
    "count_points": ["read-1", "read-32", "read-32-batch", "write-32"],
    "rounds": 1 if QUICK else 3,
    "file_systems": [],
    "by_vectors": True,
    "runtime_s": 0.5 if QUICK else 1.5,
}
ABOUT = """\
QEMU without hardware virtualisation: 2 CPUs, user code about 6 times slower than native, and a hand-over between threads
costs milliseconds. Depth 1 mostly measures the emulator: these figures are reported, the marks are meant for User Mode Linux. The counts are exact
here, by the kernel's tracepoints.

Moving bytes weighs far more than on metal. The C library copies from 2 KiB on with `rep movsb` where the processor says that this is fast; the emulated one
says so, and QEMU then emulates it byte by byte. `blockferry mem:, by vectors` is the same program, whose C library is told to copy by vector
instructions (`GLIBC_TUNABLES`)."""

if __name__ == "__main__":
    ublk_page.make("ublk-qemu", "ublk servers side by side, QEMU", PLAN, qemu=True, nbd_key="read-32", about=ABOUT)

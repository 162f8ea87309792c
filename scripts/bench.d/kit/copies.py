"""What moving the bytes of a request costs, beside how much longer a request takes than with a peer that moves none."""

import os
import subprocess
from pathlib import Path
from statistics import median

from kit import fio
from kit.marks import MEMORY, NULL

RUN_S = 60
# The C library copies by vector instructions then, however many bytes there are.
BY_VECTORS = {"GLIBC_TUNABLES": "glibc.cpu.x86_rep_movsb_threshold=1073741824"}
WAYS = {"as the C library does": {}, "by vector instructions": BY_VECTORS}
ABOUT = """\
`rublk null` moves no bytes; `blockferry mem:` copies each of them between its memory and the buffer of its request. The copy alone, by the same code
without a device (`examples/copy_cost.rs`), in the same boot once the devices were gone, in µs at random places of 256 MiB, and of 256 KiB that caches hold:"""
COMPARED = """\
How much longer than `rublk null` a request of `blockferry mem:` took, where the server's thread is what limits (the time a request is 1 / IOPS, medians), beside the copy:"""


def measure():
    """In the guest: nanoseconds a copy, by way, size and kind; nothing without the program."""
    program = Path(os.environ.get("BLOCKFERRY", "/")).parent / "examples/copy_cost"
    if not program.exists():
        return None
    return {way: _table(program, environment) for way, environment in WAYS.items()}


def _table(program, environment):
    said = subprocess.run([program], env=os.environ | environment, capture_output=True, text=True, check=True, timeout=RUN_S).stdout
    head, *rows = (line.split() for line in said.splitlines())
    return {row[0]: dict(zip(head[1:], map(int, row[1:]), strict=True)) for row in rows}


def write(report, copies, figures, short):
    """The section of the page."""
    if not copies:
        return
    report.heading("What moving the bytes costs")
    report.table(
        ["µs a copy", "size", "read", "write", "read, cached"],
        [[way, f"{int(size) >> 10}k", *(_us(cost[kind]) for kind in ("read_ns", "write_ns", "cached_read_ns"))]
         for way, sizes in copies.items() for size, cost in sizes.items()],
        caption=ABOUT,
    )
    rows = [row for key, devices in figures.items() if (row := _compared(key, devices, copies, short))]
    if rows:
        report.table(["µs a request", "rublk null", "blockferry mem:", "longer by", "a copy"], rows, caption=COMPARED)


def _compared(key, devices, copies, short):
    point = fio.POINTS[key]
    if point.depth == 1 or not {NULL, MEMORY} <= devices.keys():
        return None
    null_ns, ours_ns = (1e9 / median(devices[label]) for label in (NULL, MEMORY))
    size = str(int(point.block_size.removesuffix("k")) << 10)
    kind = "read_ns" if "read" in point.rw else "write_ns"
    copy_ns = next(iter(copies.values()))[size][kind]
    return [short(key), _us(null_ns), _us(ours_ns), _us(ours_ns - null_ns), _us(copy_ns)]


def _us(nanoseconds):
    return f"{nanoseconds / 1000:.1f}"

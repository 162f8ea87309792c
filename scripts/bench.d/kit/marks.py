"""The marks that were set before anything was measured: ours / peer, or ours alone."""

from dataclasses import dataclass

from kit import rounds

MEMORY, FILE = "blockferry mem:", "blockferry file:, tmpfs"
MEMORY_BY_VECTORS = "blockferry mem:, by vectors"
NULL, LOOP, NBD = "rublk null", "rublk loop, tmpfs", "kernel nbd, nbdkit memory"


@dataclass(frozen=True)
class Mark:
    """How ours should stand to a peer under one load; `wanted` None: only reported."""

    key: str
    ours: str
    peer: str
    wanted: float | None


def ublk(nbd_key):
    """The marks of the ublk benchmarks; `nbd_key`: the load where the kernel's nbd is compared."""
    memory = {
        "read-1": 1.0, "read-32": 1.0, "read-32-batch": 0.9, "write-1": 1.0, "write-32": 1.0, "write-32-batch": 0.9,
        "read-8-128k": 0.75, "write-8-128k": 0.75,
    }
    return [
        *(Mark(key, MEMORY, NULL, wanted) for key, wanted in memory.items()),
        *(Mark(key, MEMORY_BY_VECTORS, NULL, None) for key in memory),
        *(Mark(key, FILE, LOOP, 1.05) for key in memory),
        *(Mark(key, FILE, "rublk loop -z, tmpfs", None) for key in memory),
        *(Mark(key, FILE, "kernel loop, tmpfs", None) for key in memory),
        Mark(nbd_key, MEMORY, NBD, 3.0),
    ]


def rows(marks, figures, title_of):
    """The table of marks: what was wanted, what came out, met or missed."""
    lines = []
    for mark in marks:
        got = rounds.ratio(figures, mark.key, mark.ours, mark.peer)
        if got is not None:
            lines.append([f"{mark.ours} / {mark.peer}", title_of(mark.key), f"{got:.2f}", f"≥ {mark.wanted}" if mark.wanted else "–", verdict(mark, got)])
    return lines


def verdict(mark, got):
    """In a word."""
    if mark.wanted is None:
        return "reported"
    return "met" if got >= mark.wanted else "**missed**"

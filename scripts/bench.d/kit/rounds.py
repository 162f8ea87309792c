"""Interleaved rounds (A B C, then B C A, …) and what is read off them."""

import sys
from statistics import median

from kit import fio


def measure(paths, points, rounds, runtime_s=1.0):
    """Every point on every device, `rounds` times: {point key: {label: [iops of each round]}}."""
    labels = list(paths)
    figures = {key: {label: [] for label in labels} for key in points}
    for number in range(rounds):
        print(f"  round {number + 1} of {rounds}", file=sys.stderr, flush=True)
        turn = number % max(len(labels), 1)
        order = {label: paths[label] for label in labels[turn:] + labels[:turn]}
        for key in points:
            for label, result in fio.run(fio.POINTS[key], order, runtime_s).items():
                figures[key][label].append(result.iops)
    return figures


def ratio(figures, key, ours, peer):
    """The median, over the rounds, of ours / peer within one round; None where either is missing."""
    mine, other = figures.get(key, {}).get(ours), figures.get(key, {}).get(peer)
    if not mine or not other:
        return None
    return median(a / b for a, b in zip(mine, other, strict=True))

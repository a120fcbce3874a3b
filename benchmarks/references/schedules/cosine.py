"""Cosine annealing with warm restarts, from eq. 5 of SGDR."""

import math

from references.curves import decaying
from references.record import Hyperparameters, Schedule


def factor(h: Hyperparameters, x: float) -> float:
    """Eq. 5 of arXiv 1608.03983: T_cur runs through cycles, each `growth` times the one before."""
    cycles, growth = 1, 1
    if h["restarts"]["name"] == "warm":
        cycles, growth = h["restarts"]["cycles"], h["restarts"]["growth"]
    lengths = [growth**cycle for cycle in range(cycles)]
    position = x * sum(lengths)
    while len(lengths) > 1 and position >= lengths[0]:
        position -= lengths.pop(0)
    low = h["final_factor"]
    return low + 0.5 * (1 - low) * (1 + math.cos(math.pi * position / lengths[0]))


REFERENCE = Schedule(
    source="Loshchilov & Hutter 2017 (arXiv 1608.03983), eq. 5",
    controls=decaying(factor),
    differences="The paper and torch give the first cycle's length; here their number is given, "
    "and the last ends at the horizon.",
)

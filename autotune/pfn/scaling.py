"""Brings metrics of any range to the network's: [0, 1], more is better."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from autotune.plugins.search import FloatArray, Objective

DECADES = 30.0
"""A loss is taken logarithmically if the best is so many times below where trials start."""

_NARROW = 0.2
_AHEAD = 0.3


@dataclass(frozen=True)
class Scaling:
    """A decreasing map from oriented values (less is better) to [0, 1] (more is better); what is
    beyond its ends, or not finite, is clipped.

    Args:
        worst, ideal: what is mapped to 0 and to 1; logarithms if `origin` is given.
        origin: subtracted before the logarithm is taken; None if none is.
    """

    worst: float
    ideal: float
    origin: float | None = None

    def normalise(self, values: FloatArray) -> FloatArray:
        """Values on [0, 1], same shape."""
        values = np.asarray(values, dtype=np.float64)
        with np.errstate(all="ignore"):
            y = (self.worst - self._line(values)) / (self.worst - self.ideal)
        return np.where(np.isnan(y), 0.0, np.clip(y, 0.0, 1.0))

    def restore(self, y: FloatArray) -> FloatArray:
        """Oriented values, same shape."""
        line = self.worst - np.asarray(y, dtype=np.float64) * (self.worst - self.ideal)
        return line if self.origin is None else self.origin + np.exp(line)

    def log_slope(self, values: FloatArray) -> FloatArray:
        """Logarithm of the absolute derivative of `normalise`, same shape."""
        values = np.asarray(values, dtype=np.float64)
        slope = np.full(values.shape, -math.log(self.worst - self.ideal))
        return slope if self.origin is None else slope - self._line(values)

    def _line(self, values: FloatArray) -> FloatArray:
        if self.origin is None:
            return values
        return np.asarray(np.log(np.maximum(values - self.origin, 1e-300)))


def fitted(objective: Objective, firsts: FloatArray, bests: FloatArray) -> Scaling:
    """The scaling of a study.

    Known bounds are kept, unless values lie beyond them, or trials start so near the ideal that
    little of the range is used. A loss that was never negative has the ideal 0; it is told as a
    share of what trials start with, logarithmically if the best is `DECADES` below. Of anything
    else the ideal is taken to be a little beyond the best.

    Args:
        firsts, bests: first and best finite value of every trial, oriented, shape (trials,).
    """
    if not len(firsts):
        ends = objective.bounds or (0.0, 1.0)
        low, high = sorted(objective.sign * end for end in ends)
        return Scaling(high, low)
    start = float(np.median(firsts))
    best = float(bests.min())
    ideal, worst = sorted(objective.sign * bound for bound in objective.bounds or (0.0, 0.0))
    slack = 0.05 * (worst - ideal)
    # Bounds that the values contradict (per cent under (0, 1)) are none.
    if ideal < worst and best >= ideal - slack and start <= worst + slack:
        if ideal <= best and start - ideal < _NARROW * (worst - ideal) and start > ideal:
            worst = min(worst, start + 0.5 * (start - ideal))
        return Scaling(worst, ideal)
    poor = max(float(np.quantile(firsts, 0.75)), start)
    worst = min(poor, start + 2.0 * (start - best))
    if objective.direction == "minimize" and best >= 0.0 and worst > 0.0:
        if best > 0.0 and worst > DECADES * best:
            low, high = math.log(best), math.log(worst)
            return Scaling(high, low - _AHEAD * (high - low), origin=0.0)
        if best < worst:
            return Scaling(worst, 0.0)
    width = worst - best
    if not width > 1e-12 * max(1.0, abs(best)):
        width = max(1.0, abs(best))
        return Scaling(best + 0.5 * width, best - 0.5 * width)
    return Scaling(worst, best - _AHEAD * width)

"""Brings metrics of any range to one scale: 0 the study's best, about 1 where trials start."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autotune.plugins.search import FloatArray, Objective

DECADE = 10.0
"""Distances to the ideal value are taken logarithmically if they span more than this factor."""

_KNEE, _SLOPE = 1.2, 0.2


def ideal(objective: Objective, lowest: float) -> float | None:
    """The best value there can be, oriented so that less is better: a known bound, or 0 for a
    loss that was never below it; None if unknown, or if what was observed contradicts the bound.

    Args:
        lowest: the least oriented value observed.
    """
    if objective.bounds is not None:
        bound = min(objective.sign * bound for bound in objective.bounds)
        return bound if lowest >= bound else None
    if objective.direction == "minimize" and lowest >= 0:
        return 0.0
    return None


@dataclass(frozen=True)
class Scale:
    """A strictly increasing map between oriented values and normalised ones.

    Values worse than normalised 1.2 are squeezed logarithmically, so that a diverging curve
    does not drown the differences among the good.

    Args:
        low, width: of what is mapped to 0 and 1.
        origin: the ideal value, if the distance to it is taken logarithmically; else None.
        offset: added to that distance, so that the ideal itself is finite.
    """

    low: float = 0.0
    width: float = 1.0
    origin: float | None = None
    offset: float = 0.0

    def normalise(self, values: FloatArray) -> FloatArray:
        """Normalised values; what is not finite stays so."""
        with np.errstate(all="ignore"):
            line = self._line(np.asarray(values, dtype=np.float64))
            z = (line - self.low) / self.width
            squeezed = _KNEE + _SLOPE * np.log1p(np.maximum(z - _KNEE, 0.0) / _SLOPE)
        return np.where(z > _KNEE, squeezed, z)

    def restore(self, z: FloatArray) -> FloatArray:
        """The inverse of `normalise`."""
        with np.errstate(over="ignore"):
            stretched = _KNEE + _SLOPE * np.expm1(np.maximum(z - _KNEE, 0.0) / _SLOPE)
            line = self.low + self.width * np.where(z > _KNEE, stretched, z)
            if self.origin is None:
                return line
            return self.origin + np.exp(line) - self.offset

    def log_slope(self, values: FloatArray) -> FloatArray:
        """log of the derivative of `normalise`."""
        line = self._line(np.asarray(values, dtype=np.float64))
        z = (line - self.low) / self.width
        slope = -math.log(self.width) - np.log1p(np.maximum(z - _KNEE, 0.0) / _SLOPE)
        return slope if self.origin is None else slope - line

    def _line(self, values: FloatArray) -> FloatArray:
        if self.origin is None:
            return values
        return np.log(np.maximum(values - self.origin + self.offset, 1e-300))


def fitted(objective: Objective, firsts: Sequence[float], bests: Sequence[float]) -> Scale:
    """The scale of a study.

    Args:
        firsts, bests: each trial's first and best finite oriented values.
    """
    best = min(bests)
    pooled = np.array([*firsts, *bests])
    origin = ideal(objective, float(pooled.min()))
    typical = float(np.median(pooled))
    if origin is not None:
        distance = typical - origin
        offset = max(0.1 * (best - origin), 1e-4 * distance)
        if distance > DECADE * (best - origin) and offset > 0:
            line = np.log(pooled - origin + offset)
            return _over(line, float(line.min()), origin, offset)
    return _over(pooled, best, None, 0.0)


def _over(line: FloatArray, low: float, origin: float | None, offset: float) -> Scale:
    typical = float(np.median(line)) - low
    far = float(np.quantile(line, 0.75)) - low
    width = max(typical, 0.5 * far)
    tiny = 1e-9 * max(1.0, abs(low))
    return Scale(low, width if width > tiny and math.isfinite(width) else 1.0, origin, offset)

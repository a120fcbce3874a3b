"""A forecast given by its quantiles, and the average of several of that kind."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import ndtr, ndtri

from autotune.decide.scale import Scale
from autotune.plugins.search import FloatArray, Forecast

_LOWER = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4)
PROBABILITIES = np.array([*_LOWER, 0.5, *(1.0 - p for p in reversed(_LOWER))])
"""Where the distributions are held; between and beyond they are pieces of normal ones."""

_NORMAL = ndtri(PROBABILITIES)
_APART = 1e-6
_LOG_ROOT = 0.5 * math.log(2 * math.pi)
_TRIM = slice(1, -1)


class QuantileForecast(Forecast):
    """Distributions by their quantiles at `PROBABILITIES`.

    Args:
        scale: of the quantiles.
        quantiles: normalised, (queries, probabilities).
        bounds: of the oriented metric, where they are known: what lies beyond happens at them.
    """

    def __init__(
        self, scale: Scale, quantiles: FloatArray, bounds: tuple[float, float] | None = None
    ) -> None:
        self._scale = scale
        self._low, self._high = bounds or (-math.inf, math.inf)
        rising = np.maximum.accumulate(quantiles, axis=1)
        self._quantiles = rising + _APART * np.arange(len(PROBABILITIES))

    def __len__(self) -> int:
        return len(self._quantiles)

    def probability_below(self, threshold: float | FloatArray) -> FloatArray:
        """P(value < threshold), shape (queries,)."""
        threshold = np.broadcast_to(np.asarray(threshold, dtype=np.float64), (len(self),))
        below = ndtr(self._normal(self._scale.normalise(threshold))[0])
        return np.where(threshold <= self._low, 0.0, np.where(threshold > self._high, 1.0, below))

    def quantile(self, probability: float) -> FloatArray:
        """Quantiles, shape (queries,)."""
        u = float(ndtri(probability))
        place = int(np.clip(np.searchsorted(_NORMAL, u), 1, len(_NORMAL) - 1))
        left, right = self._quantiles[:, place - 1], self._quantiles[:, place]
        share = (u - _NORMAL[place - 1]) / (_NORMAL[place] - _NORMAL[place - 1])
        return self._restored(left + share * (right - left))

    def mean(self) -> FloatArray:
        """Means without the worst and best half per cent, which have no mean where the scale is
        exponential; shape (queries,)."""
        values = self._restored(self._quantiles[:, _TRIM])
        steps = np.diff(PROBABILITIES[_TRIM])
        middles = 0.5 * (values[:, 1:] + values[:, :-1])
        return np.asarray((middles * steps).sum(axis=1) / steps.sum())

    def log_density(self, value: FloatArray) -> FloatArray:
        """Log density at `value` (queries,), shape (queries,)."""
        value = np.asarray(value, dtype=np.float64)
        u, slope = self._normal(self._scale.normalise(value))
        return np.asarray(-0.5 * u * u - _LOG_ROOT + np.log(slope) + self._scale.log_slope(value))

    def _restored(self, z: FloatArray) -> FloatArray:
        return np.clip(self._scale.restore(z), self._low, self._high)

    def _normal(self, z: FloatArray) -> tuple[FloatArray, FloatArray]:
        """The normal quantile of the same probability, and its slope by z; (queries,)."""
        above = (self._quantiles < z[:, None]).sum(axis=1)
        place = np.clip(above, 1, len(PROBABILITIES) - 1)
        row = np.arange(len(self))
        left, right = self._quantiles[row, place - 1], self._quantiles[row, place]
        slope = (_NORMAL[place] - _NORMAL[place - 1]) / (right - left)
        return _NORMAL[place - 1] + slope * (z - left), slope


def averaged(
    scale: Scale,
    forecasts: list[Forecast],
    weights: FloatArray,
    bounds: tuple[float, float] | None,
) -> QuantileForecast:
    """Quantile by quantile the weighted mean, on the normalised scale (Vincent averaging: it
    keeps the members' shape, where mixing their densities would widen it; Ratcliff 1979).

    Args:
        weights: of the forecasts, summing to 1.
    """
    total = np.zeros((len(forecasts[0]), len(PROBABILITIES)))
    for forecast, weight in zip(forecasts, weights, strict=True):
        columns = [scale.normalise(forecast.quantile(float(p))) for p in PROBABILITIES]
        total += weight * np.stack(columns, axis=1)
    return QuantileForecast(scale, total, bounds)

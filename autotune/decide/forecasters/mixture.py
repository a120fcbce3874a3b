"""A forecast as mixtures of Gaussians on the normalised scale."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import ndtr

from autotune.decide.scale import Scale
from autotune.plugins.search import FloatArray, Forecast

SPIKE = 0.02
"""Probability of a value that the curve does not explain: a spike, always to the worse."""

_SPIKE_MEAN, _SPIKE_DEVIATION = 1.0, 0.7
_TRIALS, _CLOSE = 80, 1e-9
"""Steps of the search for a quantile, at most, and the error in probability that ends it."""

_TRIMMED, _GRID = 0.01, 48
_LOG_ROOT = 0.5 * math.log(2 * math.pi)


class MixtureForecast(Forecast):
    """One mixture a query, in the metric's own units through `scale`.

    Args:
        weight, mean, deviation: of the components, shape (queries, components); normalised.
        bounds: of the oriented metric, where they are known: what lies beyond happens at them.
    """

    def __init__(
        self,
        scale: Scale,
        weight: FloatArray,
        mean: FloatArray,
        deviation: FloatArray,
        bounds: tuple[float, float] | None = None,
    ) -> None:
        self._scale = scale
        self._low, self._high = bounds or (-math.inf, math.inf)
        centre = (weight * mean).sum(1, keepdims=True)
        self._weight = np.concatenate(
            [(1 - SPIKE) * weight, np.full((len(weight), 1), SPIKE)], axis=1
        )
        self._mean = np.concatenate([mean, centre + _SPIKE_MEAN], axis=1)
        self._deviation = np.concatenate(
            [deviation, np.full((len(weight), 1), _SPIKE_DEVIATION)], axis=1
        )

    def __len__(self) -> int:
        return len(self._mean)

    def probability_below(self, threshold: float | FloatArray) -> FloatArray:
        """P(value < threshold), shape (queries,)."""
        threshold = np.broadcast_to(np.asarray(threshold, dtype=np.float64), (len(self),))
        below = self._below(self._scale.normalise(threshold))
        return np.where(threshold <= self._low, 0.0, np.where(threshold > self._high, 1.0, below))

    def quantile(self, probability: float) -> FloatArray:
        """Quantiles, shape (queries,)."""
        return np.clip(self._scale.restore(self._place(probability)), self._low, self._high)

    def mean(self) -> FloatArray:
        """Means of the forecast without its worst and best per cent, which have no mean where
        the scale is exponential; shape (queries,)."""
        low, high = self._place(_TRIMMED), self._place(1.0 - _TRIMMED)
        edges = low + (high - low) * np.linspace(0.0, 1.0, _GRID + 1)[:, None]
        below = np.clip([self._below(edge) for edge in edges], _TRIMMED, 1.0 - _TRIMMED)
        below[0], below[-1] = _TRIMMED, 1.0 - _TRIMMED
        values = np.clip(self._scale.restore(edges), self._low, self._high)
        inside = 0.5 * (values[1:] + values[:-1]) * np.diff(below, axis=0)
        return np.asarray(inside.sum(axis=0) / (1.0 - 2 * _TRIMMED))

    def _place(self, probability: float) -> FloatArray:
        """Normalised quantiles, by Newton's method kept inside a shrinking bracket."""
        low = (self._mean - 40 * self._deviation).min(axis=1, initial=0.0)
        high = (self._mean + 40 * self._deviation).max(axis=1, initial=0.0)
        place = np.clip((self._weight * self._mean).sum(axis=1), low, high)
        for _ in range(_TRIALS):
            away = (place[:, None] - self._mean) / self._deviation
            error = (self._weight * ndtr(away)).sum(axis=1) - probability
            if (np.abs(error) < _CLOSE).all():
                break
            low, high = np.where(error < 0, place, low), np.where(error < 0, high, place)
            slope = (self._weight * np.exp(-0.5 * away**2) / self._deviation).sum(axis=1)
            with np.errstate(divide="ignore", invalid="ignore"):
                step = place - error * math.sqrt(2 * math.pi) / slope
            # Newton's step where it stays well inside, else halving, which always ends.
            inside = (step > low) & (step < high) & (np.abs(step - place) < 0.5 * (high - low))
            following = np.where(inside, step, 0.5 * (low + high))
            place = np.where(np.abs(error) < _CLOSE, place, following)
        return place

    def log_density(self, value: FloatArray) -> FloatArray:
        """Log density at `value` (queries,), shape (queries,)."""
        value = np.asarray(value, dtype=np.float64)
        z = self._scale.normalise(value)[:, None]
        away = (z - self._mean) / self._deviation
        terms = -0.5 * away**2 - np.log(self._deviation) - _LOG_ROOT
        highest = terms.max(axis=1, keepdims=True)
        density = np.log((self._weight * np.exp(terms - highest)).sum(axis=1)) + highest[:, 0]
        return np.asarray(density + self._scale.log_slope(value))

    def _below(self, z: FloatArray) -> FloatArray:
        away = (z[:, None] - self._mean) / self._deviation
        return np.asarray((self._weight * ndtr(away)).sum(axis=1))

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
_HALVINGS = 45
_LOG_ROOT = 0.5 * math.log(2 * math.pi)


class MixtureForecast(Forecast):
    """One mixture a query, in the metric's own units through `scale`.

    Args:
        weight, mean, deviation: of the components, shape (queries, components); normalised.
    """

    def __init__(
        self, scale: Scale, weight: FloatArray, mean: FloatArray, deviation: FloatArray
    ) -> None:
        self._scale = scale
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
        z = self._scale.normalise(np.asarray(threshold, dtype=np.float64))
        return self._below(np.broadcast_to(z, (len(self),)))

    def quantile(self, probability: float) -> FloatArray:
        """Quantiles, shape (queries,), by bisection."""
        low = (self._mean - 40 * self._deviation).min(axis=1, initial=0.0)
        high = (self._mean + 40 * self._deviation).max(axis=1, initial=0.0)
        for _ in range(_HALVINGS):
            middle = 0.5 * (low + high)
            short = self._below(middle) < probability
            low, high = np.where(short, middle, low), np.where(short, high, middle)
        return self._scale.restore(0.5 * (low + high))

    def mean(self) -> FloatArray:
        """Means of the forecast without its worst and best per cent, which have no mean where
        the scale is exponential; shape (queries,)."""
        places = np.linspace(0.01, 0.99, 25)
        return np.mean([self.quantile(float(place)) for place in places], axis=0)

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

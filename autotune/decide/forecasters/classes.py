"""Curves of one study differ in kind: some stand still, some fall, some jump about. Forecasters
here have one predictive deviation for each of several classes; how common each class is follows
from the study's curves by expectation-maximisation, and which class a curve is of from its own
past.
"""

from __future__ import annotations

import math

import numpy as np

from autotune.plugins.search import FloatArray

EFFECTIVE = 4.0
"""A curve's own past counts for at most so many observations in telling its class: they are
not independent."""

STRENGTH = 3.0
"""The prior, under which all classes are equally common, counts for so many curves."""

_ESCAPE, _ESCAPE_FALL, _ESCAPE_DEVIATION = 0.02, 0.3, 0.4
"""Probability of a change like none before it, as of a curve that takes off late; its size."""

_ITERATIONS = 25
_LOG_ROOT = 0.5 * math.log(2 * math.pi)


def log_normal(error: FloatArray, deviation: FloatArray) -> FloatArray:
    """Log density of a centred normal."""
    return np.asarray(-0.5 * (error / deviation) ** 2 - np.log(deviation) - _LOG_ROOT)


def evidence(log_likelihood: FloatArray, known: FloatArray) -> FloatArray:
    """Of every curve under every class, (curves, classes), tempered to `EFFECTIVE`.

    Args:
        log_likelihood: (curves, points, classes); known: (curves, points), 0 or 1.
    """
    count = known.sum(axis=1)
    temper = EFFECTIVE / np.maximum(count, EFFECTIVE)
    return np.asarray((log_likelihood * known[..., None]).sum(axis=1) * temper[:, None])


def learned(evidences: FloatArray, strength: float = STRENGTH) -> FloatArray:
    """Log probability of every class, shape (classes,), given the curves' evidence."""
    classes = evidences.shape[1]
    log_weight = np.full(classes, -math.log(classes))
    for _ in range(_ITERATIONS):
        counts = posterior(log_weight, evidences).sum(axis=0) + strength / classes
        log_weight = np.log(counts / counts.sum())
    return log_weight


def posterior(log_weight: FloatArray, evidences: FloatArray) -> FloatArray:
    """Probability of every class for every curve, (curves, classes)."""
    log = log_weight + evidences
    weight = np.exp(log - log.max(axis=1, keepdims=True))
    return np.asarray(weight / weight.sum(axis=1, keepdims=True))


def with_escape(
    weight: FloatArray, mean: FloatArray, deviation: FloatArray, last: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Mixtures (queries, components) with one more component: what no class foresees.

    Args:
        last: about where each curve stands, (queries,).
    """
    one = np.ones((len(weight), 1))
    return (
        np.concatenate([(1.0 - _ESCAPE) * weight, _ESCAPE * one], axis=1),
        np.concatenate([mean, (last - _ESCAPE_FALL)[:, None]], axis=1),
        np.concatenate([deviation, _ESCAPE_DEVIATION * one], axis=1),
    )

"""What one learning curve says about its own future: a mixture of Gaussians in closed form.

Model, for shape g and noise s of the bank: ``z(x) = start * g(x) + end * (1 - g(x)) + noise``,
start and end Gaussian a priori and independent, noise of standard deviation s. Given shape and
noise, the posterior of (start, end) and the evidence are those of linear regression; the
posterior over (shape, noise) follows by Bayes' rule. Values are normalised
(`autotune.decide.scale`).

No bank holds the true curve, so a long prefix must not make one shape certain: old observations
weigh less, and all together no more than `EFFECTIVE` (a power posterior; Grünwald and van
Ommen 2017, Bayesian Analysis 12(4)). Both numbers were chosen for calibration on recorded curves
(`benchmarks/forecasters.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autotune.decide.forecasters.shapes import Bank
from autotune.plugins.search import FloatArray

NOISES = np.geomspace(0.003, 0.3, 6)
"""Standard deviations of the noise, in normalised units; equally likely at first."""

COMPONENTS = 64
"""A curve's posterior is kept as so many equally weighted components."""

EFFECTIVE = 4.0
"""Observations that a prefix counts for at most."""

TAIL = 6.0
"""A quarter of the components believe what other trials say with so many times the variance."""

_LEAST_WEIGHT = 0.05


@dataclass(frozen=True)
class Prior:
    """Gaussian beliefs about a curve's start and end, independent: means and variances."""

    start: float = 1.0
    start_variance: float = 1.0
    end: float = 0.6
    end_variance: float = 0.5


@dataclass(frozen=True)
class Components:
    """Gaussian posteriors of (start, end), one for each of some (shape, noise); arrays of shape
    (..., components), weighted equally but for `log_weight`.

    Args:
        shape: index into the bank.
        noise: standard deviation.
        start, end: posterior means.
        start_variance, covariance, end_variance: their second moments.
        log_weight: of each component, up to a constant.
    """

    shape: NDArray[np.intp]
    noise: FloatArray
    start: FloatArray
    end: FloatArray
    start_variance: FloatArray
    covariance: FloatArray
    end_variance: FloatArray
    log_weight: FloatArray


@dataclass(frozen=True)
class Fit:
    """A curve's posterior.

    Args:
        components: a sample of it.
        probability: of every (shape, noise), shape (shapes, noises).
        start, start_variance: mean and variance of the curve's start.
        end, end_variance: mean and variance of the curve's end.
    """

    components: Components
    probability: FloatArray
    start: float
    start_variance: float
    end: float
    end_variance: float


def weights(cells: NDArray[np.intp]) -> FloatArray:
    """How much each observation counts: by the cube of its place in the prefix, together at
    most `EFFECTIVE`. Shape as `cells`, which ascend."""
    weight = np.maximum((cells + 1) / (cells[-1] + 1), _LEAST_WEIGHT) ** 3
    return np.asarray(weight * min(1.0, EFFECTIVE / weight.sum()))


def fit(
    bank: Bank, cells: NDArray[np.intp], values: FloatArray, prior: Prior, log_prior: FloatArray
) -> Fit:
    """Posterior of a curve.

    Args:
        cells: indices of the observed cells, ascending, shape (observations,), not empty.
        values: normalised values there.
        log_prior: of every (shape, noise), shape (shapes, noises).
    """
    weight = weights(cells)
    g = bank.values[:, cells]
    h = 1.0 - g
    residual = values - prior.start * g - prior.end * h
    precision = 1.0 / NOISES**2
    # Sums over observations, for every shape; then for every (shape, noise).
    gg, gh, hh = (g * g) @ weight, (g * h) @ weight, (h * h) @ weight
    gr, hr = (g * residual) @ weight, (h * residual) @ weight
    rr = (residual * residual) @ weight
    start_precision = 1.0 / prior.start_variance + gg[:, None] * precision
    end_precision = 1.0 / prior.end_variance + hh[:, None] * precision
    cross = gh[:, None] * precision
    determinant = start_precision * end_precision - cross**2
    start_pull, end_pull = gr[:, None] * precision, hr[:, None] * precision
    start = (end_precision * start_pull - cross * end_pull) / determinant
    end = (start_precision * end_pull - cross * start_pull) / determinant
    log_evidence = 0.5 * (
        start * start_pull
        + end * end_pull
        - rr[:, None] * precision
        - np.log(determinant * prior.start_variance * prior.end_variance)
    ) - weight.sum() * np.log(NOISES)
    log_probability = log_evidence + log_prior
    probability = np.exp(log_probability - log_probability.max())
    probability /= probability.sum()
    chosen = _spread(probability)
    shape, noise = np.divmod(chosen, len(NOISES))
    start_mean, start_variance = prior.start + start.ravel(), (end_precision / determinant).ravel()
    end_mean, end_variance = prior.end + end.ravel(), (start_precision / determinant).ravel()
    components = Components(
        shape,
        NOISES[noise],
        start_mean[chosen],
        end_mean[chosen],
        start_variance[chosen],
        (-cross / determinant).ravel()[chosen],
        end_variance[chosen],
        np.zeros(COMPONENTS),
    )
    flat = probability.ravel()
    return Fit(
        components,
        probability,
        *_moments(flat, start_mean, start_variance),
        *_moments(flat, end_mean, end_variance),
    )


def _moments(weight: FloatArray, mean: FloatArray, variance: FloatArray) -> tuple[float, float]:
    """Mean and variance of a mixture."""
    centre = float(weight @ mean)
    return centre, max(float(weight @ (variance + (mean - centre) ** 2)), 1e-6)


def unobserved(prior: Prior, log_prior: FloatArray) -> Components:
    """The posterior of a curve of which nothing was observed."""
    chosen = _spread(np.exp(log_prior - log_prior.max()))
    shape, noise = np.divmod(chosen, len(NOISES))
    ones = np.ones(COMPONENTS)
    return Components(
        shape,
        NOISES[noise],
        prior.start * ones,
        prior.end * ones,
        prior.start_variance * ones,
        0.0 * ones,
        prior.end_variance * ones,
        0.0 * ones,
    )


def _spread(probability: FloatArray) -> NDArray[np.intp]:
    """`COMPONENTS` flat indices in proportion to `probability` (systematic resampling)."""
    cumulative = np.cumsum(probability)
    places = (np.arange(COMPONENTS) + 0.5) / COMPONENTS * cumulative[-1]
    return np.minimum(np.searchsorted(cumulative, places), probability.size - 1)


def told(components: Components, prior: Prior, end: FloatArray, variance: FloatArray) -> Components:
    """Components as they would be had the prior of the end been another Gaussian.

    Args:
        components: arrays of shape (queries, components).
        prior: that they were fitted with.
        end, variance: of the other prior, shape (queries,). A variance not below the fitted
            prior's tells nothing.
    """
    widened = variance[:, None] * np.where(np.arange(COMPONENTS) % 4 == 3, TAIL, 1.0)
    message = np.maximum(1.0 / widened - 1.0 / prior.end_variance, 1e-3)
    mean = end[:, None] + (end[:, None] - prior.end) / (message * prior.end_variance)
    total = components.end_variance + 1.0 / message
    gap = mean - components.end
    start_gain, end_gain = components.covariance / total, components.end_variance / total
    return Components(
        components.shape,
        components.noise,
        components.start + start_gain * gap,
        components.end + end_gain * gap,
        components.start_variance - start_gain * components.covariance,
        components.covariance - start_gain * components.end_variance,
        components.end_variance - end_gain * components.end_variance,
        components.log_weight - 0.5 * gap**2 / total - 0.5 * np.log(total),
    )


def predicted(
    bank: Bank, components: Components, cells: NDArray[np.intp]
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Weights, means and standard deviations of the value at one cell for each query, all of
    shape (queries, components). `components` has arrays of that shape, `cells` (queries,)."""
    g = bank.values[components.shape, cells[:, None]]
    h = 1.0 - g
    mean = g * components.start + h * components.end
    variance = (
        g * g * components.start_variance
        + 2 * g * h * components.covariance
        + h * h * components.end_variance
        + components.noise**2
    )
    weight = np.exp(components.log_weight - components.log_weight.max(axis=1, keepdims=True))
    weight /= weight.sum(axis=1, keepdims=True)
    return weight, mean, np.sqrt(np.maximum(variance, 1e-8))

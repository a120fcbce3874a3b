"""How the ends of curves depend on the configuration: a Gaussian process over the encoded space.

Each trial's curve gives an uncertain value of its end; the process smooths these over
configurations (the idea of freeze-thaw Bayesian optimisation, Swersky et al. 2014, 1406.3896).
Matérn 5/2 kernel with one length a dimension.

Extrapolations of short curves err together: if the families are wrong about how curves go on,
they are wrong for all of them, and a hundred short curves say no more about the level of the
ends than one. So an extrapolated end is the end plus a common bias times how far was
extrapolated. Short curves then rank configurations; long ones say where the level is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_solve, cholesky
from scipy.optimize import minimize

from autotune.plugins.search import FloatArray
from autotune.space import Categorical, Choice, Space

_STEPS = 20
_ROOT5 = math.sqrt(5.0)


class Embedding:
    """Configurations as points whose distances mean something to the kernel: numbers stay as
    encoded (inactive ones in the middle), categories become one-hot, inactive ones zero."""

    def __init__(self, space: Space) -> None:
        self._categories = [
            _count(slot.parameter) if isinstance(slot.parameter, Categorical | Choice) else 0
            for slot in space.slots
        ]
        self.dimension = [
            index for index, count in enumerate(self._categories) for _ in range(max(1, count))
        ]

    def __call__(self, encoded: FloatArray, mask: np.ndarray) -> FloatArray:
        """Points of shape (configurations, features) for encodings (configurations, slots)."""
        columns: list[FloatArray] = []
        for index, count in enumerate(self._categories):
            value, active = encoded[:, index], mask[:, index]
            if count:
                code = np.minimum((value * count).astype(int), count - 1)
                columns += [((code == option) & active) / math.sqrt(2.0) for option in range(count)]
            else:
                columns.append(np.where(active, value, 0.5))
        if not columns:
            return np.zeros((len(encoded), 0))
        return np.stack(columns, axis=1)


def _count(parameter: Categorical | Choice) -> int:
    return int(parameter.size)


@dataclass(frozen=True)
class Kernel:
    """Hyperparameters.

    Args:
        lengths: one a slot of the space.
        amplitude: variance of the smooth part.
        noise: variance of what configurations do not explain.
        bias: variance of the common bias of ends that are extrapolated from nothing.
        mean: of the process.
    """

    lengths: FloatArray
    amplitude: float = 0.15
    noise: float = 0.02
    bias: float = 0.1
    mean: float = 0.5

    def between(self, a: FloatArray, b: FloatArray, dimension: list[int]) -> FloatArray:
        """Covariances, shape (points of a, points of b)."""
        scale = self.lengths[dimension]
        return self.amplitude * _matern(_squared(a / scale, b / scale))[0]


def initial(slots: int) -> Kernel:
    """Before anything is known: lengths that leave neighbours correlated in any dimension."""
    return Kernel(np.full(slots, 0.5 * max(1.0, math.sqrt(slots / 3))))


def _squared(a: FloatArray, b: FloatArray) -> FloatArray:
    distance = (a * a).sum(1)[:, None] + (b * b).sum(1)[None, :] - 2.0 * a @ b.T
    return np.maximum(distance, 0.0)


def _matern(squared: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Correlation, and its derivative by the squared distance."""
    r = _ROOT5 * np.sqrt(squared)
    decay = np.exp(-r)
    return (1.0 + r + r * r / 3.0) * decay, -5.0 / 6.0 * (1.0 + r) * decay


@dataclass(frozen=True)
class Ends:
    """What is known about the ends of some trials' curves, arrays of shape (trials,) but for
    `points`, (trials, features).

    Args:
        values, variances: of the ends, each as its own curve tells it.
        distances: how far they are extrapolated, from 0 (not at all) to 1 (from nothing).
    """

    points: FloatArray
    values: FloatArray
    variances: FloatArray
    distances: FloatArray


@dataclass(frozen=True)
class Surface:
    """The process given the ends of some trials."""

    kernel: Kernel
    dimension: list[int]
    ends: Ends
    smooth: FloatArray
    factor: FloatArray
    alpha: FloatArray

    def elsewhere(self, points: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Mean and variance of the end at other configurations, each (points,)."""
        cross = self.kernel.between(points, self.ends.points, self.dimension)
        solved = cho_solve((self.factor, True), cross.T, check_finite=False)
        mean = self.kernel.mean + cross @ self.alpha
        variance = self.kernel.amplitude - (cross * solved.T).sum(1)
        return mean, np.maximum(variance, 1e-6) + self.kernel.noise

    def without_each(self) -> tuple[FloatArray, FloatArray]:
        """Mean and variance of every trial's end as the others tell it, each (trials,): from
        the inverse of a matrix without one row and column, as in Rasmussen and Williams 2006,
        section 5.4.2."""
        inverse = cho_solve((self.factor, True), np.eye(len(self.alpha)), check_finite=False)
        diagonal = np.diag(inverse)
        overlap = (self.smooth * inverse).sum(1)
        mean = self.kernel.mean + self.smooth @ self.alpha - overlap * self.alpha / diagonal
        explained = ((self.smooth @ inverse) * self.smooth).sum(1) - overlap**2 / diagonal
        return mean, np.maximum(np.diag(self.smooth) - explained, 1e-6) + self.kernel.noise


def given(kernel: Kernel, dimension: list[int], ends: Ends) -> Surface:
    """The process given what is known about some ends."""
    smooth = kernel.between(ends.points, ends.points, dimension)
    covariance = smooth + kernel.bias * np.outer(ends.distances, ends.distances)
    covariance[np.diag_indices(len(smooth))] += ends.variances + kernel.noise
    factor = cholesky(covariance, lower=True, check_finite=False)
    alpha = cho_solve((factor, True), ends.values - kernel.mean, check_finite=False)
    return Surface(kernel, dimension, ends, smooth, factor, alpha)


def learned(kernel: Kernel, dimension: list[int], ends: Ends) -> Kernel:
    """Hyperparameters of greatest posterior probability, by `_STEPS` of L-BFGS from `kernel`.

    Priors: log-normal, lengths about those of `initial` (factor e), amplitude about the
    variance of the values (factor 2), noise about a tenth of that (factor e), bias about a
    tenth of the scale (factor e). The mean is that of the ends, those extrapolated far less.
    """
    slots = len(kernel.lengths)
    trust = 1.0 / (ends.variances + 0.05 + ends.distances**2)
    mean = float(np.average(ends.values, weights=trust))
    spread = float(np.average((ends.values - mean) ** 2, weights=trust))
    spread = min(max(spread, 1e-3), 0.5)
    centre = np.log(np.concatenate([initial(slots).lengths, [spread, 0.1 * spread, 0.1]]))
    width = np.concatenate([np.full(slots, 1.0), [0.7, 1.0, 1.0]])
    select = np.zeros((len(dimension), slots))
    select[np.arange(len(dimension)), dimension] = 1.0
    residual = ends.values - mean
    identity = np.eye(len(residual))

    def objective(theta: FloatArray) -> tuple[float, FloatArray]:
        lengths = np.exp(theta[:slots])
        amplitude, noise, bias = np.exp(theta[slots:])
        scaled = ends.points / lengths[dimension]
        correlation, slope = _matern(_squared(scaled, scaled))
        covariance = amplitude * correlation + bias * np.outer(ends.distances, ends.distances)
        covariance[np.diag_indices(len(residual))] += ends.variances + noise
        factor = cholesky(covariance, lower=True, check_finite=False)
        alpha = cho_solve((factor, True), residual, check_finite=False)
        inverse = cho_solve((factor, True), identity, check_finite=False)
        away = (theta - centre) / width
        value = 0.5 * residual @ alpha + np.log(np.diag(factor)).sum() + 0.5 * away @ away
        sensitivity = inverse - np.outer(alpha, alpha)
        by_distance = sensitivity * slope * amplitude
        # Sum over pairs of by_distance * (difference in one feature)^2, for every feature.
        by_feature = 2.0 * (
            (by_distance.sum(1)[:, None] * scaled**2).sum(0)
            - (scaled * (by_distance @ scaled)).sum(0)
        )
        gradient = np.concatenate(
            [
                -(by_feature @ select),
                [
                    0.5 * amplitude * (sensitivity * correlation).sum(),
                    0.5 * noise * np.trace(sensitivity),
                    0.5 * bias * ends.distances @ sensitivity @ ends.distances,
                ],
            ]
        )
        return float(value), gradient + away / width

    start = np.log(np.concatenate([kernel.lengths, [kernel.amplitude, kernel.noise, kernel.bias]]))
    bounds = [(c - 4 * w, c + 4 * w) for c, w in zip(centre, width, strict=True)]
    start = np.clip(start, [low for low, _ in bounds], [high for _, high in bounds])
    found = minimize(
        objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": _STEPS}
    ).x
    amplitude, noise, bias = np.exp(found[slots:])
    return Kernel(np.exp(found[:slots]), float(amplitude), float(noise), float(bias), mean)

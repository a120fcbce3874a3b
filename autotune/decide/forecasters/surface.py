"""How the ends of curves depend on the configuration: a Gaussian process over the encoded space.

Each trial's curve gives an uncertain value of its end; the process smooths these over
configurations (the idea of freeze-thaw Bayesian optimisation, Swersky et al. 2014, 1406.3896).
Matérn 5/2 kernel with one length a dimension.
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
        mean: of the process.
    """

    lengths: FloatArray
    amplitude: float = 0.15
    noise: float = 0.02
    mean: float = 0.6

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
class Surface:
    """The process given the ends of some trials.

    Args:
        points: (trials, features); `values` and `variances`: of their ends, (trials,).
    """

    kernel: Kernel
    dimension: list[int]
    points: FloatArray
    alpha: FloatArray
    factor: FloatArray
    values: FloatArray
    variances: FloatArray

    def elsewhere(self, points: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Mean and variance of the end at other configurations, each (points,)."""
        cross = self.kernel.between(points, self.points, self.dimension)
        solved = cho_solve((self.factor, True), cross.T, check_finite=False)
        mean = self.kernel.mean + cross @ self.alpha
        variance = self.kernel.amplitude - (cross * solved.T).sum(1)
        return mean, np.maximum(variance, 1e-6) + self.kernel.noise

    def without_each(self) -> tuple[FloatArray, FloatArray]:
        """Mean and variance of every trial's end as the others tell it, each (trials,);
        Rasmussen and Williams 2006, equations 5.10 to 5.12."""
        inverse = cho_solve((self.factor, True), np.eye(len(self.points)), check_finite=False)
        diagonal = np.diag(inverse)
        mean = self.values - self.alpha / diagonal
        return mean, np.maximum(1.0 / diagonal - self.variances, self.kernel.noise)


def given(
    kernel: Kernel,
    dimension: list[int],
    points: FloatArray,
    values: FloatArray,
    variances: FloatArray,
) -> Surface:
    """The process given ends with these means and variances."""
    covariance = kernel.between(points, points, dimension)
    covariance[np.diag_indices(len(points))] += variances + kernel.noise
    factor = cholesky(covariance, lower=True, check_finite=False)
    alpha = cho_solve((factor, True), values - kernel.mean, check_finite=False)
    return Surface(kernel, dimension, points, alpha, factor, values, variances)


def learned(
    kernel: Kernel,
    dimension: list[int],
    points: FloatArray,
    values: FloatArray,
    variances: FloatArray,
) -> Kernel:
    """Hyperparameters of greatest posterior probability, by `_STEPS` of L-BFGS from `kernel`.

    Priors: log-normal, lengths about those of `initial` (factor e), amplitude about the
    variance of the values (factor 2), noise about a tenth of that (factor e).
    """
    slots = len(kernel.lengths)
    mean = float(np.average(values, weights=1.0 / (variances + 0.05)))
    spread = max(float(np.average((values - mean) ** 2, weights=1.0 / (variances + 0.05))), 1e-3)
    centre = np.log(np.concatenate([initial(slots).lengths, [spread, 0.1 * spread]]))
    width = np.concatenate([np.full(slots, 1.0), [0.7, 1.0]])
    select = np.zeros((len(dimension), slots))
    select[np.arange(len(dimension)), dimension] = 1.0
    residual = values - mean
    identity = np.eye(len(points))

    def objective(theta: FloatArray) -> tuple[float, FloatArray]:
        lengths, amplitude, noise = np.exp(theta[:-2]), math.exp(theta[-2]), math.exp(theta[-1])
        scaled = points / lengths[dimension]
        correlation, slope = _matern(_squared(scaled, scaled))
        covariance = amplitude * correlation
        covariance[np.diag_indices(len(points))] += variances + noise
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
                ],
            ]
        )
        return float(value), gradient + away / width

    start = np.log(np.concatenate([kernel.lengths, [kernel.amplitude, kernel.noise]]))
    bounds = [(c - 4 * w, c + 4 * w) for c, w in zip(centre, width, strict=True)]
    start = np.clip(start, [low for low, _ in bounds], [high for _, high in bounds])
    found = minimize(
        objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": _STEPS}
    ).x
    return Kernel(np.exp(found[:-2]), math.exp(found[-2]), math.exp(found[-1]), mean)

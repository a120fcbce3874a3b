"""The freeze-thaw Gaussian process (Swersky, Snoek and Adams 2014, arXiv 1406.3896): a curve is an
asymptote, a Gaussian process over configurations, plus a decay towards it, a Gaussian process
over time that is independent of every other curve's.

The kernel over time is the paper's, ``beta^alpha / (t + t' + beta)^alpha`` (its equation 5), a
mixture of exponential decays. Unlike the paper's, a decay has a mean, since curves fall:
``fall * (beta / (t + beta))^alpha``. Given the asymptotes curves are independent, so the work is
one small factorisation a curve and one of the number of trials, exactly (its section 3.2).

All values are normalised; time is a share of the horizon.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize

from autotune.plugins.search import FloatArray

ITERATIONS = 15
"""Steps of L-BFGS with which hyperparameters are learned."""

LEAST_DEVIATION = 1e-3
"""Of the noise: what is told apart on the normalised scale."""

_ROOT5 = math.sqrt(5.0)
_REACH = 3.0
_JITTER = 1e-9


@dataclass(frozen=True)
class Curves:
    """Observed curves, padded at the end of each row.

    Args:
        points: (trials, features), as embedded; time, values: (trials, points).
        known: (trials, points), 1 where observed and 0 where padded.
    """

    points: FloatArray
    time: FloatArray
    values: FloatArray
    known: FloatArray


@dataclass(frozen=True)
class Kernel:
    """Hyperparameters.

    Args:
        lengths: of the configurations' Matérn 5/2 kernel, one a slot of the space.
        amplitude, apart: variance of asymptotes that configurations explain, and the rest.
        decay: variance of the decay at time 0.
        alpha, beta: of the kernel over time.
        noise: variance of an observation.
        mean: of the asymptotes.
        fall: mean of the decay at time 0.
    """

    lengths: FloatArray
    amplitude: float = 0.1
    apart: float = 0.02
    decay: float = 0.5
    alpha: float = 1.0
    beta: float = 0.1
    noise: float = 1e-3
    mean: float = 0.5
    fall: float = 0.3

    def between(self, a: FloatArray, b: FloatArray, dimension: list[int]) -> FloatArray:
        """Covariance of asymptotes that configurations explain, (points of a, points of b)."""
        scaled_a, scaled_b = a / self.lengths[dimension], b / self.lengths[dimension]
        squared = (scaled_a**2).sum(1)[:, None] + (scaled_b**2).sum(1) - 2 * scaled_a @ scaled_b.T
        r = _ROOT5 * np.sqrt(np.maximum(squared, 0.0))
        return np.asarray(self.amplitude * (1.0 + r + r * r / 3.0) * np.exp(-r))

    def over_time(self, a: FloatArray, b: FloatArray) -> FloatArray:
        """Covariance of a decay, of the broadcast shape of a and b."""
        return np.asarray(self.decay * (self.beta / (a + b + self.beta)) ** self.alpha)

    def expected(self, time: FloatArray) -> FloatArray:
        """Mean of a decay at `time`."""
        return np.asarray(self.fall * (self.beta / (time + self.beta)) ** self.alpha)


def initial(slots: int) -> Kernel:
    """Before anything is known."""
    return Kernel(np.full(slots, 0.5 * max(1.0, math.sqrt(slots / 3))))


@dataclass(frozen=True)
class Factors:
    """Curves, each by itself: what it says about its asymptote and how it hangs together.

    Args:
        precision, pull: of the asymptote's likelihood, Λ and γ in the paper, (trials,).
        inverse: of every curve's covariance over time, (trials, points, points).
    """

    kernel: Kernel
    curves: Curves
    precision: FloatArray
    pull: FloatArray
    inverse: FloatArray

    @classmethod
    def of(cls, kernel: Kernel, curves: Curves) -> Factors:
        """Factorise every curve."""
        known = curves.known
        pairs = known[:, :, None] * known[:, None, :]
        covariance = pairs * kernel.over_time(curves.time[:, :, None], curves.time[:, None, :])
        diagonal = np.where(known > 0, kernel.noise, 1.0)
        covariance += diagonal[:, :, None] * np.eye(known.shape[1])
        inverse = np.linalg.inv(covariance) * pairs
        residual = known * (curves.values - kernel.mean - kernel.expected(curves.time))
        row = inverse.sum(axis=1)
        return cls(kernel, curves, row.sum(axis=1), (row * residual).sum(axis=1), inverse)

    def ahead(
        self, rows: np.ndarray, time: FloatArray, asymptote: FloatArray, variance: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """Mean and variance of curves `rows` at `time`, given what is believed of their
        asymptotes with their own curves included; all (queries,)."""
        curves, kernel = self.curves, self.kernel
        cross = curves.known[rows] * kernel.over_time(time[:, None], curves.time[rows])
        weight = (cross[:, None, :] @ self.inverse[rows])[:, 0]
        missing = 1.0 - weight.sum(axis=1)
        above = curves.values[rows] - kernel.expected(curves.time[rows])
        mean = kernel.expected(time) + (weight * above).sum(axis=1) + missing * asymptote
        own = kernel.over_time(time, time) - (weight * cross).sum(axis=1)
        return mean, np.maximum(own, 0.0) + missing**2 * variance + kernel.noise


@dataclass(frozen=True)
class Asymptotes:
    """What all curves together say about asymptotes."""

    factors: Factors
    dimension: list[int]
    root: FloatArray
    factor: FloatArray
    alpha: FloatArray
    mean: FloatArray
    variance: FloatArray

    @classmethod
    def of(cls, factors: Factors, dimension: list[int]) -> Asymptotes:
        """Condition on all curves."""
        kernel, points = factors.kernel, factors.curves.points
        prior = kernel.between(points, points, dimension)
        prior[np.diag_indices(len(prior))] += kernel.apart
        root = np.sqrt(np.maximum(factors.precision, _JITTER))
        mixed = root[:, None] * prior * root
        mixed[np.diag_indices(len(prior))] += 1.0
        factor = cholesky(mixed, lower=True, check_finite=False)
        pulled = prior @ factors.pull
        solved = root * cho_solve((factor, True), root * pulled, check_finite=False)
        alpha = factors.pull - solved
        half = solve_triangular(factor, root[:, None] * prior, lower=True, check_finite=False)
        variance = np.diag(prior) - (half * half).sum(axis=0)
        mean = kernel.mean + prior @ alpha
        return cls(factors, dimension, root, factor, alpha, mean, np.maximum(variance, _JITTER))

    def elsewhere(self, points: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Mean and variance of asymptotes of other configurations, each (points,)."""
        kernel = self.factors.kernel
        cross = kernel.between(points, self.factors.curves.points, self.dimension)
        half = solve_triangular(
            self.factor, self.root[:, None] * cross.T, lower=True, check_finite=False
        )
        variance = kernel.amplitude + kernel.apart - (half * half).sum(axis=0)
        return kernel.mean + cross @ self.alpha, np.maximum(variance, _JITTER)


def learned(curves: Curves, dimension: list[int], slots: int) -> Kernel:
    """Hyperparameters of greatest posterior probability, by `ITERATIONS` of L-BFGS.

    Priors are log-normal about `initial` (a factor of e, the noise two); the mean is normal
    about the median of the last values, the fall about `initial`.
    """
    start = initial(slots)
    known = curves.known.sum(axis=1).astype(int)
    last = curves.values[np.arange(len(known)), known - 1]
    centre = np.concatenate(
        [
            np.log(start.lengths),
            np.log([start.amplitude, start.apart, start.decay, start.alpha, start.beta]),
            [math.log(start.noise), float(np.median(last)), start.fall],
        ]
    )
    width = np.concatenate([np.full(slots + 5, 1.0), [2.0, 0.3, 0.3]])
    tensors = [torch.from_numpy(array) for array in _arrays(curves)]
    columns = torch.tensor(dimension, dtype=torch.long)
    middle, spread = torch.from_numpy(centre), torch.from_numpy(width)

    def objective(theta: FloatArray) -> tuple[float, FloatArray]:
        at = torch.from_numpy(theta.copy()).requires_grad_()
        value = _misfit(at, slots, columns, tensors) + 0.5 * (((at - middle) / spread) ** 2).sum()
        value.backward()
        assert at.grad is not None
        return value.item(), at.grad.numpy()

    limits = [(c - _REACH * w, c + _REACH * w) for c, w in zip(centre, width, strict=True)]
    limits[-3] = (2 * math.log(LEAST_DEVIATION), limits[-3][1])
    found = minimize(
        objective,
        centre,
        jac=True,
        method="L-BFGS-B",
        bounds=limits,
        options={"maxiter": ITERATIONS, "maxfun": ITERATIONS + 5},
    ).x
    return Kernel(np.exp(found[:slots]), *np.exp(found[slots:-2]).tolist(), *found[-2:].tolist())


def _arrays(curves: Curves) -> list[FloatArray]:
    return [curves.points, curves.time, curves.values, curves.known]


def _misfit(
    theta: torch.Tensor, slots: int, columns: torch.Tensor, tensors: list[torch.Tensor]
) -> torch.Tensor:
    """Negative log marginal likelihood, but for a constant."""
    points, time, values, known = tensors
    amplitude, apart, decay, alpha, beta, noise = theta[slots:-2].exp()
    mean, fall = theta[-2:]
    pairs = known[:, :, None] * known[:, None, :]
    both = time[:, :, None] + time[:, None, :]
    covariance = pairs * decay * (beta / (both + beta)) ** alpha
    covariance = covariance + torch.diag_embed(
        torch.where(known > 0, noise, torch.ones_like(noise))
    )
    factor = torch.linalg.cholesky(covariance)
    residual = known * (values - mean - fall * (beta / (time + beta)) ** alpha)
    right = torch.stack([known, residual], dim=2)
    white = torch.linalg.solve_triangular(factor, right, upper=False)
    precision = (white[..., 0] ** 2).sum(1)
    pull = (white[..., 0] * white[..., 1]).sum(1)
    scaled = points / theta[:slots].exp()[columns]
    squared = ((scaled**2).sum(1)[:, None] + (scaled**2).sum(1) - 2 * scaled @ scaled.T).clamp_min(
        0
    )
    # The root's slope is infinite at 0, where the kernel's is 0.
    r = _ROOT5 * (squared + 1e-12).sqrt()
    prior = amplitude * (1 + r + r * r / 3) * torch.exp(-r)
    eye = torch.eye(len(points), dtype=prior.dtype)
    prior = prior + apart * eye
    root = precision.clamp_min(_JITTER).sqrt()
    mixed = torch.linalg.cholesky(root[:, None] * prior * root + eye)
    pulled = prior @ pull
    explained = torch.linalg.solve_triangular(mixed, (root * pulled)[:, None], upper=False)
    quadratic = (white[..., 1] ** 2).sum() - pull @ pulled + (explained**2).sum()
    return (
        0.5 * quadratic
        + torch.diagonal(factor, dim1=1, dim2=2).log().sum()
        + torch.diagonal(mixed).log().sum()
    )

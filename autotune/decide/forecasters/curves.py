"""What one learning curve says about its own future: a mixture of Gaussians in closed form.

Model, for shape g and noise s of the bank: ``z(x) = start * g(x) + end * (1 - g(x)) + noise``,
start and end Gaussian a priori and independent, noise of standard deviation s. Given shape and
noise, the posterior of (start, end) and the evidence are those of linear regression; the
posterior over (shape, noise) follows by Bayes' rule. All values are normalised: about 0 is the
best of the study, about 1 where trials start.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autotune.decide.forecasters.shapes import Bank
from autotune.plugins.search import FloatArray

NOISES = np.geomspace(0.003, 0.3, 6)
COMPONENTS = 64


@dataclass(frozen=True)
class Prior:
    """Gaussian beliefs about a curve's start and end: means and variances."""

    start: float
    start_variance: float
    end: float
    end_variance: float


@dataclass(frozen=True)
class Components:
    """An equally weighted sample of a curve's posterior, arrays of shape (components,).

    Args:
        shape: index into the bank; `noise`: standard deviation.
        start, end: posterior means; the variances and the covariance are theirs.
    """

    shape: np.ndarray
    noise: FloatArray
    start: FloatArray
    end: FloatArray
    start_variance: FloatArray
    covariance: FloatArray
    end_variance: FloatArray

    def at(self, bank: Bank, cell: int) -> tuple[FloatArray, FloatArray]:
        pass

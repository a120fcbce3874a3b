"""Hyperparameters that several optimizers share, with the ranges and priors they share.

The ranges follow the tuning studies of Choi et al. (arXiv 1910.05446) and Schmidt et al.
(arXiv 2007.01547).
"""

from __future__ import annotations

from autotune.space import Float, Ordinal, Prior


def learning_rate(default: float = 1e-3, low: float = 1e-5, high: float = 1e-1) -> Float:
    """A rate on a log scale, the literature's default as its prior."""
    return Float(low, high, log=True, default=default, prior=Prior(default, "medium"))


def beta1(default: float = 0.9) -> Ordinal:
    """Factor of the running mean of gradients."""
    return Ordinal((0.8, 0.9, 0.95), default=default, prior=Prior(default, "high"))


def beta2(default: float = 0.999) -> Ordinal:
    """Factor of the running mean of squared gradients."""
    return Ordinal((0.95, 0.98, 0.99, 0.999), default=default, prior=Prior(default, "medium"))


def wide_beta2(default: float = 0.999) -> Ordinal:
    """The same for methods that were shown over more of it; ``1 - beta2`` on a log scale."""
    values = (0.9, 0.95, 0.99, 0.999, 0.9999)
    return Ordinal(values, default=default, prior=Prior(default, "medium"))


def epsilon(default: float = 1e-8, low: float = 1e-10, high: float = 1e-5) -> Float:
    """What is added to a divisor."""
    return Float(low, high, log=True, default=default, prior=Prior(default, "high"))


def weight_decay(default: float = 1e-2, low: float = 1e-5, high: float = 0.5) -> Float:
    """Decay of matrices and kernels."""
    return Float(low, high, log=True, default=default, prior=Prior(default, "medium"))


def momentum(default: float = 0.9) -> Ordinal:
    """Factor of the velocity; ``1 - momentum`` is spread on a log scale."""
    return Ordinal((0.5, 0.8, 0.9, 0.95, 0.98, 0.99), default=default, prior=Prior(default, "high"))

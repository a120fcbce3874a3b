"""The four curve families of the prior, in closed form.

Source: Rakotoarison et al. 2024, In-Context Freeze-Thaw Bayesian Optimization for Hyperparameter
Optimization (arXiv 2404.16795), appendix on the prior: a curve is a weighted sum of a power law,
an exponential, a logarithmic and a Hill curve, each from the start value Y0 towards Yinf; each
is reached to 1/PREC at its saturation point.
"""

from __future__ import annotations

import torch
from torch import Tensor

FAMILIES = 4

_TINY = 1e-9


def remaining(x: Tensor, saturation: Tensor, alpha: Tensor, precision: Tensor) -> Tensor:
    """The share (Yinf - y) / (Yinf - Y0) that is left at x >= 0 of each family.

    Args:
        x: times, shape (points, 4).
        saturation: where 1/precision is left, shape (points, 4).
        alpha: shapes, (points, 4), in the order power, exponential, logarithmic, Hill.
        precision: (points, 4).

    Returns:
        Shape (points, 4), 1 at x = 0.
    """
    share = x / saturation
    log_precision = precision.log()
    power_alpha, exponential_alpha, log_alpha, hill_alpha = alpha.unbind(-1)
    power = ((log_precision[..., 0] / power_alpha).expm1() * share[..., 0]).log1p() * -power_alpha
    exponential = -log_precision[..., 1] * share[..., 1].pow(exponential_alpha)
    base = log_alpha.log()
    # alpha^PREC overflows a float32 at large alpha or PREC: its logarithm does not.
    reach = (base * (precision[..., 2] - 1)).clamp(max=80.0).expm1()
    logarithmic = base / (base + (reach * share[..., 2]).log1p())
    hill = 1.0 / (share[..., 3].pow(hill_alpha) * (precision[..., 3] - 1) + 1)
    return torch.stack([power.exp(), exponential.exp(), logarithmic, hill], dim=-1)


def value(
    x: Tensor,
    start: Tensor,
    end: Tensor,
    weight: Tensor,
    saturation: Tensor,
    alpha: Tensor,
    precision: Tensor,
    after: Tensor,
) -> Tensor:
    """Values of curves, without noise.

    Beyond its saturation point a family's time runs at the rate `after`: below 0 the curve
    turns down again, and where its time would become negative it falls towards 0 along an
    exponential that continues its slope at 0.

    Args:
        x: times, shape (points,).
        start, end: Y0 and Yinf, shape (points,).
        weight, saturation, alpha, precision, after: of the families, shape (points, 4).

    Returns:
        Shape (points,).
    """
    time = x[:, None]
    time = torch.where(time < saturation, time, after * (time - saturation) + saturation)
    gap = (end - start)[:, None]
    forward = end[:, None] - gap * remaining(time.clamp(min=0.0), saturation, alpha, precision)
    slope = (
        gap
        * (1.0 - remaining(saturation * 1e-4, saturation, alpha, precision))
        / (saturation * 1e-4)
    )
    level = start[:, None].clamp(min=_TINY)
    backward = level * (time.clamp(max=0.0) * (slope + _TINY) / level).exp()
    return (weight * torch.where(time > 0, forward, backward)).sum(-1)

"""The projection that AdamP and SGDP share: away from the direction of the weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ._foreach import Lists

EPSILON = 1e-8
"""Added to norms, as in the authors' code."""


def project(lists: Lists, updates: list[Tensor], decay_by: float = 1.0) -> None:
    """Decay the weights, take the radial part out of `updates` (in place) where weights seem to
    be scale-invariant, and decay those by ``decay_ratio`` only.

    Equation 11 of the paper: a tensor's output channels, or else the tensor as a whole, are
    taken for scale-invariant if the largest ``|cos(w, g)|`` is below ``delta / sqrt(dim w)``.
    Nothing waits for the device to know.

    Args:
        lists: of a group with ``lr``, ``weight_decay``, ``delta`` and ``decay_ratio``.
        updates: the steps about to be taken, before the rate.
        decay_by: multiplies the decay.
    """
    group = lists.group
    decay = group["lr"] * group["weight_decay"] * decay_by
    for weight, grad, update in zip(lists.weights, lists.grads, updates, strict=True):
        if weight.ndim < 2:
            weight.mul_(1 - decay)
            continue
        radial, ratio = _radial(weight, grad, update, group)
        update.addcmul_(weight, radial, value=-1)
        if decay:
            weight.mul_(1 - decay * ratio)


def _radial(
    weight: Tensor, grad: Tensor, update: Tensor, group: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """By how much of each channel's weights its update is to be reduced (zero where it may
    stay), and the factor of the tensor's decay."""
    rows, slopes, steps = weight.flatten(1), grad.flatten(1), update.flatten(1)
    with_slope, with_step = (rows * slopes).sum(1), (rows * steps).sum(1)
    size, slope = rows.norm(dim=1), slopes.norm(dim=1)
    cosines = with_slope.abs() / (size * slope + EPSILON)
    by_channel = cosines.max() < group["delta"] / math.sqrt(rows.shape[1])
    whole = size.norm()
    cosine = with_slope.sum().abs() / (whole * slope.norm() + EPSILON)
    by_tensor = cosine < group["delta"] / math.sqrt(weight.numel())
    of_channel = with_step / (size + EPSILON).square()
    of_tensor = with_step.sum() / (whole + EPSILON).square()
    nothing = torch.zeros_like(of_channel)
    radial = torch.where(by_channel, of_channel, torch.where(by_tensor, of_tensor, nothing))
    ratio = torch.where(by_channel | by_tensor, group["decay_ratio"], 1.0)
    return radial.view(-1, *[1] * (weight.ndim - 1)), ratio.to(weight.dtype)

"""The step that AdamP and SGDP share: away from the direction of scale-invariant weights."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ._foreach import Lists, Tensors, pieces

EPSILON = 1e-8
"""Added to norms, as in the authors' code."""


def projected_step(
    lists: Lists,
    advance: Callable[[Lists], None],
    direction: Callable[[Lists], Tensors],
    decay_by: float = 1.0,
) -> None:
    """``w -= lr * weight_decay * decay_by * w``; ``w -= lr * u``, where weights seem to be
    scale-invariant without the part of ``u`` along them and with the decay times
    ``decay_ratio``.

    Equation 11 of the paper: a tensor's output channels, or else the tensor as a whole, are
    taken for scale-invariant if the largest ``|cos(w, g)|`` is below ``delta / sqrt(dim w)``.
    Nothing waits for the device to know.

    Args:
        lists: of a group with ``lr``, ``weight_decay``, ``delta`` and ``decay_ratio``.
        advance: takes the gradients of pieces into their state.
        direction: from the state of pieces, the steps ``u`` as new tensors.
        decay_by: multiplies the decay.
    """
    found: dict[int, list[Tensor]] = defaultdict(list)
    for part in pieces(lists):
        advance(part)
        updates = direction(part)
        for owner, weight, grad, update in zip(
            part.owners, part.weights, part.grads, updates, strict=True
        ):
            if weight.ndim > 1:
                found[owner].append(_products(weight, grad, update))
    group = lists.group
    radial, ratio = {}, {}
    for owner, products in found.items():
        size = lists.weights[owner].numel()
        radial[owner], ratio[owner] = _invariance(torch.cat(products, 1), size, group)
    decay = group["lr"] * group["weight_decay"] * decay_by
    rows: dict[int, int] = defaultdict(int)
    for part in pieces(lists):
        for owner, weight, update in zip(part.owners, part.weights, direction(part), strict=True):
            shrink = decay
            if owner in radial:
                first = rows[owner]
                rows[owner] += len(weight)
                along = radial[owner][first : rows[owner]].view(-1, *[1] * (weight.ndim - 1))
                update.addcmul_(weight, along, value=-1)
                shrink = decay * ratio[owner]
            if decay:
                weight.mul_(1 - shrink)
            weight.add_(update, alpha=-group["lr"])


def _products(weight: Tensor, grad: Tensor, update: Tensor) -> Tensor:
    """Of each channel ``<w, g>``, ``<w, u>``, ``|w|^2`` and ``|g|^2``: shape (4, channels)."""
    rows, slopes, steps = weight.flatten(1), grad.flatten(1), update.flatten(1)
    crossed = [(rows * other).sum(1) for other in (slopes, steps)]
    # A norm allocates nothing, and so is three times as fast as a product and its sum.
    return torch.stack([*crossed, *(own.norm(dim=1).square_() for own in (rows, slopes))])


def _invariance(products: Tensor, size: int, group: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """By how much of each channel's weights its update is to be reduced (zero where it may
    stay), and the factor of the tensor's decay."""
    with_slope, with_step, squares, of_slope = products.unbind()
    channels = len(squares)
    norm, slope = squares.sqrt(), of_slope.sqrt()
    cosines = with_slope.abs() / (norm * slope + EPSILON)
    by_channel = cosines.max() < group["delta"] / math.sqrt(size / channels)
    whole = squares.sum().sqrt()
    cosine = with_slope.sum().abs() / (whole * of_slope.sum().sqrt() + EPSILON)
    by_tensor = cosine < group["delta"] / math.sqrt(size)
    of_channel = with_step / (norm + EPSILON).square()
    of_tensor = with_step.sum() / (whole + EPSILON).square()
    nothing = torch.zeros_like(of_channel)
    radial = torch.where(by_channel, of_channel, torch.where(by_tensor, of_tensor, nothing))
    reduced, full = squares.new_tensor([group["decay_ratio"], 1.0])
    return radial, torch.where(by_channel | by_tensor, reduced, full)

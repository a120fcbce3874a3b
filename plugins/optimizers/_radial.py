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
    step: Callable[[Lists, float], None],
    advance: Callable[[Lists], Tensors],
    direction: Callable[[Lists], Tensors],
    decay_by: float = 1.0,
) -> None:
    """``w -= lr * weight_decay * decay_by * w``; ``w -= lr * u``, where weights seem to be
    scale-invariant without the part of ``u`` along them and with the decay times
    ``decay_ratio``.

    Equation 11 of the paper: a tensor's output channels, or else the tensor as a whole, are
    taken for scale-invariant if the largest ``|cos(w, g)|`` is below ``delta / sqrt(dim w)``.
    All tensors are judged first, which waits for the device once, so that those that are not,
    most in a network without normalisation, need no more than the plain step.

    Args:
        lists: of a group with ``lr``, ``weight_decay``, ``delta`` and ``decay_ratio``.
        step: takes pieces' gradients into their state and steps by ``u``, decaying by so much.
        advance: takes pieces' gradients into their state and returns ``u`` as new tensors.
        direction: ``u`` again, from the state.
        decay_by: multiplies the decay.
    """
    group = lists.group
    by_channel, by_tensor = _invariant(lists)
    decay = group["lr"] * group["weight_decay"] * decay_by
    along: dict[int, list[Tensor]] = defaultdict(list)
    for part in pieces(lists):
        plain = [owner not in by_channel and owner not in by_tensor for owner in part.owners]
        if all(plain):
            step(part, decay)
            continue
        for owner, weight, update in zip(part.owners, part.weights, advance(part), strict=True):
            if owner in by_tensor:
                along[owner].append(torch.stack([(weight * update).sum(), weight.square().sum()]))
                continue
            if owner in by_channel:
                _project_channels(weight, update)
            shrink = decay * group["decay_ratio"] if owner in by_channel else decay
            weight.mul_(1 - shrink).add_(update, alpha=-group["lr"])
    if not along:
        return
    radial = {}
    for owner, products in along.items():
        with_step, squares = torch.stack(products).sum(0)
        radial[owner] = with_step / (squares.sqrt() + EPSILON).square()
    shrink = decay * group["decay_ratio"]
    for part in pieces(lists):
        if not any(owner in radial for owner in part.owners):
            continue
        for owner, weight, update in zip(part.owners, part.weights, direction(part), strict=True):
            if owner in radial:
                update.addcmul_(weight, radial[owner], value=-1)
                weight.mul_(1 - shrink).add_(update, alpha=-group["lr"])


def _project_channels(weight: Tensor, update: Tensor) -> None:
    """Take from the update of each channel its part along the weights."""
    rows, steps = weight.flatten(1), update.flatten(1)
    radial = (rows * steps).sum(1) / (rows.norm(dim=1) + EPSILON).square()
    update.addcmul_(weight, radial.view(-1, *[1] * (weight.ndim - 1)), value=-1)


def _invariant(lists: Lists) -> tuple[set[int], set[int]]:
    """The tensors that seem to be scale-invariant channel by channel, and those as a whole."""
    found: dict[int, list[Tensor]] = defaultdict(list)
    for part in pieces(lists):
        for owner, weight, grad in zip(part.owners, part.weights, part.grads, strict=True):
            if weight.ndim > 1:
                found[owner].append(_products(weight, grad))
    if not found:
        return set(), set()
    judged = torch.stack(
        [
            _judge(torch.cat(products, 1), lists.weights[owner].numel(), lists.group)
            for owner, products in found.items()
        ]
    ).tolist()
    by_channel = {owner for owner, (channels, _) in zip(found, judged, strict=True) if channels}
    by_tensor = {owner for owner, (_, whole) in zip(found, judged, strict=True) if whole}
    return by_channel, by_tensor - by_channel


def _products(weight: Tensor, grad: Tensor) -> Tensor:
    """Of each channel ``<w, g>``, ``|w|^2`` and ``|g|^2``: shape (3, channels)."""
    rows, slopes = weight.flatten(1), grad.flatten(1)
    # A norm allocates nothing, and so is three times as fast as a product and its sum.
    squares = (own.norm(dim=1).square_() for own in (rows, slopes))
    return torch.stack([(rows * slopes).sum(1), *squares])


def _judge(products: Tensor, size: int, group: dict[str, Any]) -> Tensor:
    """Whether channels, and whether the whole, are taken for scale-invariant: shape (2,)."""
    crossed, squares, slopes = products.unbind()
    cosines = crossed.abs() / (squares.sqrt() * slopes.sqrt() + EPSILON)
    limit = group["delta"] / math.sqrt(size / len(squares))
    norms = squares.sum().sqrt() * slopes.sum().sqrt()
    cosine = crossed.sum().abs() / (norms + EPSILON)
    return torch.stack([cosines.max() < limit, cosine < group["delta"] / math.sqrt(size)])

"""Momentum descent, list-wise, for which torch has a kernel of one pass."""

from __future__ import annotations

import torch

from ._foreach import Lists, can_fuse


def momentum_step(
    lists: Lists,
    rate: float,
    momentum: float,
    weight_decay: float = 0.0,
    nesterov: bool = False,
) -> None:
    """``v = momentum * v + g`` with ``g`` the gradient and ``weight_decay * w``; ``w -= rate *
    v``, with `nesterov` ``w -= rate * (g + momentum * v)``. On a CPU by torch's fused kernel,
    which passes over the memory once."""
    velocities = lists.state["velocity"]
    if can_fuse(lists) and momentum != 0:  # without momentum the kernel keeps no velocity
        torch._fused_sgd_(
            lists.weights,
            list(lists.grads),
            velocities,
            weight_decay=weight_decay,
            momentum=momentum,
            lr=rate,
            dampening=0.0,
            nesterov=nesterov,
            maximize=False,
            is_first_step=False,
        )
        return
    updates = torch._foreach_add(lists.grads, lists.weights, alpha=weight_decay)
    torch._foreach_mul_(velocities, momentum)
    torch._foreach_add_(velocities, updates)
    if nesterov:
        torch._foreach_add_(updates, velocities, alpha=momentum)
    torch._foreach_add_(lists.weights, updates if nesterov else velocities, alpha=-rate)

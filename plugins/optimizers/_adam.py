"""The two running averages that Adam's relatives share, list-wise."""

from __future__ import annotations

import torch

from ._foreach import Lists, Tensors

MOMENTS = ("mean", "square")


def update_moments(lists: Lists) -> None:
    """``m = beta1 * m + (1 - beta1) * g`` and ``v = beta2 * v + (1 - beta2) * g^2``."""
    beta1, beta2 = lists.group["betas"][:2]
    torch._foreach_lerp_(lists.state["mean"], lists.grads, 1 - beta1)
    update_squares(lists.state["square"], lists.grads, beta2)


def update_squares(squares: Tensors, values: Tensors, beta: float) -> None:
    """``v = beta * v + (1 - beta) * x^2``."""
    torch._foreach_mul_(squares, beta)
    torch._foreach_addcmul_(squares, values, values, value=1 - beta)


def divisors(squares: Tensors, correction: float, eps: float) -> Tensors:
    """``sqrt(v / correction) + eps``, as new tensors."""
    roots = torch._foreach_sqrt(squares)
    torch._foreach_div_(roots, correction**0.5)
    torch._foreach_add_(roots, eps)
    return roots


def adam_directions(lists: Lists) -> Tensors:
    """``m_hat / (sqrt(v_hat) + eps)``, as new tensors."""
    beta1, beta2 = lists.group["betas"]
    of_mean, of_square = 1 - beta1**lists.step, 1 - beta2**lists.step
    # Both corrections in the divisor: one pass less.
    roots = torch._foreach_sqrt(lists.state["square"])
    torch._foreach_mul_(roots, of_mean / of_square**0.5)
    torch._foreach_add_(roots, lists.group["eps"] * of_mean)
    return torch._foreach_div(lists.state["mean"], roots)


def decay(lists: Lists, factor: float = 1.0) -> None:
    """Decoupled weight decay: ``w -= lr * weight_decay * factor * w``."""
    if lists.group["weight_decay"] != 0:
        shrink = lists.group["lr"] * lists.group["weight_decay"] * factor
        torch._foreach_mul_(lists.weights, 1 - shrink)

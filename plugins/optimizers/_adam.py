"""The two running averages that Adam's relatives share, list-wise; and Adam's whole step, for
which torch has a kernel of one pass."""

from __future__ import annotations

from dataclasses import replace

import torch

from ._foreach import Lists, Tensors, can_fuse

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


def adamw_step(
    lists: Lists, rate: float, weight_decay: float = 0.0, eps: float | None = None
) -> None:
    """AdamW's step, averages included: `update_moments`, ``w -= rate * weight_decay * w`` and
    ``w -= rate * m_hat / (sqrt(v_hat) + eps)``. On a CPU by torch's fused kernel, which passes
    over the memory once; `eps` is the group's unless given."""
    group, state = lists.group, lists.state
    eps = group["eps"] if eps is None else eps
    if can_fuse(lists):
        torch._fused_adamw_(
            lists.weights,
            list(lists.grads),
            state["mean"],
            state["square"],
            [],
            [torch.tensor(float(lists.step))] * len(lists.weights),
            lr=rate,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=weight_decay,
            eps=eps,
            amsgrad=False,
            maximize=False,
        )
        return
    update_moments(lists)
    if weight_decay != 0:
        torch._foreach_mul_(lists.weights, 1 - rate * weight_decay)
    directions = adam_directions(replace(lists, group={**group, "eps": eps}))
    torch._foreach_add_(lists.weights, directions, alpha=-rate)


def new_directions(lists: Lists) -> Tensors:
    """`update_moments`, and the `adam_directions` that follow, as new tensors."""
    if not can_fuse(lists):
        update_moments(lists)
        return adam_directions(lists)
    directions = [torch.empty_like(weight) for weight in lists.weights]
    torch._foreach_zero_(directions)
    adamw_step(replace(lists, weights=directions), rate=-1.0)
    return directions


def decay(lists: Lists, factor: float = 1.0) -> None:
    """Decoupled weight decay: ``w -= lr * weight_decay * factor * w``."""
    if lists.group["weight_decay"] != 0:
        shrink = lists.group["lr"] * lists.group["weight_decay"] * factor
        torch._foreach_mul_(lists.weights, 1 - shrink)

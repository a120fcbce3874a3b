"""SANIA: Polyak's step size under a preconditioner without the square root."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from autotune.plugins import Optimizer
from autotune.space import Choice, Float, Prior, Space

from . import _spaces
from ._adam import update_squares
from ._curvature import evaluate
from ._foreach import ListOptimizer, Lists, Tensors, dots, overall, pieces
from ._groups import parameter_groups


class SANIAOptimizer(ListOptimizer):
    """The paper's equations for a diagonal preconditioner B and the optimal loss 0.

    ``s = B^-1 g``; ``q = <g, s>`` over all parameters; ``size = 1 - sqrt(1 - 2 f / q)`` if
    ``2 f <= q`` else 1, with the batch's loss f; ``w -= lr * size * s``.

    B is the larger of ``eps`` and the sum (AdaGrad), or bias-corrected running mean with factor
    ``beta2`` (Adam), of squared gradients; with ``root`` the square root of that.

    ``step(closure)``: the gradients are there, and the closure returns the loss.
    """

    title = "SANIA"
    buffers = ("squares",)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; returns the loss.

        Raises:
            RuntimeError: there is no closure.
        """
        loss = float(evaluate(closure, self.title))
        everything = [lists for group in self.param_groups for lists in self._lists(group)]
        measured = [_gather(part) for lists in everything for part in pieces(lists)]
        size = polyak_size(loss, overall(measured))
        for lists in everything:
            for part in pieces(lists):
                rate = -float(part.group["lr"]) * size
                torch._foreach_addcdiv_(part.weights, part.grads, _diagonals(part), rate)
        return loss


def _gather(lists: Lists) -> Tensor:
    """Take the gradients into B; their part of ``q``."""
    squares, beta2 = lists.state["squares"], lists.group["beta2"]
    if beta2 is None:
        torch._foreach_addcmul_(squares, lists.grads, lists.grads)
    else:
        update_squares(squares, lists.grads, beta2)
    directions = torch._foreach_div(lists.grads, _diagonals(lists))
    return torch.stack(dots(lists.grads, directions)).sum(dtype=torch.float64)


def _diagonals(lists: Lists) -> Tensors:
    """B, as new tensors."""
    group, squares = lists.group, lists.state["squares"]
    if group["beta2"] is None:
        diagonals = torch._foreach_clamp_min(squares, group["eps"])
    else:
        diagonals = torch._foreach_div(squares, 1 - group["beta2"] ** lists.step)
        torch._foreach_clamp_min_(diagonals, group["eps"])
    if group["root"]:
        torch._foreach_sqrt_(diagonals)
    return diagonals


def polyak_size(loss: float, product: float) -> float:
    """``1 - sqrt(1 - 2 f / q)``, at most 1; 0 at or below the optimal loss of 0, where there is
    nothing to gain (the formula would step uphill)."""
    if loss <= 0:
        return 0.0
    if 2 * loss > product:
        return 1.0
    share = 2.0 * loss / product
    return share / (1.0 + (1.0 - share) ** 0.5)  # the same, without cancellation


class SANIA(Optimizer):
    """Needs no learning rate where the loss can reach zero, and is invariant to its scaling.

    The variants are the paper's AdaGrad-SQR and Adam-SQR, without the square root, and AdaGrad and
    Adam with it; Hutchinson's diagonal is `sania_hutchinson`. The Newton step by conjugate
    gradients, which need a convex loss, is not offered. The paper adds epsilon to B; the author
    code takes ``max(B, epsilon)`` with 0.1, and is followed. The step size is taken over all
    parameters together, as in the paper (in the code by group). ``learning_rate`` multiplies the
    Polyak step, so that schedules act; 1 is the paper's. There is no decay: the loss is assumed to
    fall to zero by itself.
    """

    name: ClassVar[str] = "sania"
    summary: ClassVar[str] = "Polyak step sizes with AdaGrad-SQR or Adam-SQR preconditioning."
    reference: ClassVar[str] = (
        "Abdukhakimov et al.: SANIA: Polyak-type Optimization Framework Leads to Scale Invariant "
        "Stochastic Algorithms, 2023, arXiv 2312.17369; code: github.com/fxrshed/SANIA"
    )
    needs: ClassVar[frozenset[str]] = frozenset({"loss"})
    carries_over: ClassVar[bool] = False

    @classmethod
    def space(cls) -> Space:
        """Preconditioner, multiplier of the step, floor of the preconditioner."""
        adam = Space({"beta2": _spaces.wide_beta2()})
        variants = {"adam_sqr": adam, "adagrad_sqr": Space({}), "adam": adam, "adagrad": Space({})}
        return Space(
            {
                "variant": Choice(variants, default="adam_sqr"),
                "learning_rate": Float(0.05, 1.0, log=True, default=1.0, prior=Prior(1.0, "high")),
                "epsilon": Float(1e-8, 0.1, log=True, default=0.1, prior=Prior(0.1, "low")),
            }
        )

    def build(self, named_parameters: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """A `SANIAOptimizer` over all parameters."""
        variant = self.configuration["variant"]
        return SANIAOptimizer(
            parameter_groups(named_parameters, weight_decay=0.0),
            {
                "lr": self.configuration["learning_rate"],
                "beta2": variant["beta2"] if variant["name"].startswith("adam") else None,
                "root": not variant["name"].endswith("_sqr"),
                "eps": self.configuration["epsilon"],
            },
        )

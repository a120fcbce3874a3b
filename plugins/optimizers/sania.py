"""SANIA: Polyak's step size under a preconditioner without the square root."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from autotune.plugins import Optimizer
from autotune.space import Choice, Float, Prior, Space

from . import _spaces
from ._curvature import evaluate
from ._foreach import parameters_with_gradients
from ._groups import parameter_groups
from ._matrix import TypedStateOptimizer, add_, step_count, wide_gradients


class SANIAOptimizer(TypedStateOptimizer):
    """The paper's equations for a diagonal preconditioner B and the optimal loss 0.

    ``s = B^-1 g``; ``q = <g, s>`` over all parameters; ``size = 1 - sqrt(1 - 2 f / q)`` if
    ``2 f <= q`` else 1, with the batch's loss f; ``w -= lr * size * s``.

    B is the larger of ``eps`` and the sum (AdaGrad), or bias-corrected running mean with factor
    ``beta2`` (Adam), of squared gradients; with ``root`` the square root of that.

    ``step(closure)``: the gradients are there, and the closure returns the loss.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; returns the loss.

        Raises:
            RuntimeError: there is no closure.
        """
        loss = float(evaluate(closure, "SANIA"))
        lists = [
            (group, parameters)
            for group in self.param_groups
            for parameters in parameters_with_gradients(group, "SANIA")
        ]
        directions = []
        product = 0.0
        for group, parameters in lists:
            slopes = wide_gradients(parameters)
            directions.append(self._preconditioned(group, parameters, slopes))
            terms = torch._foreach_mul(slopes, directions[-1])
            product += sum(term.sum(dtype=torch.float64).item() for term in terms)
        size = polyak_size(loss, product)
        for (group, parameters), direction in zip(lists, directions, strict=True):
            add_(parameters, direction, -group["lr"] * size)
        return loss

    def _preconditioned(
        self, group: dict[str, Any], parameters: list[Tensor], slopes: list[Tensor]
    ) -> list[Tensor]:
        states = [self.state[parameter] for parameter in parameters]
        for state, slope in zip(states, slopes, strict=True):
            if not state:
                state["step"] = step_count()
                state["squares"] = torch.zeros_like(slope)
        torch._foreach_add_([state["step"] for state in states], 1)
        squares = [state["squares"] for state in states]
        beta2 = group["beta2"]
        if beta2 is None:
            torch._foreach_addcmul_(squares, slopes, slopes)
            diagonals = list(torch._foreach_clamp_min(squares, group["eps"]))
        else:
            torch._foreach_mul_(squares, beta2)
            torch._foreach_addcmul_(squares, slopes, slopes, value=1 - beta2)
            corrections = [1 - beta2 ** state["step"].item() for state in states]
            diagonals = list(torch._foreach_div(squares, corrections))
            torch._foreach_clamp_min_(diagonals, group["eps"])
        if group["root"]:
            torch._foreach_sqrt_(diagonals)
        return list(torch._foreach_div(slopes, diagonals))


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

    The variants are the paper's AdaGrad-SQR and Adam-SQR, without the square root, and AdaGrad
    and Adam with it. Paper and author code agree but for the floor: the code takes
    ``max(B, epsilon)`` with 0.1, as here. The step size is taken over all parameters together
    (in the code by group). ``learning_rate`` multiplies the Polyak step, so that schedules act;
    1 is the paper's. There is no decay: the loss is assumed to fall to zero by itself.
    """

    name: ClassVar[str] = "sania"
    summary: ClassVar[str] = "Polyak step sizes with AdaGrad-SQR or Adam-SQR preconditioning."
    reference: ClassVar[str] = (
        "Abdukhakimov et al.: SANIA: Polyak-type Optimization Framework Leads to Scale Invariant "
        "Stochastic Algorithms, 2023, arXiv 2312.17369; code: github.com/fxrshed/SANIA"
    )
    needs: ClassVar[frozenset[str]] = frozenset({"loss"})

    @classmethod
    def space(cls) -> Space:
        """Preconditioner, multiplier of the step, floor of the preconditioner."""
        adam = Space({"beta2": _spaces.beta2()})
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

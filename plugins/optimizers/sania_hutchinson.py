"""SANIA with Hutchinson's estimate of the Hessian's diagonal as its preconditioner."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from autotune.plugins import Optimizer, StepCost
from autotune.space import Float, Ordinal, Prior, Space

from ._cost import Shapes
from ._curvature import HutchinsonOptimizer, evaluate
from ._foreach import overall
from ._groups import parameter_groups
from ._matrix import wide
from .sania import polyak_size


class HutchinsonSANIAOptimizer(HutchinsonOptimizer):
    """The paper's equations for the optimal loss 0 and ``B = max(|D|, eps)``.

    ``D = beta2 * D + (1 - beta2) * z * (H z)`` with random signs z, begun with the first
    estimate; ``s = B^-1 g``; ``q = <g, s>`` over all parameters; ``size = 1 - sqrt(1 - 2 f / q)``
    if ``2 f <= q`` else 1, with the batch's loss f; ``w -= lr * size * s``.

    ``step(closure)``: the gradients are there with their graph, the closure returns the loss.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; returns the loss.

        Raises:
            RuntimeError: there is no closure.
        """
        loss = float(evaluate(closure, "SANIA"))
        pairs = [(g, p) for g in self.param_groups for p in g["params"] if p.grad is not None]
        parameters = [parameter for _, parameter in pairs]
        if not parameters:
            return loss
        graphs = [parameter.grad for parameter in parameters]
        slopes = [wide(graph.detach()) for graph in graphs]
        diagonals = self.diagonals(parameters, graphs, self.param_groups[0]["eps"])
        directions = torch._foreach_div(slopes, diagonals)
        terms = torch._foreach_mul(slopes, directions)
        size = polyak_size(loss, overall([term.sum(dtype=torch.float64) for term in terms]))
        for (group, parameter), direction in zip(pairs, directions, strict=True):
            parameter.add_(direction, alpha=-float(group["lr"]) * size)
        return loss


class HutchinsonSANIA(Optimizer):
    """Polyak's step along Newton's direction of an estimated diagonal.

    Estimate, running mean and floor are those of OASIS and of the authors' experiments, which are
    followed (a floor of 0.1, a factor of 0.999) but for the first diagonal: theirs is the mean of
    several estimates, here it is one. ``hessian_update_every`` saves products with the Hessian on
    the steps between. ``learning_rate`` multiplies the Polyak step, so that schedules act; 1 is the
    paper's. Under accumulated batches the graph of all of them is kept until the step.
    """

    name: ClassVar[str] = "sania_hutchinson"
    summary: ClassVar[str] = "Polyak step sizes with a diagonal estimated from the Hessian."
    reference: ClassVar[str] = (
        "Abdukhakimov et al.: SANIA: Polyak-type Optimization Framework Leads to Scale Invariant "
        "Stochastic Algorithms, 2023, arXiv 2312.17369; code: github.com/fxrshed/SANIA, "
        "experiments/libsvm_binary.ipynb; Jahani et al., arXiv 2109.05198"
    )
    needs: ClassVar[frozenset[str]] = frozenset({"loss", "second_order"})
    carries_over: ClassVar[bool] = False

    @classmethod
    def space(cls) -> Space:
        """Multiplier of the step, factor of the running mean, floor of the curvature, how often
        it is estimated."""
        return Space(
            {
                "learning_rate": Float(0.05, 1.0, log=True, default=1.0, prior=Prior(1.0, "high")),
                "beta2": Ordinal((0.9, 0.95, 0.99, 0.999), default=0.99, prior=Prior(0.99, "low")),
                "epsilon": Float(1e-6, 1.0, log=True, default=0.1, prior=Prior(0.1, "low")),
                "hessian_update_every": Ordinal(
                    (1, 2, 5, 10, 100), default=1, prior=Prior(1, "medium")
                ),
            }
        )

    def step_cost(self, parameter_shapes: Shapes) -> StepCost:
        """The product with the Hessian where it is due, which is twice a gradient's work."""
        return StepCost(passes=1.0 + 2.0 / self.configuration["hessian_update_every"])

    def build(self, named_parameters: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """A `HutchinsonSANIAOptimizer` over all parameters."""
        return HutchinsonSANIAOptimizer(
            parameter_groups(named_parameters, weight_decay=0.0),
            {
                "lr": self.configuration["learning_rate"],
                "beta2": self.configuration["beta2"],
                "eps": self.configuration["epsilon"],
                "every": self.configuration["hessian_update_every"],
            },
        )

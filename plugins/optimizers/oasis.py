"""OASIS: a preconditioner and a step size, both from estimates of the curvature."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from autotune.plugins import Optimizer, StepCost
from autotune.space import Categorical, Float, Ordinal, Prior, Space

from ._cost import Shapes
from ._curvature import Draws, HutchinsonOptimizer, evaluate
from ._foreach import overall
from ._groups import parameter_groups
from ._matrix import wide

_Tensors = list[Tensor] | tuple[Tensor, ...]


class OASISOptimizer(HutchinsonOptimizer):
    """The paper's algorithm 1, its gradients and products of one batch.

    ``D = beta2 * D + (1 - beta2) * z * (H z)`` with random signs z (Hutchinson; D begins as the
    first estimate); ``D^ = max(|D|, alpha)``;
    ``eta = min(sqrt(1 + theta) * eta', |w - w'|_{D^} / (2 |g(w) - g(w')|_{D^^-1}))`` with last
    step's ``eta'``, weights ``w'`` and ``theta = eta' / eta''``; ``w -= lr * eta * g / D^``.
    The first step takes ``eta`` from ``initial``; theta is infinite until there are two.

    ``step(closure)`` evaluates the closure at the weights, with the graph kept, and once more
    at the last weights. The step sizes lie in the first group, as ``eta`` and ``theta``.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; returns the loss at the weights.

        Raises:
            RuntimeError: there is no closure.
        """
        everything = [p for group in self.param_groups for p in group["params"]]
        draws = Draws(everything)
        loss = evaluate(closure, "OASIS")
        parameters = [parameter for parameter in everything if parameter.grad is not None]
        if not parameters:
            return loss
        graphs = [p.grad for p in parameters if p.grad is not None]
        slopes = [wide(slope.detach().clone()) for slope in graphs]
        diagonals = self.diagonals(parameters, graphs, self.param_groups[0]["alpha"])
        if self.param_groups[0]["adaptive"]:
            eta = self._step_size(parameters, slopes, diagonals, closure, draws)
        else:
            eta = 1.0
        directions = dict(zip(parameters, torch._foreach_div(slopes, diagonals), strict=True))
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter in directions:
                    parameter.add_(directions[parameter], alpha=-group["lr"] * eta)
        return loss

    def _step_size(
        self,
        parameters: list[Tensor],
        slopes: list[Tensor],
        diagonals: list[Tensor],
        closure: Callable[[], Any] | None,
        draws: Draws,
    ) -> float:
        """``eta``; keeps it, ``theta`` and the weights for the next step."""
        settings = self.param_groups[0]
        states = [self.state[parameter] for parameter in parameters]
        weights = [parameter.clone() for parameter in parameters]
        if all("weights" in state for state in states):
            previous = [state["weights"] for state in states]
            torch._foreach_copy_(parameters, previous)
            with draws.again():
                evaluate(closure, "OASIS")
            before = [
                wide(torch.zeros_like(p) if p.grad is None else p.grad.detach()) for p in parameters
            ]
            torch._foreach_copy_(parameters, weights)
            moved = [wide(now) - wide(then) for now, then in zip(weights, previous, strict=True)]
            bent = torch._foreach_sub(slopes, before)
            eta = settings["eta"] * (1 + settings["theta"]) ** 0.5
            bending = _norm(bent, torch._foreach_reciprocal(diagonals))
            if bending > 0:
                eta = min(eta, _norm(moved, diagonals) / (2 * bending))
            # A schedule may have let nothing move: then there is nothing to learn of.
            if 0 < eta < float("inf"):
                settings["theta"] = eta / settings["eta"]
                settings["eta"] = eta
        for state, weight in zip(states, weights, strict=True):
            state["weights"] = weight
        return settings["eta"]


def _norm(vectors: _Tensors, weights: _Tensors) -> float:
    """``sqrt(sum of weight * vector^2)`` over all parameters."""
    terms = torch._foreach_mul(torch._foreach_mul(vectors, vectors), weights)
    return overall([term.sum(dtype=torch.float64) for term in terms]) ** 0.5


class OASIS(Optimizer):
    """Sets its own step size; three gradients' work and one product with the Hessian a step.

    Follows the paper's algorithm 1 in its stochastic form: both gradients of the step-size rule
    are of the present batch, under the same dropout mask (batch norm's running statistics see
    both evaluations). With ``adaptive`` the step is ``learning_rate * eta``, so that schedules
    act and 1 is the paper's; without, the paper's fixed-rate variant, ``learning_rate`` is the
    step. ``hessian_update_every`` saves products with the Hessian on the steps between. There is
    no author code known to us; the paper's first diagonal is a mean of several estimates, here
    it is one.
    """

    name: ClassVar[str] = "oasis"
    summary: ClassVar[str] = "Hutchinson's diagonal preconditioner with an adaptive step size."
    reference: ClassVar[str] = (
        "Jahani et al.: Doubly Adaptive Scaled Algorithm for Machine Learning Using Second-Order "
        "Information, ICLR 2022, arXiv 2109.05198"
    )
    needs: ClassVar[frozenset[str]] = frozenset({"closure", "second_order"})
    carries_over: ClassVar[bool] = False

    @classmethod
    def space(cls) -> Space:
        """Multiplier of the step (or the step), the first step size, the averages' factor, the
        smallest curvature, how often the curvature is estimated."""
        return Space(
            {
                "adaptive": Categorical((True, False), default=True),
                "learning_rate": Float(1e-3, 1.0, log=True, default=1.0, prior=Prior(1.0, "low")),
                "initial_step_size": Float(
                    1e-6, 1.0, log=True, default=1e-2, prior=Prior(1e-2, "low")
                ),
                "beta2": Ordinal((0.9, 0.95, 0.99, 0.999), default=0.99, prior=Prior(0.99, "low")),
                "alpha": Float(1e-7, 1e-1, log=True, default=1e-2, prior=Prior(1e-2, "low")),
                "hessian_update_every": Ordinal(
                    (1, 2, 5, 10, 100), default=1, prior=Prior(1, "medium")
                ),
            }
        )

    def step_cost(self, parameter_shapes: Shapes) -> StepCost:
        """The second gradient of the step-size rule, and the product with the Hessian where it
        is due, which is twice a gradient's work."""
        products = 2.0 / self.configuration["hessian_update_every"]
        return StepCost(passes=1.0 + (1.0 if self.configuration["adaptive"] else 0.0) + products)

    def build(self, named_parameters: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """An `OASISOptimizer` over all parameters."""
        configuration = self.configuration
        return OASISOptimizer(
            parameter_groups(named_parameters, weight_decay=0.0),
            {
                "lr": configuration["learning_rate"],
                "adaptive": configuration["adaptive"],
                "eta": configuration["initial_step_size"],
                "theta": float("inf"),
                "beta2": configuration["beta2"],
                "alpha": configuration["alpha"],
                "every": configuration["hessian_update_every"],
            },
        )

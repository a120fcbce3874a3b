"""SAM: step by the gradient from the worst point near the weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from autotune.plugins import Optimizer, StepCost
from autotune.space import Choice, Float, Prior, Space

from . import _spaces
from ._cost import Shapes
from ._curvature import evaluate
from ._foreach import gradients, joint_norm, parameters_with_gradients
from ._groups import can_fuse, parameter_groups


class SharpnessAware(torch.optim.Optimizer):
    """Mixed into a torch optimizer, whose step then takes the gradient at ``w + e``,
    ``e = rho * g / |g|`` over all parameters together, instead of at ``w``."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; evaluates the closure twice and returns the first loss.

        Raises:
            RuntimeError: there is no closure.
        """
        loss = evaluate(closure, "SAM")
        lists = [
            (group["rho"], parameters)
            for group in self.param_groups
            for parameters in parameters_with_gradients(group, "SAM")
        ]
        weights = [parameter for _, parameters in lists for parameter in parameters]
        if not weights:
            return loss
        kept = [weight.clone() for weight in weights]
        norm = joint_norm(gradients(weights))
        for rho, parameters in lists:
            radius = rho / norm if norm > 0 else 0.0
            torch._foreach_add_(parameters, gradients(parameters), alpha=radius)
        evaluate(closure, "SAM")
        torch._foreach_copy_(weights, kept)
        super().step()
        return loss


class SharpnessAwareSGD(SharpnessAware, torch.optim.SGD):
    """SAM around SGD; groups carry ``rho``."""


class SharpnessAwareAdamW(SharpnessAware, torch.optim.AdamW):
    """SAM around AdamW; groups carry ``rho``."""


class SAM(Optimizer):
    """Looks for flat minima at twice the cost of a step.

    The paper's equations 2 and 3 with p = 2, around SGD with momentum (the paper's) or AdamW.
    The author code adds the decay to the loss of both evaluations, so that it bends the ascent
    too; the paper is followed, where it stands outside, and the base optimizer decays. The second
    evaluation is of the same batch; dropout draws anew for it, and batch norm's running
    statistics see it (in the author code it has the same draws, and the statistics do not).
    """

    name: ClassVar[str] = "sam"
    summary: ClassVar[str] = "Gradient at the worst point within a small radius; two passes."
    reference: ClassVar[str] = (
        "Foret et al.: Sharpness-Aware Minimization for Efficiently Improving Generalization, "
        "ICLR 2021, arXiv 2010.01412; code: github.com/google-research/sam"
    )
    needs: ClassVar[frozenset[str]] = frozenset({"closure"})
    carries_over: ClassVar[bool] = False

    @classmethod
    def space(cls) -> Space:
        """Radius, and the optimizer that steps, with its hyperparameters."""
        sgd = {
            "learning_rate": _spaces.learning_rate(0.1, 1e-3, 1.0),
            "momentum": _spaces.momentum(),
            "weight_decay": _spaces.weight_decay(1e-4, 1e-6, 1e-2),
        }
        adamw = {
            "learning_rate": _spaces.learning_rate(),
            "beta1": _spaces.beta1(),
            "beta2": _spaces.beta2(),
            "epsilon": _spaces.epsilon(),
            "weight_decay": _spaces.weight_decay(),
        }
        return Space(
            {
                "rho": Float(0.01, 0.5, log=True, default=0.05, prior=Prior(0.05, "medium")),
                "base": Choice({"sgd": Space(sgd), "adamw": Space(adamw)}, default="sgd"),
            }
        )

    def normalises(self) -> Literal["nothing", "elements", "tensors"]:
        """As the optimizer that steps."""
        return "elements" if self.configuration["base"]["name"] == "adamw" else "nothing"

    def step_cost(self, parameter_shapes: Shapes) -> StepCost:
        """A second forward and backward pass."""
        return StepCost(passes=2.0)

    def build(self, named_parameters: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """The chosen optimizer, made sharpness-aware."""
        base = self.configuration["base"]
        groups = parameter_groups(named_parameters, base["weight_decay"])
        for group in groups:
            group["rho"] = self.configuration["rho"]
        rate = base["learning_rate"]
        fused = can_fuse(parameter for _, parameter in named_parameters)
        if base["name"] == "sgd":
            return SharpnessAwareSGD(groups, lr=rate, momentum=base["momentum"], fused=fused)
        betas = (base["beta1"], base["beta2"])
        return SharpnessAwareAdamW(groups, lr=rate, betas=betas, eps=base["epsilon"], fused=fused)

"""Fira: GaLore that also uses the part of the gradient outside its subspace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from autotune.plugins import ModelInfo, Optimizer, StepCost
from autotune.space import Float, Prior, Space

from ._cost import Shapes, low_rank
from ._groups import matrix_groups, no_matrices
from ._low_rank import (
    add_projected_back_,
    low_rank_defaults,
    low_rank_space,
    on_left,
    project,
    refreshed_basis,
)
from ._matrix import MatrixOptimizer, adam_updates, add_, decay_

_TINY = 1e-8
"""Added to the norms that are divided by, as in the author code."""


class FiraOptimizer(MatrixOptimizer):
    """The paper's algorithm 1 with Adam.

    ``R = P^T G``; ``psi`` = Adam's bias-corrected direction for ``R``; for each column (of the
    longer side) ``phi = |psi| / |R|``; ``S = phi * (G - P R)`` (equation 11), shrunk so that
    its norm is at most ``limit`` times the last one's (equation 12);
    ``W -= lr * (scale * P psi + S)``. State beside GaLore's: one number, the norm of ``S``.
    """

    title: ClassVar[str] = "Fira"

    def step_matrices(
        self,
        group: dict[str, Any],
        parameters: list[Tensor],
        gradients: list[Tensor],
        states: list[dict[str, Any]],
    ) -> None:
        """Adam inside the subspace, the scaled gradient outside of it."""
        bases = [
            refreshed_basis(group, state, gradient)
            for state, gradient in zip(states, gradients, strict=True)
        ]
        projected = [project(g, basis) for g, basis in zip(gradients, bases, strict=True)]
        directions = adam_updates(group, projected, states)
        updates = []
        for gradient, low, direction, basis, state in zip(
            gradients, projected, directions, bases, states, strict=True
        ):
            ratios = _ratios(direction, low, gradient)
            # A column's factor may as well be applied to its coordinates.
            update = gradient * ratios
            add_projected_back_(update, low * ratios, basis, -1.0)
            update.mul_(_limit(update, group["limit"], state))
            add_projected_back_(update, direction, basis, group["scale"])
            updates.append(update)
        decay_(group, parameters)
        add_(parameters, updates, -group["lr"])


def _ratios(direction: Tensor, low: Tensor, gradient: Tensor) -> Tensor:
    """What Adam did to the norm of each column (row, for a tall gradient)."""
    along = 0 if on_left(gradient.shape) else 1
    return direction.norm(dim=along, keepdim=True) / (low.norm(dim=along, keepdim=True) + _TINY)


def _limit(outside: Tensor, limit: float, state: dict[str, Any]) -> Tensor:
    """What the norm-growth limiter multiplies by; keeps the norm that it lets through."""
    norm = outside.norm()
    factor = torch.ones_like(norm)
    if "outside_norm" in state:
        growth = norm / (state["outside_norm"] + _TINY)
        factor = limit / growth.clamp(min=limit)
    state["outside_norm"] = norm * factor
    return factor


class Fira(Optimizer):
    """Full-rank updates with the optimizer state of a low rank.

    Follows the paper: ``scale`` multiplies Adam's part alone and the residual is
    ``G - P P^T G``, and Adam's direction is bias-corrected before its norm is taken. In the
    author code ``scale`` stands in both places (the residual is ``G - scale * P P^T G``) and
    the correction of the bias is applied at the end, so that the limiter sees uncorrected
    norms; both agree at scale 1 but for the limiter. 1e-8 is added to the norms that are divided
    by, as in the code. Decay is decoupled, before the step (the code: after it).
    What is projected, when, and with which signs is as in ``galore``; the rest takes AdamW.
    """

    name: ClassVar[str] = "fira"
    summary: ClassVar[str] = "GaLore plus the norm-scaled gradient outside the subspace."
    reference: ClassVar[str] = (
        "Chen et al.: Fira: Can We Achieve Full-rank Training of LLMs Under Low-rank "
        "Constraint?, NeurIPS 2025, arXiv 2410.01623; code: github.com/xichen-fy/Fira"
    )
    carries_over: ClassVar[bool] = False

    @classmethod
    def space(cls) -> Space:
        """GaLore's hyperparameters and the limit of the norm's growth (1.01 in both codes)."""
        growth = Float(1.001, 1.1, default=1.01, prior=Prior(1.01, "high"))
        return Space({**low_rank_space(), "norm_growth_limit": growth})

    @classmethod
    def supports(cls, model_info: ModelInfo) -> str | None:
        """Models with a weight matrix."""
        return super().supports(model_info) or no_matrices(model_info)

    def step_cost(self, parameter_shapes: Shapes) -> StepCost:
        """GaLore's, and the gradient's way back out of the subspace."""
        return StepCost(flops=low_rank(parameter_shapes, self.configuration, products=3))

    def build(self, named_parameters: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """A `FiraOptimizer` over matrices and all else."""
        groups = matrix_groups(named_parameters, self.configuration["weight_decay"])
        limit = {"limit": self.configuration["norm_growth_limit"]}
        return FiraOptimizer(groups, {**low_rank_defaults(self.configuration), **limit})

"""GradNormLoRP: GaLore on the directions of weight-normalised matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from autotune.plugins import ModelInfo, Optimizer, StepCost
from autotune.space import Space

from ._cost import Shapes, low_rank
from ._groups import matrix_groups, no_matrices
from ._low_rank import (
    low_rank_defaults,
    low_rank_space,
    project,
    project_back,
    refreshed_basis,
)
from ._matrix import MatrixOptimizer, adam_updates, add_, decay_, wide

_TINY = 1e-12
"""Added to the norm of a row, which may be zero, as in the author code."""


class GradNormLoRPOptimizer(MatrixOptimizer):
    """Of each matrix ``W = d * V`` with row norms ``d`` and rows ``V`` of norm one.

    With the gradient G of W: ``g_d = sum over a row of V * G``; ``g_V = d * (G - V * g_d)``
    (gradients of ``d`` and of ``v`` in ``W = d * v / |v|`` at ``|v| = 1``). ``d`` takes Adam's
    step for ``g_d``; ``V`` takes GaLore's for ``g_V``, times ``scale``; then ``W = d * V / |V|``.
    Decay comes before all that.
    The matrix itself holds ``d`` and ``V``: state beside GaLore's is two numbers a row.
    """

    title: ClassVar[str] = "GradNormLoRP"

    def step_matrices(
        self,
        group: dict[str, Any],
        parameters: list[Tensor],
        gradients: list[Tensor],
        states: list[dict[str, Any]],
    ) -> None:
        """Split, step both parts, and join them again."""
        decay_(group, parameters)
        weights = [wide(parameter) for parameter in parameters]
        norms = [weight.norm(dim=1, keepdim=True).add_(_TINY) for weight in weights]
        rows = list(torch._foreach_div(weights, norms))
        norm_gradients = [
            (row * gradient).sum(dim=1, keepdim=True)
            for row, gradient in zip(rows, gradients, strict=True)
        ]
        row_gradients = [
            norm * (gradient - row * along)
            for norm, gradient, row, along in zip(
                norms, gradients, rows, norm_gradients, strict=True
            )
        ]
        norm_updates = adam_updates(group, norm_gradients, states, part="norm_")
        row_updates = _projected_updates(group, row_gradients, states)

        before = _joined(norms, rows)
        rate = group["lr"]
        torch._foreach_add_(rows, row_updates, alpha=-rate * group["scale"])
        torch._foreach_add_(norms, norm_updates, alpha=-rate)
        # By the difference, so that a rate of zero leaves every bit of the matrix.
        add_(parameters, list(torch._foreach_sub(_joined(norms, rows), before)), 1.0)


def _joined(norms: list[Tensor], rows: list[Tensor]) -> list[Tensor]:
    """The matrices that have these row norms, and rows along these."""
    return [
        norm * row / row.norm(dim=1, keepdim=True).add_(_TINY)
        for norm, row in zip(norms, rows, strict=True)
    ]


def _projected_updates(
    group: dict[str, Any], gradients: list[Tensor], states: list[dict[str, Any]]
) -> list[Tensor]:
    bases = [
        refreshed_basis(group, state, gradient)
        for state, gradient in zip(states, gradients, strict=True)
    ]
    projected = [project(g, basis) for g, basis in zip(gradients, bases, strict=True)]
    directions = adam_updates(group, projected, states)
    return [
        project_back(direction, basis, gradient.shape)
        for direction, basis, gradient in zip(directions, bases, gradients, strict=True)
    ]


class GradNormLoRP(Optimizer):
    """GaLore for the direction of every row, Adam for its length.

    Follows the paper's weight normalisation ``w = d * v / |v|`` and its projection of the
    direction's gradient, which the author code computes without ``d`` in one file and without
    removing the part along ``v`` in another; the code also keeps a copy of the weights (and, in one
    file, never writes the result back; in another, overwrites the stepped norms). Decay, which the
    paper does not have, is decoupled and comes first (the code: after the step). The paper projects
    from both sides in one place and from one in its memory table and code; this projects from one,
    as ``galore`` does. The low-rank factors that the paper adds to the weights are adapters here
    (see ``lora``). What is projected, when, and with which signs is as in ``galore``; the rest
    takes AdamW.
    """

    name: ClassVar[str] = "gradnorm_lorp"
    summary: ClassVar[str] = "GaLore on the directions of weight-normalised matrices."
    reference: ClassVar[str] = (
        "Huang et al.: Gradient Weight-normalized Low-rank Projection for Efficient LLM "
        "Training, AAAI 2025, arXiv 2412.19616; code: github.com/Jhhuangkay/"
        "Gradient-Weight-normalized-Low-rank-Projection-for-Efficient-LLM-Training"
    )
    carries_over: ClassVar[bool] = False

    @classmethod
    def space(cls) -> Space:
        """GaLore's hyperparameters; the scale is 1 in the author code."""
        return Space(low_rank_space(scale=1.0))

    @classmethod
    def supports(cls, model_info: ModelInfo) -> str | None:
        """Models with a weight matrix."""
        return super().supports(model_info) or no_matrices(model_info)

    def step_cost(self, parameter_shapes: Shapes) -> StepCost:
        """GaLore's, of the direction's gradient."""
        return StepCost(flops=low_rank(parameter_shapes, self.configuration))

    def build(self, named_parameters: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """A `GradNormLoRPOptimizer` over matrices and all else."""
        groups = matrix_groups(named_parameters, self.configuration["weight_decay"])
        return GradNormLoRPOptimizer(groups, low_rank_defaults(self.configuration))

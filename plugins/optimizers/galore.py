"""GaLore: Adam on the gradient's projection onto its leading singular vectors."""

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
    refreshed_basis,
    step_back,
)
from ._matrix import MatrixOptimizer, adam_updates, decay_


class GaLoreOptimizer(MatrixOptimizer):
    """The paper's algorithm 2 (GaLore with Adam), the Adam part list-wise over the matrices.

    Every ``gap`` steps ``P`` = the ``rank`` leading singular vectors of ``G``; ``R = P^T G``;
    ``N = m_hat(R) / (sqrt(v_hat(R)) + eps)``; ``W -= lr * scale * P N``. State of an m x n
    matrix with m <= n: ``m * rank + 2 * n * rank`` numbers.
    """

    title: ClassVar[str] = "GaLore"

    def step_matrices(
        self,
        group: dict[str, Any],
        parameters: list[Tensor],
        gradients: list[Tensor],
        states: list[dict[str, Any]],
    ) -> None:
        """Project, let Adam work there, project back."""
        bases = [
            refreshed_basis(group, state, gradient)
            for state, gradient in zip(states, gradients, strict=True)
        ]
        projected = [project(g, basis) for g, basis in zip(gradients, bases, strict=True)]
        directions = adam_updates(group, projected, states)
        decay_(group, parameters)
        for parameter, direction, basis in zip(parameters, directions, bases, strict=True):
            step_back(parameter, direction, basis, -group["lr"] * group["scale"])


class GaLore(Optimizer):
    """Full-parameter training with the optimizer state of a low rank.

    Follows the paper's algorithm 2, with epsilon added after the bias correction (the author code:
    before). The basis is renewed at steps 0, gap, 2 gap, ..., as in both. Decay, which the paper
    does not have, is decoupled and comes before the step (the code: after it). A square matrix is
    projected from the right, as in the code (the paper: from the left). Singular vectors are signed
    so that each one's entry of largest magnitude is positive. Matrices of linear layers are
    projected; embeddings, convolution kernels (as in the author code) and vectors take AdamW with
    the same rate.
    """

    name: ClassVar[str] = "galore"
    summary: ClassVar[str] = "Adam in the gradient's leading singular subspace."
    reference: ClassVar[str] = (
        "Zhao et al.: GaLore: Memory-Efficient LLM Training by Gradient Low-Rank Projection, "
        "ICML 2024, arXiv 2403.03507; code: github.com/jiaweizzhao/GaLore"
    )
    carries_over: ClassVar[bool] = False

    @classmethod
    def space(cls) -> Space:
        """Adam's hyperparameters, rank, steps between projections, scale of the update."""
        return Space(low_rank_space())

    @classmethod
    def supports(cls, model_info: ModelInfo) -> str | None:
        """Models with a weight matrix."""
        return super().supports(model_info) or no_matrices(model_info)

    def step_cost(self, parameter_shapes: Shapes) -> StepCost:
        """The low-rank products and decompositions."""
        return StepCost(flops=low_rank(parameter_shapes, self.configuration))

    def build(self, named_parameters: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """A `GaLoreOptimizer` over matrices and all else."""
        groups = matrix_groups(named_parameters, self.configuration["weight_decay"])
        return GaLoreOptimizer(groups, low_rank_defaults(self.configuration))

"""Natural GaLore: GaLore on natural gradients of the subspace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from autotune.plugins import ModelInfo, Optimizer, StepCost
from autotune.space import Float, Ordinal, Prior, Space

from ._cost import Shapes, low_rank, sides
from ._groups import matrix_groups, no_matrices
from ._low_rank import (
    low_rank_defaults,
    low_rank_space,
    project,
    project_back,
    refreshed_basis,
)
from ._matrix import MatrixOptimizer, adam_updates, add_, decay_


class NaturalGaLoreOptimizer(MatrixOptimizer):
    """GaLore whose projected gradient ``g`` (as a vector) is multiplied by the inverse of the
    empirical Fisher matrix ``F = damping * I + H H^T``, where the columns of ``H`` are the last
    ``history`` projected gradients, the present one included.

    By Woodbury's identity ``F^-1 g = (g - H (damping * I + H^T H)^-1 H^T g) / damping``; the
    small system is solved by Cholesky's decomposition. Adam's moments are taken of ``F^-1 g``.
    """

    title: ClassVar[str] = "Natural GaLore"

    def step_matrices(
        self,
        group: dict[str, Any],
        parameters: list[Tensor],
        gradients: list[Tensor],
        states: list[dict[str, Any]],
    ) -> None:
        """Project, precondition, let Adam work, project back."""
        bases = [
            refreshed_basis(group, state, gradient)
            for state, gradient in zip(states, gradients, strict=True)
        ]
        natural = [
            natural_gradient(group, state, project(gradient, basis))
            for gradient, basis, state in zip(gradients, bases, states, strict=True)
        ]
        directions = adam_updates(group, natural, states)
        updates = [
            project_back(direction, basis, parameter.shape)
            for direction, basis, parameter in zip(directions, bases, parameters, strict=True)
        ]
        decay_(group, parameters)
        add_(parameters, updates, -group["lr"] * group["scale"])


def natural_gradient(group: dict[str, Any], state: dict[str, Any], projected: Tensor) -> Tensor:
    """``F^-1 g`` in the shape of `projected`, which joins the state's ``past`` of shape
    (at most history, size), newest last."""
    vector = projected.reshape(1, -1)
    past = torch.cat([state["past"], vector])[-group["history"] :] if "past" in state else vector
    state["past"] = past.clone()
    damping = group["damping"]
    system = past @ past.mT
    system.diagonal().add_(damping)
    weights = torch.cholesky_solve(past @ vector.mT, torch.linalg.cholesky(system))
    return ((vector - weights.mT @ past) / damping).view_as(projected)


class NaturalGaLore(Optimizer):
    """GaLore with second-order information from the last few gradients.

    Follows the paper, with Adam's bias correction, epsilon outside the square root and
    ``scale`` as in the author code (the paper writes the moments uncorrected and epsilon inside).
    ``history`` counts the present gradient in, as in the code (the paper's window is beside it).
    Paper and code keep the past gradients when the projection is renewed, although they then
    belong to the old basis; so does this. Damping 1e-3 and a history of 20 are the code's. The
    code projects all sides of matrices and kernels by a Tucker decomposition; the paper is
    followed, which projects the shorter side of matrices. What is projected, when, and with which
    signs, and when weights decay, is as in ``galore``; embeddings, convolution kernels and
    vectors take AdamW.
    """

    name: ClassVar[str] = "natural_galore"
    summary: ClassVar[str] = "GaLore with an inverse empirical Fisher matrix in the subspace."
    reference: ClassVar[str] = (
        "Das: Natural GaLore: Accelerating GaLore for memory-efficient LLM Training and "
        "Fine-tuning, 2024, arXiv 2410.16029; code: github.com/selfsupervised-ai/Natural-GaLore"
    )
    carries_over: ClassVar[bool] = False

    @classmethod
    def space(cls) -> Space:
        """GaLore's hyperparameters, length of the history, damping of the Fisher matrix."""
        history = Ordinal((2, 5, 10, 20, 32), default=20, prior=Prior(20, "low"))
        damping = Float(1e-4, 1.0, log=True, default=1e-3, prior=Prior(1e-3, "low"))
        return Space({**low_rank_space(), "history": history, "damping": damping})

    @classmethod
    def supports(cls, model_info: ModelInfo) -> str | None:
        """Models with a weight matrix."""
        return super().supports(model_info) or no_matrices(model_info)

    def step_cost(self, parameter_shapes: Shapes) -> StepCost:
        """GaLore's, and the products of the past projected gradients with each other and with
        the present one."""
        flops = low_rank(parameter_shapes, self.configuration)
        history = self.configuration["history"]
        for short, long in sides(parameter_shapes):
            rank = min(self.configuration["rank"], short)
            flops += 2.0 * history * (history + 2) * rank * long + history**3
        return StepCost(flops=flops)

    def build(self, named_parameters: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """A `NaturalGaLoreOptimizer` over matrices and all else."""
        configuration = self.configuration
        groups = matrix_groups(named_parameters, configuration["weight_decay"])
        fisher = {key: configuration[key] for key in ("history", "damping")}
        return NaturalGaLoreOptimizer(groups, {**low_rank_defaults(configuration), **fisher})

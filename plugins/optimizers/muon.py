"""Muon: momentum, orthogonalised, so that a step moves a matrix alike in all directions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from autotune.plugins import ModelInfo, Optimizer, StepCost
from autotune.space import Categorical, Ordinal, Prior, Space

from . import _spaces
from ._cost import Shapes, orthogonalised, sides
from ._groups import matrix_groups, no_matrices
from ._matrix import MatrixOptimizer, decay_
from ._orthogonal import newton_schulz


class MuonOptimizer(MatrixOptimizer):
    """``B = momentum * B + (1 - momentum) * G``; ``U = (1 - momentum) * G + momentum * B`` with
    Nesterov, else ``B``; ``W -= lr * 0.2 * sqrt(max(m, n)) * newton_schulz(U)`` for an m x n
    matrix; convolution kernels are matrices of one row an output channel."""

    title: ClassVar[str] = "Muon"

    def step_matrices(
        self,
        group: dict[str, Any],
        parameters: list[Tensor],
        gradients: list[Tensor],
        states: list[dict[str, Any]],
    ) -> None:
        """Momentum list-wise, the iteration matrix by matrix."""
        momentum = group["momentum"]
        for state, gradient in zip(states, gradients, strict=True):
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(gradient)
        buffers = [state["momentum"] for state in states]
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        decay_(group, parameters)
        for parameter, gradient, buffer in zip(parameters, gradients, buffers, strict=True):
            direction = gradient.lerp(buffer, momentum) if group["nesterov"] else buffer
            rows = direction.flatten(1)
            size = 0.2 * max(rows.shape) ** 0.5
            parameter.add_(newton_schulz(rows).view_as(direction), alpha=-group["lr"] * size)


class Muon(Optimizer):
    """Orthogonalised momentum for matrices and convolution kernels, AdamW for all else.

    The step has the root mean square that AdamW's usually has (``0.2 * sqrt(max(m, n))``, Liu et
    al., arXiv 2502.16982, who are followed), so that one learning rate and decay serve both and are
    AdamW's: for matrices it is ``torch.optim.Muon(adjust_lr_fn="match_rms_adamw")``. Jordan's own
    factor, not followed, is ``sqrt(max(1, m / n))`` with a rate near 0.02. Kernels are flattened to
    one row an output channel, as in Jordan's code; embeddings and vectors take AdamW (Jordan leaves
    it the output layer too, which nothing tells apart here). The iteration runs in bfloat16, as in
    both codes, where the processor has it, otherwise in float32 (float64 for float64).
    """

    name: ClassVar[str] = "muon"
    summary: ClassVar[str] = "Momentum orthogonalised by Newton-Schulz iteration."
    reference: ClassVar[str] = (
        "Jordan et al.: Muon: An optimizer for hidden layers in neural networks, 2024, "
        "kellerjordan.github.io/posts/muon; Liu et al.: Muon is Scalable for LLM Training, "
        "2025, arXiv 2502.16982; code: github.com/KellerJordan/Muon, torch.optim.Muon"
    )
    carries_over: ClassVar[bool] = False

    @classmethod
    def space(cls) -> Space:
        """Learning rate, momentum, Nesterov, weight decay, and AdamW's for the rest."""
        return Space(
            {
                "learning_rate": _spaces.learning_rate(),
                "momentum": Ordinal(
                    (0.8, 0.9, 0.95, 0.98), default=0.95, prior=Prior(0.95, "high")
                ),
                "nesterov": Categorical((True, False), default=True),
                "beta1": _spaces.beta1(),
                "beta2": _spaces.beta2(),
                "epsilon": _spaces.epsilon(),
                "weight_decay": _spaces.weight_decay(0.1),
            }
        )

    @classmethod
    def supports(cls, model_info: ModelInfo) -> str | None:
        """Models with a weight matrix or convolution kernel."""
        return super().supports(model_info) or no_matrices(model_info, kernels=True)

    def normalises(self) -> Literal["nothing", "elements", "tensors"]:
        """Each tensor's step as a whole."""
        return "tensors"

    def step_cost(self, parameter_shapes: Shapes) -> StepCost:
        """Newton-Schulz iteration of every matrix."""
        matrices = sides(parameter_shapes, kernels=True)
        return StepCost(flops=sum(orthogonalised(*both) for both in matrices))

    def build(self, named_parameters: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """A `MuonOptimizer` over matrices with kernels and all else."""
        configuration = self.configuration
        return MuonOptimizer(
            matrix_groups(named_parameters, configuration["weight_decay"], kernels=True),
            {
                "lr": configuration["learning_rate"],
                "momentum": configuration["momentum"],
                "nesterov": configuration["nesterov"],
                "betas": (configuration["beta1"], configuration["beta2"]),
                "eps": configuration["epsilon"],
            },
        )

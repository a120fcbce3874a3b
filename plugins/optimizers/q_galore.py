"""Q-GaLore: GaLore with INT4 projections, 8-bit Adam, and bases renewed only where needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from autotune.plugins import ModelInfo, Optimizer, StepCost
from autotune.space import Float, Ordinal, Prior, Space

from ._cost import Shapes, low_rank
from ._groups import matrix_groups, no_matrices
from ._low_rank import (
    leading_basis,
    low_rank_defaults,
    low_rank_space,
    on_left,
    project,
    project_back,
)
from ._matrix import MatrixOptimizer, adam_updates, add_, decay_, step_count
from ._quantize import pack_8bit, pack_int4, rounded_to_int8, unpack_8bit, unpack_int4

QUEUE = 5
"""Similarities of successive bases that are averaged."""

SMALLEST_8BIT = 4096
"""States of fewer numbers stay in full precision, as in bitsandbytes' 8-bit Adam."""


class QGaLoreOptimizer(MatrixOptimizer):
    """`galore`'s rule, with three economies.

    The basis is stored in INT4 (groups of 256 with a scale and a zero point) and used as
    stored. At each renewal the cosine between the old and the new first basis vector joins a
    queue of 5; if the queue is full and its mean at least ``threshold``, this matrix's gap is
    doubled. Adam's moments of at least 4096 numbers are kept in
    8 bits (blockwise dynamic quantisation). With ``weight_bits`` 8 the matrix is rounded after
    each step, by chance up or down, to the 256 levels of each group of 256.
    """

    title: ClassVar[str] = "Q-GaLore"

    def step_matrices(
        self,
        group: dict[str, Any],
        parameters: list[Tensor],
        gradients: list[Tensor],
        states: list[dict[str, Any]],
    ) -> None:
        """Project, let Adam work there, project back, round."""
        bases = [_basis(group, s, g) for s, g in zip(states, gradients, strict=True)]
        projected = [project(g, basis) for g, basis in zip(gradients, bases, strict=True)]
        for state, low in zip(states, projected, strict=True):
            _unpack_moments(state, low.shape)
        directions = adam_updates(group, projected, states)
        for state in states:
            _pack_moments(state)
        updates = [
            project_back(direction, basis, parameter.shape)
            for direction, basis, parameter in zip(directions, bases, parameters, strict=True)
        ]
        decay_(group, parameters)
        add_(parameters, updates, -group["lr"] * group["scale"])
        if group["weight_bits"] == 8 and group["lr"] != 0:
            torch._foreach_copy_(parameters, [rounded_to_int8(p) for p in parameters])


def _basis(group: dict[str, Any], state: dict[str, Any], gradient: Tensor) -> Tensor:
    """The basis as stored, renewed where that is due."""
    if "step" not in state:
        state["step"] = step_count()
        state["gap"] = torch.tensor(group["gap"])
        state["similarities"] = torch.zeros(0, dtype=torch.float64)
    left = on_left(gradient.shape)
    if "basis" not in state or int(state["step"]) % int(state["gap"]) == 0:
        basis = leading_basis(gradient, group["rank"])
        if "first_vector" in state:
            _adapt_gap(group, state, basis[:, 0])
        state["first_vector"] = basis[:, 0].clone()
        stored = basis if left else basis.mT
        state["basis"], state["basis_scales"], state["basis_zeros"] = pack_int4(stored)
    rank = min(group["rank"], *gradient.shape)
    shape = (gradient.shape[0], rank) if left else (rank, gradient.shape[1])
    stored = unpack_int4(
        state["basis"], state["basis_scales"], state["basis_zeros"], torch.Size(shape)
    )
    return stored if left else stored.mT


def _adapt_gap(group: dict[str, Any], state: dict[str, Any], first: Tensor) -> None:
    """Renew a basis half as often that has hardly turned of late."""
    alike = torch.cosine_similarity(state["first_vector"], first, dim=0).double().cpu()
    state["similarities"] = torch.cat([state["similarities"], alike[None]])[-QUEUE:].clone()
    full = len(state["similarities"]) == QUEUE
    if full and state["similarities"].mean().item() >= group["threshold"]:
        state["gap"] = torch.tensor(2 * int(state["gap"]))


def _unpack_moments(state: dict[str, Any], shape: torch.Size) -> None:
    """Adam's moments in full precision, for the length of a step."""
    for name, signed in (("mean", True), ("variance", False)):
        if f"{name}_scales" in state:
            state[name] = unpack_8bit(state[name], state.pop(f"{name}_scales"), signed, shape)


def _pack_moments(state: dict[str, Any]) -> None:
    for name, signed in (("mean", True), ("variance", False)):
        if state[name].numel() >= SMALLEST_8BIT:
            state[name], state[f"{name}_scales"] = pack_8bit(state[name], signed)


class QGaLore(Optimizer):
    """GaLore at about a quarter of its state, and with ever fewer decompositions.

    Follows paper and author code, which agree: 4 bits, groups of 256, queue of 5, threshold 0.4,
    doubling of the gap. Only 4 bits and groups of 256 are offered. A group's levels always include
    zero (the author code distorts a group of numbers of one sign); the last group may be shorter.
    With ``weight_bits`` 8 the weights have the values that INT8 storage gives them, but not its
    size: torch needs floating-point parameters. The rest is as in ``galore``, its signs and the
    place of decay included, and embeddings, convolution kernels and vectors take AdamW in full
    precision.
    """

    name: ClassVar[str] = "q_galore"
    summary: ClassVar[str] = "GaLore with INT4 projections, 8-bit Adam and lazy renewal."
    reference: ClassVar[str] = (
        "Zhang et al.: Q-GaLore: Quantized GaLore with INT4 Projection and Layer-Adaptive "
        "Low-Rank Gradients, 2024, arXiv 2407.08296; code: github.com/VITA-Group/Q-GaLore; "
        "Dettmers et al.: 8-bit Optimizers via Block-wise Quantization, arXiv 2110.02861"
    )
    carries_over: ClassVar[bool] = False

    @classmethod
    def space(cls) -> Space:
        """GaLore's hyperparameters, similarity at which the gap doubles, bits of the weights
        (16: as they are)."""
        threshold = Float(0.2, 0.6, default=0.4, prior=Prior(0.4, "high"))
        bits = Ordinal((8, 16), default=16, prior=Prior(16, "medium"))
        return Space({**low_rank_space(), "cosine_threshold": threshold, "weight_bits": bits})

    @classmethod
    def supports(cls, model_info: ModelInfo) -> str | None:
        """Models with a weight matrix."""
        return super().supports(model_info) or no_matrices(model_info)

    def step_cost(self, parameter_shapes: Shapes) -> StepCost:
        """GaLore's with every decomposition; the lazy renewal saves some later."""
        return StepCost(flops=low_rank(parameter_shapes, self.configuration))

    def build(self, named_parameters: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """A `QGaLoreOptimizer` over matrices and all else."""
        configuration = self.configuration
        economy = {
            "threshold": configuration["cosine_threshold"],
            "weight_bits": configuration["weight_bits"],
        }
        return QGaLoreOptimizer(
            matrix_groups(named_parameters, configuration["weight_decay"]),
            {**low_rank_defaults(configuration), **economy},
        )

"""LoRA: a trainable low-rank product beside every frozen weight."""

from __future__ import annotations

import math
from typing import ClassVar

from torch import nn

from autotune.plugins import Adapter, AdapterContext, ModelInfo
from autotune.space import Categorical, Float, Integer, Prior, Space

from ._low_rank import (
    MATRICES,
    allowed_rank,
    as_matrix,
    can_be_low_rank,
    make_low_rank,
    merged,
)
from ._targets import (
    find_targets,
    freeze_body,
    normal,
    targets_parameter,
    uniform,
    why_not,
    zeros,
)

_LAYER_TYPES = ("Linear", "Conv2d", "Embedding", "MultiheadAttention")


class LoRA(Adapter):
    """``W = base + scale * B @ A`` for Linear, Conv2d (the kernel as a matrix of outputs by
    inputs times height times width), Embedding, and the projections of MultiheadAttention.

    ``scale`` is ``alpha / rank``, or with ``scaling="rank_stabilised"`` ``alpha /
    sqrt(rank)`` (Kalajdzievski, arXiv 2312.03732). A rank above what a layer's matrix has is
    clipped to it for that layer, in the scale as well. At the start the product is zero: A
    uniform as in the author code (the paper says Gaussian) and B zero; for embeddings, as
    there, A zero and B standard normal. Dropout acts on the product's input, in Linear and in
    Conv2d without groups only: the other layers have no place for it. An attention with key
    or value widths of its own is adapted in its output projection only.
    """

    name: ClassVar[str] = "lora"
    summary: ClassVar[str] = "Low-rank updates of frozen weights; folded in afterwards."
    reference: ClassVar[str] = (
        "Hu et al.: LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022, "
        "arXiv 2106.09685; code: github.com/microsoft/LoRA"
    )

    @classmethod
    def space(cls) -> Space:
        """Rank, alpha and how it scales, dropout, which layers."""
        return Space(
            {
                "rank": Integer(1, 64, log=True, default=8, prior=Prior(8, "medium")),
                "alpha": Float(1.0, 128.0, log=True, default=16.0, prior=Prior(16.0, "medium")),
                "scaling": Categorical(("standard", "rank_stabilised"), default="standard"),
                "dropout": Float(0.0, 0.3, default=0.0, prior=Prior(0.0, "medium")),
                "targets": targets_parameter(),
            }
        )

    @classmethod
    def supports(cls, model_info: ModelInfo) -> str | None:
        """Needs pretrained weights, and a layer outside the head to adapt."""
        return why_not(model_info, _LAYER_TYPES)

    def apply(self, model: nn.Module, context: AdapterContext) -> nn.Module:
        """The model, changed in place."""
        targets = find_targets(
            model,
            context,
            (*MATRICES, nn.Embedding),
            self.configuration["targets"],
            self.name,
            can_be_low_rank,
        )
        freeze_body(model, context)
        for target in targets:
            self._adapt(target.module, context)
        return model

    def merge(self, model: nn.Module) -> nn.Module:
        """A copy in which every product is part of its weight."""
        return merged(model)

    def _adapt(self, module: nn.Module, context: AdapterContext) -> None:
        attention = isinstance(module, nn.MultiheadAttention)
        base = module._parameters["in_proj_weight" if attention else "weight"]
        assert base is not None
        *stack, outputs, inputs = as_matrix(type(module), base).shape
        rank = allowed_rank(module, self.configuration["rank"])
        if isinstance(module, nn.Embedding):
            lora_A = zeros((rank, inputs), base)
            lora_B = normal((outputs, rank), context.generator, base)
        else:
            # The author code's kaiming_uniform_(a=sqrt(5)), which is this bound.
            bound = 1 / math.sqrt(inputs)
            lora_A = uniform((*stack, rank, inputs), bound, context.generator, base)
            lora_B = zeros((*stack, outputs, rank), base)
        stabilised = self.configuration["scaling"] == "rank_stabilised"
        divisor = math.sqrt(rank) if stabilised else rank
        scale = self.configuration["alpha"] / divisor
        make_low_rank(module, lora_A, lora_B, scale, self.configuration["dropout"])

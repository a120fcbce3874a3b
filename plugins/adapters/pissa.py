"""PiSSA: LoRA that starts from the weight's own principal directions."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from autotune.plugins import Adapter, AdapterContext, ModelInfo
from autotune.space import Integer, Prior, Space

from ._low_rank import (
    MATRICES,
    allowed_rank,
    as_matrix,
    can_be_low_rank,
    from_matrix,
    make_low_rank,
    merged,
)
from ._targets import (
    find_targets,
    freeze_body,
    targets_parameter,
    why_not,
)

_LAYER_TYPES = ("Linear", "Conv2d", "MultiheadAttention")


class PiSSA(Adapter):
    """``W = residual + B @ A`` with ``B = U_r sqrt(S_r)``, ``A = sqrt(S_r) V_r^T`` from the
    singular value decomposition of the pretrained ``W``; B and A are trained, the residual is
    frozen.

    The paper calls the left factor A and the right one B; here, as in LoRA, A meets the input.
    The scale is 1 (the paper's alpha = rank), dropout 0. The residual differs from the
    pretrained weight, so it is part of the trial's state and never computed again. A rank
    above what a layer's matrix has is clipped to it. The decomposition is the exact one, in
    float64; the author code's fast randomised one is not offered. Works on Linear, Conv2d (the
    kernel as a matrix of outputs by inputs times height times width; the paper has linear
    layers only) and the projections of MultiheadAttention, not on embeddings.
    """

    name: ClassVar[str] = "pissa"
    summary: ClassVar[str] = "Trains the principal singular directions of frozen weights."
    reference: ClassVar[str] = (
        "Meng, Wang, Zhang: PiSSA: Principal Singular Values and Singular Vectors Adaptation of "
        "Large Language Models, NeurIPS 2024, arXiv 2404.02948; "
        "code: github.com/GraphPKU/PiSSA"
    )

    @classmethod
    def space(cls) -> Space:
        """Rank, and which layers."""
        return Space(
            {
                "rank": Integer(1, 64, log=True, default=8, prior=Prior(8, "medium")),
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
            model, context, MATRICES, self.configuration["targets"], self.name, can_be_low_rank
        )
        freeze_body(model, context)
        for target in targets:
            self._adapt(target.module)
        return model

    def merge(self, model: nn.Module) -> nn.Module:
        """A copy in which every product is part of its weight."""
        return merged(model)

    @torch.no_grad()
    def _adapt(self, module: nn.Module) -> None:
        plain = type(module)
        attention = isinstance(module, nn.MultiheadAttention)
        base = module._parameters["in_proj_weight" if attention else "weight"]
        assert base is not None
        rank = allowed_rank(module, self.configuration["rank"])
        matrix = as_matrix(plain, base.detach()).to(device="cpu", dtype=torch.float64)
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        roots = values[..., :rank].sqrt()
        lora_B = nn.Parameter((left[..., :rank] * roots[..., None, :]).to(base))
        lora_A = nn.Parameter((roots[..., None] * right[..., :rank, :]).to(base))
        # From the factors as rounded to the weight's type, so that the sum is the weight again.
        product = lora_B.to(matrix) @ lora_A.to(matrix)
        base.copy_(from_matrix(plain, matrix - product, base.shape))
        make_low_rank(module, lora_A, lora_B, scale=1.0, dropout=0.0)

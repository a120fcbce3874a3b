"""Layers whose weight is a frozen base plus a trainable product of two thin matrices.

A layer becomes low-rank in place, by a change of its class: its name, its hooks and the names of
its base weights stay (so checkpoints of adapted and plain model name the base alike), and two
parameters, ``lora_A`` and ``lora_B``, join them. Reading ``weight`` gives the weight in effect,
base plus product, so code that takes a layer's weight past its ``forward`` (attention, the fast
path of ``nn.TransformerEncoderLayer``) computes with it too.

As a matrix of shape (outputs, inputs) the weight in effect is ``base + scale * lora_B @ lora_A``:

========================  ======================  ====================  ====================
layer                     the matrix              lora_A                lora_B
========================  ======================  ====================  ====================
``Linear``                weight                  (rank, inputs)        (outputs, rank)
``Conv2d``                kernel, flattened from  (rank, inputs *       (outputs, rank)
                          its second axis         height * width)
``Embedding``             weight, transposed      (rank, entries)       (width, rank)
``MultiheadAttention``    in_proj_weight, query,  (3, rank, width)      (3, width, rank)
                          key, value apart
========================  ======================  ====================  ====================
"""

from __future__ import annotations

import copy
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from ._targets import LINEAR


class LowRank:
    """What the low-rank layers have in common.

    Attributes:
        lora_A: see the module's table.
        lora_B: see the module's table.
        lora_scale: factor of the product.
        lora_dropout: share of the product's inputs dropped in training.
    """

    plain: ClassVar[type[nn.Module]]
    base_name: ClassVar[str] = "weight"
    lora_A: nn.Parameter
    lora_B: nn.Parameter
    lora_scale: float
    lora_dropout: float
    _parameters: dict[str, nn.Parameter | None]

    def base(self) -> nn.Parameter:
        """The frozen weight itself, without the product."""
        parameter = self._parameters[self.base_name]
        assert parameter is not None
        return parameter

    def weight_in_effect(self) -> Tensor:
        """Base plus product, in the base weight's shape."""
        return self.base() + self.lora_scale * from_matrix(
            type(self).plain, self.lora_B @ self.lora_A, self.base().shape
        )


def as_matrix(plain: type[nn.Module], weight: Tensor) -> Tensor:
    """A layer's weight as (outputs, inputs), or three of these for an attention."""
    if issubclass(plain, nn.Conv2d):
        return weight.flatten(1)
    if issubclass(plain, nn.Embedding):
        return weight.T
    if issubclass(plain, nn.MultiheadAttention):
        return weight.unflatten(0, (3, -1))
    return weight


def from_matrix(plain: type[nn.Module], matrix: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of `as_matrix`."""
    return matrix.T if issubclass(plain, nn.Embedding) else matrix.reshape(shape)


class LowRankLinear(LowRank, nn.Linear):
    """``nn.Linear`` with a low-rank update."""

    plain = nn.Linear

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weight in effect."""
        return self.weight_in_effect()

    def forward(self, input: Tensor) -> Tensor:
        """Base output plus the product's, without forming the product."""
        dropped = F.dropout(input, self.lora_dropout, self.training)
        update = F.linear(F.linear(dropped, self.lora_A), self.lora_B)
        return F.linear(input, self.base(), self.bias) + self.lora_scale * update


class LowRankOutputProjection(LowRankLinear):
    """The output projection inside ``nn.MultiheadAttention``, which reads only its weight: no
    dropout there."""

    plain = NonDynamicallyQuantizableLinear


class LowRankConv2d(LowRank, nn.Conv2d):
    """``nn.Conv2d`` with a low-rank update: a convolution to `rank` channels, then 1 by 1."""

    plain = nn.Conv2d

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weight in effect."""
        return self.weight_in_effect()

    def forward(self, input: Tensor) -> Tensor:
        """Base output plus the product's. A grouped convolution, whose groups see different
        inputs, uses the weight in effect, without dropout."""
        if self.groups > 1:
            return self._conv_forward(input, self.weight_in_effect(), self.bias)
        kernel = self.lora_A.unflatten(1, self.base().shape[1:])
        dropped = F.dropout(input, self.lora_dropout, self.training)
        narrow = self._conv_forward(dropped, kernel, None)
        update = F.conv2d(narrow, self.lora_B[:, :, None, None])
        return self._conv_forward(input, self.base(), self.bias) + self.lora_scale * update


class LowRankEmbedding(LowRank, nn.Embedding):
    """``nn.Embedding`` with a low-rank update; indices cannot be dropped, so no dropout."""

    plain = nn.Embedding

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weight in effect."""
        return self.weight_in_effect()

    def forward(self, input: Tensor) -> Tensor:
        """Base rows plus the product's. The padding row gets no gradient."""
        rows = F.embedding(input, self.lora_A.T, self.padding_idx)
        base = F.embedding(input, self.base(), self.padding_idx)
        return base + self.lora_scale * F.linear(rows, self.lora_B)


class LowRankAttention(LowRank, nn.MultiheadAttention):
    """``nn.MultiheadAttention`` with a low-rank update of query, key and value projection each.

    It projects with a stacked weight rather than with layers, so the update is formed and
    added to that weight; dropout of the product's input has no place there.
    """

    plain = nn.MultiheadAttention
    base_name = "in_proj_weight"

    @property
    def in_proj_weight(self) -> Tensor:  # type: ignore[override]
        """The stacked projections in effect."""
        return self.weight_in_effect()


_LOW_RANK: dict[type[nn.Module], type[LowRank]] = {
    layer.plain: layer
    for layer in (
        LowRankLinear,
        LowRankOutputProjection,
        LowRankConv2d,
        LowRankEmbedding,
        LowRankAttention,
    )
}

MATRICES: tuple[type[nn.Module], ...] = (*LINEAR, nn.Conv2d, nn.MultiheadAttention)
"""The layer types that become low-rank, without embeddings."""


def can_be_low_rank(module: nn.Module) -> bool:
    """Whether a layer of the right type has its weight in the usual form: no attention with
    key and value widths of their own, no embedding that rescales its rows as it is used."""
    if isinstance(module, nn.MultiheadAttention):
        return module._parameters["in_proj_weight"] is not None
    return not (isinstance(module, nn.Embedding) and module.max_norm is not None)


def allowed_rank(module: nn.Module, rank: int) -> int:
    """`rank`, clipped to what the layer's matrix has (a higher one adds nothing)."""
    plain = type(module)
    name = _LOW_RANK[plain].base_name
    weight = module._parameters[name]
    assert weight is not None
    return min(rank, *as_matrix(plain, weight).shape[-2:])


def make_low_rank(
    module: nn.Module, lora_A: nn.Parameter, lora_B: nn.Parameter, scale: float, dropout: float
) -> None:
    """Turn a plain layer into its low-rank form, in place."""
    module.__class__ = _LOW_RANK[type(module)]  # type: ignore[assignment]
    assert isinstance(module, LowRank)
    module.lora_A = lora_A
    module.lora_B = lora_B
    module.lora_scale = scale
    module.lora_dropout = dropout


def merged(model: nn.Module) -> nn.Module:
    """A copy of `model` with every product added to its base and every layer plain again.

    Equal to `model` in eval mode up to rounding. `model` itself is left as it is.
    """
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, LowRank):
            with torch.no_grad():
                module.base().copy_(module.weight_in_effect())
            for name in ("lora_A", "lora_B", "lora_scale", "lora_dropout"):
                delattr(module, name)
            module.__class__ = module.plain  # type: ignore[assignment]
    return model

"""Series bottleneck adapters: a small residual network after every frozen layer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autotune.plugins import Adapter, AdapterContext, ModelInfo
from autotune.space import Categorical, Integer, Prior, Space

from ._targets import (
    find_targets,
    freeze_body,
    targets_parameter,
    uniform,
    why_not,
    zeros,
)

_LAYER_TYPES = ("Linear", "Conv2d", "MultiheadAttention")
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "tanh": torch.tanh,
}


class Bottleneck(nn.Module):
    """``h + up(activation(down(h)))`` over features (the last axis) or channels (the second).

    Args:
        width: features or channels of ``h``.
        size: features of the bottleneck.
        activation: a key of the activations on offer.
        channels: whether ``h`` is an image, (batch, channels, height, width).
        generator: of the initial ``down``.
        like: a weight whose device and type the new ones take.
    """

    def __init__(
        self,
        width: int,
        size: int,
        activation: str,
        channels: bool,
        generator: torch.Generator,
        like: Tensor,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.channels = channels
        self.down_weight = uniform((size, width), 1 / math.sqrt(width), generator, like)
        self.down_bias = zeros((size,), like)
        self.up_weight = zeros((width, size), like)
        self.up_bias = zeros((width,), like)

    def forward(self, hidden: Tensor) -> Tensor:
        """A tensor of `hidden`'s shape."""
        activate = _ACTIVATIONS[self.activation]
        if self.channels:
            narrow = F.conv2d(hidden, self.down_weight[:, :, None, None], self.down_bias)
            return hidden + F.conv2d(
                activate(narrow), self.up_weight[:, :, None, None], self.up_bias
            )
        narrow = F.linear(hidden, self.down_weight, self.down_bias)
        return hidden + F.linear(activate(narrow), self.up_weight, self.up_bias)


def _apply_bottleneck(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> Any:
    """Forward hook. A function of the module, not a bound method, so that a copy of the model
    uses the copy's bottleneck. Attention returns (output, weights)."""
    bottleneck = module.get_submodule("bottleneck")
    if isinstance(output, tuple):
        return (bottleneck(output[0]), *output[1:])
    return bottleneck(output)


class SeriesBottleneck(Adapter):
    """After each chosen layer ``h`` becomes ``h + up(activation(down(h)))``.

    The paper puts one after each of a transformer layer's two sub-layers, initialises both
    matrices near zero and trains layer norms too; here the layers are the model's Linear,
    Conv2d (by convolutions of 1 by 1, as residual adapters do, Rebuffi et al., arXiv
    1705.08045) and MultiheadAttention, ``up`` is zero at the start, so that the model's
    function is exactly the pretrained one, and norms stay frozen. A bottleneck wider than its
    layer is clipped to the layer's width. It is not linear and cannot be folded in.
    """

    name: ClassVar[str] = "series_bottleneck"
    summary: ClassVar[str] = "A small residual bottleneck after every frozen layer."
    reference: ClassVar[str] = (
        "Houlsby et al.: Parameter-Efficient Transfer Learning for NLP, ICML 2019, "
        "arXiv 1902.00751; code: github.com/google-research/adapter-bert"
    )

    @classmethod
    def space(cls) -> Space:
        """Width and activation of the bottleneck, and which layers get one."""
        return Space(
            {
                "size": Integer(1, 64, log=True, default=8, prior=Prior(8, "low")),
                "activation": Categorical(tuple(_ACTIVATIONS), default="gelu"),
                "targets": targets_parameter(),
            }
        )

    @classmethod
    def supports(cls, model_info: ModelInfo) -> str | None:
        """Needs pretrained weights, and a layer outside the head to follow."""
        return why_not(model_info, _LAYER_TYPES)

    def apply(self, model: nn.Module, context: AdapterContext) -> nn.Module:
        """The model, changed in place: hooks, and submodules called ``bottleneck``."""
        # Not the output projection inside an attention: that is never called, only read.
        layer_types = (nn.Linear, nn.Conv2d, nn.MultiheadAttention)
        targets = find_targets(
            model, context, layer_types, self.configuration["targets"], self.name
        )
        freeze_body(model, context)
        for target in targets:
            module = target.module
            width, like = _width(module)
            bottleneck = Bottleneck(
                width,
                min(self.configuration["size"], width),
                self.configuration["activation"],
                isinstance(module, nn.Conv2d),
                context.generator,
                like,
            )
            module.add_module("bottleneck", bottleneck)
            module.register_forward_hook(_apply_bottleneck)
        _keep_off_the_fast_path(model)
        return model


def _width(module: nn.Module) -> tuple[int, Tensor]:
    """Features or channels that a layer puts out, and one of its weights."""
    if isinstance(module, nn.MultiheadAttention):
        return module.embed_dim, module.out_proj.weight
    if isinstance(module, nn.Conv2d):
        return module.out_channels, module.weight
    assert isinstance(module, nn.Linear)
    return module.out_features, module.weight


def _keep_off_the_fast_path(model: nn.Module) -> None:
    """In eval mode transformer encoders read their layers' weights instead of calling them,
    which would leave the bottlenecks out; these are the switches that they look at."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0
        elif isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False

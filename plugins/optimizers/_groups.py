"""Parameter groups that all bundled optimizers share: what is decayed, what is not.

Normalisation scales and biases set the size and the offset of activations; pulling them towards
zero does not regularise, so by wide practice they are left out of weight decay.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from autotune.plugins import ModelInfo, PluginError

_FUSED_DEVICES = frozenset({"cpu", "cuda"})
_TABLES = frozenset({"wte", "wpe"})
_FUSED_TYPES = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16})


def is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies to a parameter of this dotted name.

    Not to vectors and scalars (normalisation scales, biases, PReLU slopes, learned
    temperatures), nor to anything called ``bias`` whatever its shape.
    """
    return parameter.ndim > 1 and name.rpartition(".")[2] != "bias"


def parameter_groups(
    named_parameters: Sequence[tuple[str, nn.Parameter]], weight_decay: float
) -> list[dict[str, Any]]:
    """Up to two groups, named ``decayed`` and ``not_decayed``, in the parameters' own order.

    Raises:
        PluginError: if there is nothing to train.
    """
    decayed = [parameter for name, parameter in named_parameters if is_decayed(name, parameter)]
    others = [parameter for name, parameter in named_parameters if not is_decayed(name, parameter)]
    groups: list[dict[str, Any]] = [
        {"name": "decayed", "params": decayed, "weight_decay": weight_decay},
        {"name": "not_decayed", "params": others, "weight_decay": 0.0},
    ]
    kept = [group for group in groups if group["params"]]
    if not kept:
        raise PluginError(
            "the optimizer was given no parameters: nothing in the model requires a gradient. "
            "Expected at least one trainable parameter; an adapter other than 'full' trains "
            "only itself and the task's head"
        )
    return kept


def is_matrix(name: str, shape: Sequence[int], kernels: bool = False) -> bool:
    """Whether a parameter is the weight matrix of a layer, which the matrix and low-rank
    methods are defined for.

    Two dimensions, both above one, and neither a bias nor, by its name, an embedding: the rows
    of a table are vectors of their own, and the papers leave them to Adam. With `kernels`, a
    convolution's kernel counts too, as a matrix of one row an output channel.
    """
    parts = name.lower().split(".")
    table = any("embed" in part or part in _TABLES for part in parts)
    if parts[-1] == "bias" or table or (len(shape) != 2 and not kernels):
        return False
    return len(shape) > 1 and shape[0] > 1 and math.prod(shape[1:]) > 1


def matrix_groups(
    named_parameters: Sequence[tuple[str, nn.Parameter]],
    weight_decay: float,
    kernels: bool = False,
) -> list[dict[str, Any]]:
    """Up to three groups: ``matrices`` (see `is_matrix`), and of all else ``decayed`` and
    ``not_decayed``, for optimizers that treat matrices by a rule of their own. Each group says
    in ``matrices`` which rule it takes.

    Raises:
        PluginError: if there is nothing to train.
    """
    matrices = [p for name, p in named_parameters if is_matrix(name, p.shape, kernels)]
    others = [pair for pair in named_parameters if not is_matrix(pair[0], pair[1].shape, kernels)]
    first = {
        "name": "matrices",
        "params": matrices,
        "weight_decay": weight_decay,
        "matrices": True,
    }
    groups = [first] if matrices else []
    if others or not matrices:
        rest = parameter_groups(others, weight_decay)
        groups += [{**group, "matrices": False} for group in rest]
    return groups


def no_matrices(model_info: ModelInfo, kernels: bool = False) -> str | None:
    """Why a method for matrices does not serve such a model; None if it does."""
    if any(is_matrix(name, shape, kernels) for name, shape in model_info.parameter_shapes.items()):
        return None
    return "the model has no weight matrix (of a linear layer), and all else is left to Adam"


def can_fuse(parameters: Iterable[nn.Parameter]) -> bool:
    """Whether torch's fused kernels serve all these parameters (on a CPU 5 to 6 times faster
    than the default loop)."""
    return all(
        parameter.device.type in _FUSED_DEVICES and parameter.dtype in _FUSED_TYPES
        for parameter in parameters
    )

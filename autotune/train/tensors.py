"""Inputs of a model may be a tensor, or a tuple or dict of tensors: the few functions that
need to know."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def map_tensors(function: Callable[[Tensor], Any], value: Any) -> Any:
    """`value` with `function` applied to each tensor in its tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: map_tensors(function, item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        items = [map_tensors(function, item) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    return value


def tensors_of(value: Any) -> list[Tensor]:
    """All tensors in `value`, in order."""
    found: list[Tensor] = []

    def collect(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(collect, value)
    return found


def to_device(value: Any, device: torch.device) -> Any:
    """`value` with its tensors on `device`."""
    return map_tensors(lambda tensor: tensor.to(device), value)


def call(model: nn.Module, inputs: Any) -> Any:
    """``model(inputs)`` for a tensor, ``model(*inputs)`` for a tuple or list,
    ``model(**inputs)`` for a dict."""
    try:
        if isinstance(inputs, Mapping):
            return model(**inputs)
        if isinstance(inputs, tuple | list):
            return model(*inputs)
        return model(inputs)
    except Exception as error:
        error.add_note(f"raised by the model on inputs {describe(inputs)}")
        raise


class Spread(nn.Module):
    """A model that takes all its inputs as one argument, for callers that pass batches on
    without looking into them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Any) -> Any:
        """What `call` returns."""
        return call(self.model, inputs)


def describe(value: Any) -> str:
    """The structure of `value` for error messages, e.g. ``(float32[8, 3], int64[8])``."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {describe(item)}" for key, item in value.items()) + "}"
    if isinstance(value, tuple | list) and len(value) <= 8:
        return "(" + ", ".join(describe(item) for item in value) + ")"
    return type(value).__name__

"""What a checkpoint may hold: plain tensors and plain values.

Whatever a run freezes goes through `to_plain`, which copies it out of the live objects and
refuses, by its key path, what could not be loaded again without running code. `from_plain`
turns it back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_TAG = "__autotune__"
_TENSOR_TYPES = (Tensor, nn.Parameter)


class StateError(TypeError):
    """Something in a state can be neither kept as a plain value nor loaded as one."""


def to_plain(value: Any, path: str = "state") -> Any:
    """A deep copy of `value` made of CPU tensors, numbers, strings, None, and dicts, lists and
    tuples of these: what ``torch.load(weights_only=True)`` loads.

    A tensor is detached and cloned with its strides, so that a view of a large storage takes
    no more room than its own elements. NumPy arrays and scalars become tagged tensors, which
    `from_plain` turns back. `path` names the value in the error message.

    Raises:
        StateError: names the key path of what cannot be kept.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Tensor):
        return _plain_tensor(value, path)
    if isinstance(value, np.ndarray | np.generic):
        return _plain_array(value, path)
    if isinstance(value, Mapping):
        result = {}
        for key, item in value.items():
            if type(key) not in (str, int):
                raise StateError(
                    f"{path} has the key {key!r} of type {_type_name(key)}; "
                    "expected a string or an integer"
                )
            result[key] = to_plain(item, _join(path, key))
        if _TAG in result:
            raise StateError(f"{path} has the key {_TAG!r}, which is reserved")
        return result
    if isinstance(value, tuple | list):
        items = [to_plain(item, f"{path}[{index}]") for index, item in enumerate(value)]
        return tuple(items) if isinstance(value, tuple) else items
    raise StateError(
        f"{path} is of type {_type_name(value)}, which a checkpoint cannot hold; expected "
        "tensors, NumPy arrays, numbers, strings, None, or dicts and lists of these"
    )


def from_plain(value: Any) -> Any:
    """The inverse of `to_plain`, as a copy: loading it into a run leaves `value` untouched."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        if _TAG in value:
            array = value["data"].numpy().copy()
            return array if value[_TAG] == "array" else array[()]
        return {key: from_plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(from_plain(item) for item in value)
    if isinstance(value, list):
        return [from_plain(item) for item in value]
    return value


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Whether two CPU tensors agree in type, shape and every bit: unlike ``==``, this tells
    -0.0 from 0.0 and finds a NaN equal to itself."""
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    return torch.equal(as_bytes(first), as_bytes(second))


def as_bytes(tensor: Tensor) -> Tensor:
    """The elements of a tensor in row-major order as a flat uint8 tensor on the CPU."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def _plain_tensor(value: Tensor, path: str) -> Tensor:
    if type(value) not in _TENSOR_TYPES:
        raise StateError(f"{path} is a {_type_name(value)}; expected a plain tensor")
    if value.layout != torch.strided or value.is_quantized or value.is_meta:
        raise StateError(
            f"{path} is a tensor of layout {value.layout} on device {value.device}; "
            "expected a dense tensor with data"
        )
    copy = value.detach().to("cpu", copy=True, memory_format=torch.preserve_format)
    copy = copy.resolve_conj().resolve_neg()
    dense = copy.numel() * copy.element_size()
    return copy if copy.untyped_storage().nbytes() == dense else copy.contiguous().clone()


def _plain_array(value: np.ndarray | np.generic, path: str) -> dict[str, Any]:
    try:
        data = torch.from_numpy(np.array(value, copy=True, order="C"))
    except TypeError as error:
        raise StateError(
            f"{path} is a NumPy array of type {value.dtype}; expected numbers or booleans"
        ) from error
    return {_TAG: "array" if isinstance(value, np.ndarray) else "scalar", "data": data}


def _join(path: str, key: str | int) -> str:
    return f"{path}[{key}]" if isinstance(key, int) else f"{path}.{key}"


def _type_name(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"

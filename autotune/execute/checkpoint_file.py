"""What stands in a checkpoint's file: tensors, and how they hang together.

It is a safetensors file (https://github.com/huggingface/safetensors, "Format"): the length of a
JSON header, the header, and the bytes of the tensors, which the header names by their place in the
content. Dicts, lists and plain values are JSON in its metadata, under ``autotune``. So a file holds
no code that loading could run, nothing is copied on its way to the disk, and each tensor is read
straight into memory of its own.
"""

from __future__ import annotations

import json
import math
from base64 import b64decode, b64encode
from collections import OrderedDict
from collections.abc import Sequence
from typing import IO, Any, TypeAlias

import torch
from torch import Tensor, nn

Bytes: TypeAlias = bytes | memoryview

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_LENGTH = 8
"""Bytes in which the header's length stands, little-endian."""

_RESERVED = "__metadata__"


class Unstorable(TypeError):
    """Something cannot be stored without code that loads it; the message names its key path."""


def encode(content: Any) -> list[Bytes]:
    """The file of `content`, in pieces that share memory with its tensors. Equal content gives
    equal bytes.

    Args:
        content: dense tensors, plain values, and dicts, lists and tuples of these.

    Raises:
        Unstorable: names the key path of anything else.
    """
    tensors: dict[str, Tensor] = {}
    structure = _described(content, "checkpoint", "", tensors)
    header: dict[str, Any] = {_RESERVED: {"autotune": json.dumps(structure)}}
    at, pieces = 0, []
    # the largest elements first, as the format's own writer has them, so that all are aligned
    for name, tensor in sorted(tensors.items(), key=lambda item: -item[1].element_size()):
        end = at + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, end],
        }
        pieces.append(_bytes_of(tensor))
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _LENGTH)
    return [len(text).to_bytes(_LENGTH, "little") + text, *pieces]


def decode(stream: IO[bytes], seen: Any = None) -> Any:
    """The content of a file, tensors on the CPU.

    Args:
        seen: told of every piece that is read, by its ``update``, as a digest is.

    Raises:
        Exception: of whatever kind, where the file is not one that `encode` made.
    """
    header = json.loads(_read(stream, int.from_bytes(_read(stream, _LENGTH, seen), "little"), seen))
    structure = json.loads(header.pop(_RESERVED)["autotune"])
    tensors: dict[str, Tensor] = {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        tensor = torch.empty(entry["shape"], dtype=_DTYPES[entry["dtype"]])
        into = _bytes_of(tensor)
        if stream.readinto(into) != into.nbytes:  # type: ignore[attr-defined]
            raise EOFError(f"the file ends within {name}")
        if seen is not None:
            seen.update(into)
        tensors[name] = tensor
    if stream.read(1):
        raise ValueError("the file goes on after its last tensor")
    return _content(structure, tensors)


def _read(stream: IO[bytes], size: int, seen: Any) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise EOFError("the file ends within its header")
    if seen is not None:
        seen.update(data)
    return data


def _described(value: Any, path: str, name: str, tensors: dict[str, Tensor]) -> Any:
    """A value as JSON, in which every object has one key that says what it stands for. Tensors go
    into `tensors`, under a name made of their keys."""
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if kind is bytes:
        return {"bytes": b64encode(value).decode()}
    if kind in (Tensor, nn.Parameter):
        return _described_tensor(value, path, name or "tensor", tensors)
    if kind in (list, tuple):
        parts = [
            _described(item, f"{path}[{index}]", f"{name}.{index}" if name else str(index), tensors)
            for index, item in enumerate(value)
        ]
        return parts if kind is list else {"tuple": parts}
    if kind in (dict, OrderedDict):
        pairs = []
        for key, item in value.items():
            if type(key) not in (bool, int, float, str, tuple):
                raise Unstorable(f"{path} has a key of type {type(key).__name__}: {key!r:.80}")
            where = f"{path}[{key!r}]"
            described = key if type(key) is str else _described(key, where, name, tensors)
            pairs.append(
                [described, _described(item, where, f"{name}.{key}" if name else str(key), tensors)]
            )
        return {kind.__name__: pairs}
    raise Unstorable(
        f"{path} is a {kind.__module__}.{kind.__qualname__}; a run's state "
        "may hold tensors, numbers, strings, and dicts and lists of these"
    )


def _described_tensor(value: Tensor, path: str, name: str, tensors: dict[str, Tensor]) -> Any:
    """A tensor's name; with shape and strides where its elements do not lie in row-major order,
    which arithmetic may depend on."""
    if value.layout != torch.strided or value.is_quantized or value.is_meta:
        raise Unstorable(
            f"{path} is a {value.layout} tensor of {value.dtype}; expected a dense one"
        )
    tensor = value.detach().cpu().resolve_conj().resolve_neg()
    extra: dict[str, Any] = {}
    if tensor.is_complex():
        extra["complex"] = True
        tensor = torch.view_as_real(tensor)
    if tensor.dtype not in _CODES:
        raise Unstorable(f"{path} is a tensor of {value.dtype}, which no checkpoint can hold")
    if tensor.stride() != _row_major(tensor.shape):
        whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
        if whole and tensor.storage_offset() == 0:
            extra |= {"shape": list(tensor.shape), "stride": list(tensor.stride())}
            tensor = tensor.as_strided((tensor.numel(),), (1,))
        else:
            tensor = tensor.contiguous()
    while name in tensors or name == _RESERVED:
        name += "'"
    tensors[name] = tensor
    return {"tensor": name, **extra}


def _content(described: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of `_described`."""
    if isinstance(described, list):
        return [_content(item, tensors) for item in described]
    if not isinstance(described, dict):
        return described
    kind, value = next(iter(described.items()))
    if kind == "tensor":
        tensor = tensors[value]
        if "stride" in described:
            tensor = tensor.as_strided(described["shape"], described["stride"])
        return torch.view_as_complex(tensor) if "complex" in described else tensor
    if kind == "bytes":
        return b64decode(value)
    if kind == "tuple":
        return tuple(_content(item, tensors) for item in value)
    pairs = ((_content(key, tensors), _content(item, tensors)) for key, item in value)
    return {"dict": dict, "OrderedDict": OrderedDict}[kind](pairs)


def _row_major(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(math.prod(max(n, 1) for n in shape[axis + 1 :]) for axis in range(len(shape)))


def _bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a tensor in row-major order."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data

"""Bit-for-bit comparison of states, and a watch over everything a plugin must leave alone."""

from __future__ import annotations

import io
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn


class Fault(Exception):
    """The plugin breaks its contract; the message says what it did and what was expected."""


class NotApplicable(Exception):
    """A check does not apply to the plugin; the message says why."""


def difference(first: Any, second: Any, path: str = "") -> str | None:
    """Where two states made of tensors and plain values first differ in a bit, for people;
    None if they are the same. NaN equals itself, 0.0 differs from -0.0."""
    if type(first) is not type(second):
        return f"{path}: {type(first).__name__} against {type(second).__name__}"
    if isinstance(first, Mapping):
        if list(first) != list(second):
            extra = set(first) ^ set(second)
            return f"{path}: keys {sorted(map(str, extra)) if extra else 'in another order'}"
        pairs = [(f"{path}.{key}" if path else str(key), first[key], second[key]) for key in first]
    elif isinstance(first, list | tuple):
        if len(first) != len(second):
            return f"{path}: {len(first)} entries against {len(second)}"
        pairs = [(f"{path}[{i}]", a, b) for i, (a, b) in enumerate(zip(first, second, strict=True))]
    else:
        return None if _same(first, second) else f"{path}: {_shown(first, second)}"
    found = (difference(a, b, where) for where, a, b in pairs)
    return next((where for where in found if where is not None), None)


def stored(state: Any) -> bytes:
    """A state as a checkpoint's bytes."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def loaded(checkpoint: bytes) -> Any:
    """The state back, without running code."""
    return torch.load(io.BytesIO(checkpoint), weights_only=True)


def through_storage(state: Any, what: str) -> Any:
    """The state as its checkpoint gives it back. Raises Fault if that would run code."""
    try:
        return loaded(stored(state))
    except Exception as error:
        raise Fault(
            f"{what} cannot be loaded with weights_only=True; it may hold tensors, numbers, "
            f"strings, None, and dicts and lists of these ({str(error).splitlines()[0]})"
        ) from error


@contextmanager
def within_remit(what: str) -> Iterator[None]:
    """Raises Fault if what runs inside changes the process: settings of torch, the random
    generators of Python and NumPy, the environment, signal handlers, or torch's own classes."""
    changed: list[str] = []
    with process_kept(changed):
        yield
    if changed:
        raise Fault(f"{what} changes {' and '.join(changed)}, which is none of its business")


@contextmanager
def process_kept(changed: list[str] | None = None) -> Iterator[None]:
    """Puts back what it can of the process's settings, so that whatever is checked next finds
    them as they were; notes in `changed` which were not."""
    before = _process()
    try:
        yield
    finally:
        after = _process()
        for name, value in before.items():
            if difference(value, after[name]) is not None:
                if name in _RESTORE:
                    _RESTORE[name](value)
                if changed is not None:
                    changed.append(name)


@contextmanager
def another_time() -> Iterator[None]:
    """The clocks of the module `time` show some other time, and run unevenly."""
    clocks = ("time", "monotonic", "perf_counter", "process_time")
    with mock.patch.multiple(time, **{name: _shifted(getattr(time, name)) for name in clocks}):
        yield


def _shifted(clock: Any) -> Any:
    calls = iter(range(10**9))
    return lambda: clock() + 987654.321 + 17.3 * next(calls) ** 1.5


@contextmanager
def other_generators() -> Iterator[None]:
    """The global generators of Python and NumPy stand elsewhere; afterwards as before."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    random.seed(20240229)
    np.random.seed(20240229)  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def unchanged(before: Mapping[str, Tensor], module: nn.Module, what: str) -> None:
    """Raises Fault if a parameter or buffer of `module` differs from its copy in `before`."""
    where = difference(dict(before), snapshot(module))
    if where is not None:
        raise Fault(f"{what}: {where}")


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters and buffers by name."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor):
        same_kind = first.dtype == second.dtype and first.shape == second.shape
        return same_kind and torch.equal(_bytes(first), _bytes(second))
    if isinstance(first, np.ndarray):
        return first.dtype == second.dtype and first.tobytes() == second.tobytes()
    if isinstance(first, float):
        return first.hex() == second.hex()
    return bool(first == second)


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def _shown(first: Any, second: Any) -> str:
    if isinstance(first, Tensor):
        if first.dtype != second.dtype or first.shape != second.shape:
            return (
                f"{first.dtype} {tuple(first.shape)} against {second.dtype} {tuple(second.shape)}"
            )
        gap = (first.double() - second.double()).abs().max().item() if first.numel() else 0.0
        return f"a tensor of shape {tuple(first.shape)} is off by up to {gap:.3g}"
    return f"{first!r} against {second!r}"


def _process() -> dict[str, Any]:
    """What belongs to the process, by the words that name it."""
    return {
        "Python's global random generator": random.getstate(),
        "NumPy's global random generator": np.random.get_state(legacy=False),  # noqa: NPY002
        "torch's default type": torch.get_default_dtype(),
        "torch's default device": str(torch.get_default_device()),
        "torch's number of threads": torch.get_num_threads(),
        "whether gradients are recorded": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "anomaly detection": torch.is_anomaly_enabled(),
        "whether algorithms are deterministic": torch.are_deterministic_algorithms_enabled(),
        "the precision of matrix products": torch.get_float32_matmul_precision(),
        "automatic mixed precision": torch.is_autocast_enabled("cpu"),
        "cuDNN's settings": (torch.backends.cudnn.benchmark, torch.backends.cudnn.enabled),
        "hooks on all modules": [len(hooks) for hooks in _global_hooks()],
        "environment variables": dict(os.environ),
        "the working directory": os.getcwd(),
        "signal handlers": {
            name: signal.getsignal(getattr(signal, name)) for name in ("SIGINT", "SIGTERM")
        },
        "torch's own classes and functions": _library(),
    }


def _global_hooks() -> list[Any]:
    found = {n: v for n, v in vars(nn.modules.module).items() if n.startswith("_global_")}
    return [value for value in found.values() if isinstance(value, dict)]


def _owners() -> dict[str, Any]:
    """What others' models are made of: a patched `nn.BatchNorm2d.forward` would change every
    model in the process."""
    classes = {n: v for n, v in vars(nn).items() if isinstance(v, type)}
    functions = {"functional": nn.functional, "Optimizer": torch.optim.Optimizer}
    return {**classes, **functions, "Tensor": torch.Tensor}


def _library() -> dict[str, Any]:
    return {
        f"{owner}.{name}": value
        for owner, holder in _owners().items()
        for name, value in vars(holder).items()
        if callable(value)
    }


def _restore_library(before: Mapping[str, Any]) -> None:
    for owner, holder in _owners().items():
        for name, value in list(vars(holder).items()):
            honest = before.get(f"{owner}.{name}")
            if honest is None and callable(value):
                delattr(holder, name)
            elif honest is not None and honest is not value:
                setattr(holder, name, honest)


def _restore_environment(before: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(before)


_RESTORE: dict[str, Callable[[Any], Any]] = {
    "Python's global random generator": random.setstate,
    "NumPy's global random generator": np.random.set_state,
    "torch's default type": torch.set_default_dtype,
    "torch's number of threads": torch.set_num_threads,
    "whether gradients are recorded": torch.set_grad_enabled,
    "whether algorithms are deterministic": torch.use_deterministic_algorithms,
    "the precision of matrix products": torch.set_float32_matmul_precision,
    "environment variables": _restore_environment,
    "the working directory": os.chdir,
    "torch's own classes and functions": _restore_library,
}

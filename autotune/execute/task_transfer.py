"""Sending a task to workers by value, its data apart from the rest: whoever shares memory with
others (Ray's object store does) then holds the data once, not once a worker."""

from __future__ import annotations

import io
import pickle
import warnings
from collections.abc import Sequence
from typing import Any

import cloudpickle
import numpy as np
import torch
from numpy.typing import NDArray

from autotune.execute.task_address import module_of
from autotune.train import Data, Task, TaskError, TorchTask, as_task
from autotune.train.data import TensorPairs
from autotune.train.state import as_bytes
from autotune.train.tensors import map_tensors

Block = NDArray[np.uint8]


class _Pickler(cloudpickle.Pickler):
    """Takes the tensors of data splits out of band. Only theirs: batches are copied out of
    them, nobody writes to them, so that workers may share one copy."""

    def reducer_override(self, value: Any) -> Any:
        if type(value) is TensorPairs:
            return TensorPairs, map_tensors(_Sent, (value.inputs, value.targets))
        return super().reducer_override(value)


class _Sent:
    """A tensor on its way: pickled as its bytes and what they mean."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def __reduce__(self) -> Any:
        block: Any = as_bytes(self.tensor).numpy()
        about = self.tensor.dtype, tuple(self.tensor.shape)
        return _arrived, (pickle.PickleBuffer(block), *about)


def _arrived(block: Any, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    if 0 in shape:
        return torch.empty(shape, dtype=dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given (NumPy array|buffer) is not writable")
        return torch.from_numpy(np.frombuffer(block, np.uint8)).view(dtype).reshape(shape)


def dump(task: Any, apart: list[Block] | None = None) -> bytes:
    """A task in bytes; the blocks of its data are appended to `apart` (None: they are in the
    bytes too).

    Raises:
        TaskError: it is no task, or holds something that cannot be sent.
    """
    task = as_task(task)
    stream = io.BytesIO()

    def set_apart(buffer: pickle.PickleBuffer) -> None:
        assert apart is not None
        apart.append(np.frombuffer(buffer.raw(), np.uint8))

    callback = None if apart is None else set_apart
    try:
        _Pickler(stream, protocol=5, buffer_callback=callback).dump(task)
    except Exception as error:
        raise TaskError(
            f"the task cannot be sent to workers: {type(error).__name__}: {error}. Make what "
            "cannot be pickled (open files, locks, connections) inside the model or data factory"
        ) from error
    return stream.getvalue()


def dump_with_code(address: str, task: Any, apart: list[Block]) -> bytes | None:
    """A task that has an address, with the code of its module, if that holds its data: workers
    that import it would each hold a copy. None: they had better import it.

    Args:
        task: what is at `address`.
        apart: as in `dump`.
    """
    if not (isinstance(task, TorchTask) and isinstance(task.data, Data)):
        return None
    module = module_of(address)
    cloudpickle.register_pickle_by_value(module)
    try:
        return dump(task, apart)
    except TaskError:
        apart.clear()
        return None
    finally:
        cloudpickle.unregister_pickle_by_value(module)


def load(pickled: bytes, blocks: Sequence[Block] = ()) -> Task:
    """The inverse of `dump`; the data stays where `blocks` lie."""
    task: Task = pickle.loads(pickled, buffers=blocks)
    return task

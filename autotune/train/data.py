"""The user's data: splits, shifted streams and augmentation, and how batches are drawn.

Sample order and augmentation are functions of (seed, epoch, index), so that a position in the
training data is two numbers, whatever the batch size and the number of loader workers.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, default_collate

from autotune.space import Configuration
from autotune.train.generators import derive_seed
from autotune.train.state import as_bytes
from autotune.train.task import Part, TaskError
from autotune.train.tensors import describe, map_tensors, tensors_of

Augment = Callable[[Any, Tensor, Configuration], Any]
Pair = tuple[Any, Any]


@dataclass(frozen=True)
class Data:
    """What a model is trained and judged on.

    A split is a pair ``(inputs, targets)`` of tensors (the fast way; inputs may also be a
    tuple or dict of tensors), or a map-style data set whose items are such pairs; `train` may
    be an iterable data set. Random numbers that a data set draws in ``__getitem__`` are
    seeded by (seed, epoch, index), those of a validation or test set by index alone.

    Args:
        train: trained on, in a fresh order each epoch.
        validation: the learning curve is measured on it after each unit.
        test: looked at once, by the winner.
        shifted: streams of a shifted distribution, by name, for choosing test-time adaptation;
            batches with even numbers choose, those with odd numbers report.
        shifted_test: the same, looked at once by the winner.
        augment: ``augment(inputs, uniforms, configuration) -> inputs`` on a training batch,
            on the run's device. `uniforms`, shape (batch, augment_draws), holds numbers in
            [0, 1) that depend on (seed, epoch, index, draw) alone; `configuration` is the
            trial's.
        augment_draws: uniforms for each sample.
        collate: makes a batch ``(inputs, targets)`` of a list of items; torch's by default.
            Not used for tensor pairs.
        workers: loader processes for a map-style `train`; 0 loads in the run's own process.
        samples_per_epoch: after how many samples an epoch of an iterable `train` ends, needed
            where it has no length.
        evaluation_batch_size: samples a forward pass when measuring.
        stream_batch_size: samples a batch of a shifted stream, which is what test-time
            adaptation adapts to.
    """

    train: Any
    validation: Any
    test: Any = None
    shifted: Mapping[str, Any] = field(default_factory=dict)
    shifted_test: Mapping[str, Any] = field(default_factory=dict)
    augment: Augment | None = None
    augment_draws: int = 0
    collate: Callable[[list[Any]], Pair] | None = None
    workers: int = 0
    samples_per_epoch: int | None = None
    evaluation_batch_size: int = 512
    stream_batch_size: int = 64

    def __post_init__(self) -> None:
        for name in ("train", "validation", "test"):
            value = getattr(self, name)
            if value is not None or name != "test":
                object.__setattr__(self, name, _split(name, value, iterable=name == "train"))
        for name in ("shifted", "shifted_test"):
            streams = getattr(self, name) or {}
            if not isinstance(streams, Mapping):
                raise TaskError(f"Data.{name}: expected a mapping of names to streams")
            checked = {key: _split(f"{name}[{key!r}]", item) for key, item in streams.items()}
            object.__setattr__(self, name, checked)
        if self.augment_draws < 0 or self.workers < 0:
            raise TaskError("Data.augment_draws and Data.workers cannot be negative")
        for name in ("evaluation_batch_size", "stream_batch_size"):
            if getattr(self, name) < 1:
                raise TaskError(f"Data.{name} is {getattr(self, name)}; expected at least 1")

    @property
    def epoch_samples(self) -> int:
        """Samples in one pass over the training data."""
        if self.samples_per_epoch is not None:
            return self.samples_per_epoch
        try:
            return len(self.train)
        except TypeError:
            raise TaskError(
                "Data.train is an iterable data set without a length; "
                "give Data(samples_per_epoch=...)"
            ) from None


class TensorPairs(Dataset[Pair]):
    """A data set of tensors that are cut along their first axis, many samples at once."""

    def __init__(self, inputs: Any, targets: Any) -> None:
        self.inputs = inputs
        self.targets = targets

    def __len__(self) -> int:
        return len(tensors_of(self.targets)[0])

    def __getitem__(self, index: int) -> Pair:
        return self.take([index])

    def take(self, indices: Any) -> Pair:
        """The samples at `indices`, as one batch."""
        at = torch.as_tensor(indices)

        def pick(tensor: Tensor) -> Tensor:
            return tensor.index_select(0, at.to(tensor.device))

        return map_tensors(pick, self.inputs), map_tensors(pick, self.targets)


class SeededItems(Dataset[Any]):
    """A map-style data set whose own random numbers depend on (seed, index) alone: the global
    generators are seeded for each item and put back after it."""

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        outside = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
        seed = derive_seed(self.seed, index)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        torch.default_generator.manual_seed(seed)
        try:
            return _pair(self.dataset[index], f"item {index} of the data set")
        finally:
            random.setstate(outside[0])
            np.random.set_state(outside[1])  # noqa: NPY002
            torch.set_rng_state(outside[2])


def order(seed: int, epoch: int, samples: int) -> NDArray[np.int64]:
    """The order in which an epoch visits the samples: a permutation, shape (samples,)."""
    return np.random.default_rng(derive_seed("order", seed, epoch)).permutation(samples)


def uniforms(seed: int, epoch: int, indices: NDArray[np.int64], draws: int) -> Tensor:
    """Random numbers in [0, 1) for augmentation, float32 of shape (len(indices), draws).

    Each is a hash (SplitMix64; Steele, Lea and Flood 2014) of (seed, epoch, index, draw), so
    the batch that a sample is in makes no difference.
    """
    counters = indices[:, None] * max(draws, 1) + np.arange(draws, dtype=np.int64)
    start = np.full(counters.shape, derive_seed("augment", seed, epoch), dtype=np.uint64)
    bits = start + (counters.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    bits = bits ^ (bits >> np.uint64(31))
    return torch.from_numpy((bits >> np.uint64(40)).astype(np.float32)) * 2.0**-24


def batches(
    data: Data, dataset: Any, size: int, indices: Sequence[int] | None = None
) -> Iterator[Pair]:
    """The samples of a split in their own order (or those at `indices`), `size` at a time."""
    chosen = np.arange(len(dataset)) if indices is None else np.asarray(indices)
    for start in range(0, len(chosen), size):
        yield fetch(data, dataset, chosen[start : start + size], seed=0)


def fetch(data: Data, dataset: Any, indices: NDArray[np.int64], seed: int) -> Pair:
    """One batch of the samples at `indices`, loaded in this process."""
    if isinstance(dataset, TensorPairs):
        return dataset.take(indices)
    items = SeededItems(dataset, seed)
    return collate(data, [items[int(index)] for index in indices])


def collate(data: Data, items: list[Any]) -> Pair:
    """One batch of a list of items."""
    made = (data.collate or default_collate)(items)
    return _pair(made, "Data.collate" if data.collate else "the collated batch")


def loader(data: Data, groups: Sequence[NDArray[np.int64]], seed: int) -> DataLoader[Any]:
    """Loader processes that fetch the given groups of samples, one batch each, in order."""
    return DataLoader(
        SeededItems(data.train, seed),
        batch_sampler=[group.tolist() for group in groups],
        num_workers=data.workers,
        collate_fn=partial(collate, data),
        generator=torch.Generator().manual_seed(0),  # else it draws from the global one
    )


def part_of_stream(samples: int, batch_size: int, part: Part) -> list[list[int]]:
    """The batches of one part of a stream, as lists of indices. Even batches select, odd ones
    report; a stream shorter than two batches is cut into halves."""
    size = max(1, min(batch_size, (samples + 1) // 2))
    groups = [list(range(at, min(at + size, samples))) for at in range(0, samples, size)]
    return groups[0 if part == "select" else 1 :: 2]


def fingerprint(data: Data) -> str:
    """A digest of sizes, types and a sample of the content of every split."""
    digest = hashlib.sha256()
    splits = {"train": data.train, "validation": data.validation, "test": data.test}
    splits |= {f"shifted.{name}": split for name, split in data.shifted.items()}
    splits |= {f"shifted_test.{name}": split for name, split in data.shifted_test.items()}
    for name, split in splits.items():
        if split is None:
            continue
        digest.update(name.encode())
        if is_iterable(split):
            digest.update(f"{type(split).__qualname__} {data.samples_per_epoch}".encode())
            continue
        digest.update(str(len(split)).encode())
        sample = np.unique(np.linspace(0, len(split) - 1, 32).astype(np.int64))
        if isinstance(split, TensorPairs):
            content: Any = split.take(sample)
        else:
            content = [SeededItems(split, 0)[int(index)] for index in sample[::4]]
        digest.update(describe(content).encode())
        tensors = tensors_of(content)
        for tensor in tensors:
            digest.update(describe(tensor).encode())
            digest.update(as_bytes(tensor).numpy().tobytes()[: 1 << 16])
        if not tensors:
            digest.update(repr(content).encode())
    return digest.hexdigest()[:16]


def is_iterable(dataset: Any) -> bool:
    """Whether samples can only be had one after the other."""
    return isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__")


def _split(name: str, value: Any, iterable: bool = False) -> Any:
    where = f"Data.{name}"
    if isinstance(value, DataLoader):
        raise TaskError(f"{where} is a DataLoader; give its data set, autotune makes the batches")
    if isinstance(value, TensorDataset) and len(value.tensors) == 2:
        value = value.tensors
    if isinstance(value, tuple) and len(value) == 2:
        return _tensor_pairs(where, value[0], value[1])
    if isinstance(value, TensorPairs):
        return value
    if isinstance(value, Mapping) or not (
        hasattr(value, "__getitem__") or hasattr(value, "__iter__")
    ):
        raise TaskError(
            f"{where} is {describe(value)}; expected a pair (inputs, targets) of tensors "
            "or a data set of such pairs"
        )
    if is_iterable(value):
        if not iterable:
            raise TaskError(
                f"{where} is an iterable data set; only Data.train may be one. "
                "Give a map-style data set or a pair of tensors"
            )
    elif not hasattr(value, "__len__"):
        raise TaskError(f"{where} of type {type(value).__name__} has no __len__")
    elif len(value) == 0:
        raise TaskError(f"{where} is empty")
    return value


def _tensor_pairs(where: str, inputs: Any, targets: Any) -> TensorPairs:
    def tensor(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: tensor(item) for key, item in value.items()}
        if isinstance(value, tuple):
            return tuple(tensor(item) for item in value)
        if isinstance(value, np.ndarray):
            return torch.from_numpy(value)
        if not isinstance(value, Tensor) or value.ndim == 0:
            raise TaskError(
                f"{where} is a pair with {describe(value)} in it; expected tensors, or a tuple "
                "or dict of them, with one entry a sample"
            )
        return value.detach()

    pairs = TensorPairs(tensor(inputs), tensor(targets))
    lengths = {len(item) for item in tensors_of((pairs.inputs, pairs.targets))}
    if len(lengths) != 1:
        raise TaskError(
            f"{where}: {describe((pairs.inputs, pairs.targets))} differ in the number of samples"
        )
    if lengths == {0}:
        raise TaskError(f"{where} is empty")
    return pairs


def _pair(value: Any, where: str) -> Pair:
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise TaskError(f"{where} is {describe(value)}; expected a pair (inputs, targets)")
    return value[0], value[1]

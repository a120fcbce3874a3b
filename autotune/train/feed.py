"""The training batches of one run, and where the run stands in them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from autotune.train.data import (
    Data,
    collate,
    fetch,
    is_iterable,
    loader,
    order,
    uniforms,
)
from autotune.train.generators import derive_seed
from autotune.train.task import TaskError
from autotune.train.team import Team


@dataclass(frozen=True)
class Batch:
    """Samples to train on, on the CPU: this process's `own` of the batch's `samples`.
    `uniforms` has shape (own, draws)."""

    inputs: Any
    targets: Any
    samples: int
    own: int
    uniforms: Tensor


class Feed:
    """Training batches in an order fixed by (seed, epoch).

    `epoch` counts from 0, `batch` and `offset` are the batches and samples already taken from
    it; together they are the position that a checkpoint keeps.

    Of a batch that a `team` trains on, each process gets its part.
    """

    def __init__(self, data: Data, seed: int, team: Team | None = None) -> None:
        self.data = data
        self._team = team
        self.seed = seed
        self.epoch = 0
        self.batch = 0
        self.offset = 0
        self._iterable = is_iterable(data.train)
        if self._iterable:
            self._stream = _Stream(data)
        self._order: NDArray[np.int64] | None = None
        self._loading: tuple[int, int, Iterator[Any]] | None = None

    @property
    def exhausted(self) -> bool:
        """Whether the epoch is known to hold no more batches. An iterable data set may turn
        out to hold none only when asked."""
        return self.offset >= self.data.epoch_samples

    def next_epoch(self) -> None:
        """Move to the start of the next epoch."""
        self.epoch += 1
        self.batch = self.offset = 0
        self._order = self._loading = None
        if self._iterable:
            self._stream.start(self.epoch)

    def planned(self, size: int, batches: int = 1) -> int:
        """How many samples the next `batches` batches of the epoch will hold together, if
        `size` are asked for each time."""
        left = self.data.epoch_samples - self.offset
        count = 0
        for _ in range(batches):
            count += self._cut(left - count, size)
        return count

    def next(self, size: int) -> Batch | None:
        """The next batch of the epoch, None at its end.

        It holds `size` samples, or what the epoch has left; a last batch that leaves anyone a
        single sample, on which batch norm is undefined, is joined to the one before it.
        """
        count = self.planned(size)
        if count <= 0:
            return None
        if self._iterable:
            items = self._stream.take(count, self.epoch, self.offset)
            if not items:
                return None
            count = len(items)
            indices = np.arange(self.offset, self.offset + count)[self._part(count)]
            inputs, targets = collate(self.data, items[self._part(count)])
        else:
            indices = self._indices(self.offset, count)[self._part(count)]
            if self.data.workers:
                inputs, targets = self._loaded(size)
            else:
                seed = derive_seed("item", self.seed, self.epoch)
                inputs, targets = fetch(self.data, self.data.train, indices, seed)
        self.offset += count
        self.batch += 1
        draws = uniforms(self.seed, self.epoch, indices, self.data.augment_draws)
        return Batch(inputs, targets, count, len(indices), draws)

    def samples_in(self, batches: int, size: int) -> int:
        """Samples in the first `batches` batches of a run at a constant `size`."""
        left = self.data.epoch_samples
        cuts: list[int] = []
        while left > 0:
            cuts.append(self._cut(left, size))
            left -= cuts[-1]
        epochs, rest = divmod(batches, len(cuts))
        return epochs * self.data.epoch_samples + sum(cuts[:rest])

    def state_dict(self) -> dict[str, Any]:
        """The position, and an iterable data set's own state where it offers one."""
        state: dict[str, Any] = {"epoch": self.epoch, "batch": self.batch, "offset": self.offset}
        if self._iterable:
            state["stream"] = self._stream.state_dict(self.offset)
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.epoch, self.batch, self.offset = state["epoch"], state["batch"], state["offset"]
        self._order = self._loading = None
        if self._iterable:
            self._stream.load_state_dict(self.epoch, state["stream"])

    def _indices(self, start: int, count: int) -> NDArray[np.int64]:
        if self._order is None:
            self._order = order(self.seed, self.epoch, len(self.data.train))
        return self._order[start : start + count]

    def _loaded(self, size: int) -> Any:
        """The next batch from loader processes, which work ahead at the present size; they
        start anew where the size has changed."""
        if self._loading is None or self._loading[:2] != (size, self.offset):
            groups, at = [], self.offset
            while at < self.data.epoch_samples:
                count = self._cut(self.data.epoch_samples - at, size)
                groups.append(self._indices(at, count)[self._part(count)])
                at += count
            seed = derive_seed("item", self.seed, self.epoch)
            self._loading = (size, self.offset, iter(loader(self.data, groups, seed)))
        batch = next(self._loading[2])
        self._loading = (size, self.offset + self.planned(size), self._loading[2])
        return batch

    def _cut(self, left: int, size: int) -> int:
        """Samples of the next batch where `left` remain: nobody gets a single one at the end."""
        least = 2 if self._team is None else 2 * self._team.size
        return max(0, left) if left < size + least else size

    def _part(self, count: int) -> slice:
        if self._team is None:
            return slice(count)
        if count < self._team.size:
            raise TaskError(
                f"a batch of {count} cannot be divided among a team of {self._team.size} "
                "workers; expected a batch_size of at least that"
            )
        return self._team.part(count)


class _Stream:
    """An iterable data set, as a copy private to the run, since it may keep its own position.

    An epoch iterates a fresh copy. One that offers `state_dict` and is cut by
    `Data.samples_per_epoch` before its end goes on in the next epoch where it was cut.
    """

    def __init__(self, data: Data) -> None:
        self._data = data
        self._resumable = can_resume(data.train)
        self._renew(0)

    def _renew(self, epoch: int) -> None:
        try:
            self._dataset = copy.deepcopy(self._data.train)
        except TypeError as error:
            raise TaskError(
                f"Data.train, an iterable data set, cannot be copied ({error}); "
                "each run needs one of its own"
            ) from error
        if hasattr(self._dataset, "set_epoch"):
            self._dataset.set_epoch(epoch)
        self._items: Iterator[Any] | None = None
        self._ended = False

    def start(self, epoch: int) -> None:
        """Go to the start of an epoch."""
        goes_on = self._resumable and self._data.samples_per_epoch is not None
        carried = self._dataset.state_dict() if goes_on and not self._ended else None
        self._renew(epoch)
        if carried is not None:
            self._dataset.load_state_dict(carried)

    def take(self, count: int, epoch: int, offset: int) -> list[Any]:
        """The next `count` items, fewer at the end."""
        if self._items is None:
            self._items = iter(self._dataset)
        items = list(islice(self._items, count))
        if not items and offset == 0 and not self._ended:
            self._renew(epoch)  # the cut fell on the stream's very end
            self._items = iter(self._dataset)
            items = list(islice(self._items, count))
        if not items and offset == 0:
            raise TaskError("Data.train, an iterable data set, yields no samples")
        self._ended = len(items) < count
        return items

    def state_dict(self, offset: int) -> Any:
        if self._resumable:
            return {"dataset": self._dataset.state_dict(), "ended": self._ended}
        if offset:
            raise TaskError(
                "Data.train is an iterable data set without state_dict and load_state_dict, so "
                "a run can be frozen at the end of an epoch only"
            )
        return None

    def load_state_dict(self, epoch: int, state: Any) -> None:
        self._renew(epoch)
        if self._resumable:
            self._dataset.load_state_dict(state["dataset"])
            self._ended = state["ended"]


def can_resume(dataset: Any) -> bool:
    """Whether an iterable data set can tell and take back its position."""
    return hasattr(dataset, "state_dict") and hasattr(dataset, "load_state_dict")

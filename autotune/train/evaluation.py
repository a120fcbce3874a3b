"""Measuring a model: loss, accuracy and the user's metrics over batches, and its latency."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from autotune.train.data import Data, Pair, batches, is_iterable, order
from autotune.train.feed import Feed
from autotune.train.task import TaskError
from autotune.train.tensors import describe, tensors_of, to_device

Loss = Callable[[Tensor, Any], Tensor]
Metric = Any
IGNORED = -100
"""The target that `torch.nn.functional.cross_entropy` leaves out by default."""


def score(
    predict: Callable[[Any], Any],
    pairs: Iterable[Pair],
    loss: Loss,
    metrics: Mapping[str, Metric],
    device: torch.device,
) -> dict[str, float]:
    """``loss`` (mean over samples), ``accuracy`` where the targets are classes, and the user's
    metrics. A metric that is a function sees the whole split at once, as ``metric(outputs,
    targets)``; one with ``update`` and ``compute`` (torchmetrics) is fed batch by batch.
    """
    samples = correct = counted = 0
    total = torch.zeros((), dtype=torch.float64)
    kept: list[Pair] = []
    streaming = {name: metric for name, metric in metrics.items() if hasattr(metric, "update")}
    for metric in streaming.values():
        metric.reset()
        if hasattr(metric, "to"):
            metric.to(device)
    for pair in pairs:
        inputs, targets = to_device(pair, device)
        outputs = check_outputs(predict(inputs), inputs)
        with torch.no_grad():
            count = len(outputs)
            total += apply_loss(loss, outputs, targets).detach().cpu().double() * count
            samples += count
            hits = _hits(outputs, targets)
            if hits is not None:
                correct += int(hits[0])
                counted += int(hits[1])
            for metric in streaming.values():
                metric.update(outputs, targets)
            if len(streaming) < len(metrics):
                kept.append((outputs, targets))
    if not samples:
        raise TaskError("there are no samples to measure on")
    result = {"loss": total.item() / samples}
    if counted:
        result["accuracy"] = correct / counted
    if kept:
        joined = _join([pair[0] for pair in kept]), _join([pair[1] for pair in kept])
    for name, metric in metrics.items():
        with torch.no_grad():
            value = metric.compute() if name in streaming else metric(*joined)
        result[name] = as_number(value, f"the metric {name!r}")
    return result


def apply_loss(loss: Loss, outputs: Tensor, targets: Any) -> Tensor:
    """The user's loss, checked to be one number."""
    try:
        value = loss(outputs, targets)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        error.add_note(
            f"raised by the task's loss on outputs {describe(outputs)} "
            f"and targets {describe(targets)}"
        )
        raise
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise TaskError(f"the loss returned {describe(value)}; expected a tensor of one number")
    return value.reshape(())


def check_outputs(outputs: Any, inputs: Any) -> Tensor:
    """The model's outputs, checked to be a tensor with one entry a sample."""
    if not isinstance(outputs, Tensor):
        raise TaskError(
            f"the model returned {describe(outputs)}; expected one tensor of shape (batch, ...). "
            "Wrap the model so that its forward returns, say, the logits"
        )
    given = tensors_of(inputs)
    if outputs.ndim == 0 or (given and len(outputs) != len(given[0])):
        raise TaskError(
            f"the model turned inputs {describe(inputs)} into {describe(outputs)}; expected "
            "the first axis to hold the samples"
        )
    return outputs


def as_number(value: Any, what: str) -> float:
    """A metric's value as a float."""
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TaskError(f"{what} returned {describe(value)}; expected one number") from error


class SourceInputs:
    """Batches of training inputs, not augmented, in an order of their own; can be iterated
    again and again. What adapters and test-time adaptation may look at."""

    def __init__(self, data: Data, seed: int, device: torch.device) -> None:
        self._data = data
        self._seed = seed
        self._device = device

    def __iter__(self) -> Iterator[Any]:
        if is_iterable(self._data.train):
            feed = Feed(self._data, self._seed)
            while (batch := feed.next(self._data.stream_batch_size)) is not None:
                yield to_device(batch.inputs, self._device)
            return
        train = self._data.train
        indices: Sequence[int] = order(self._seed, 0, len(train)).tolist()
        for inputs, _ in batches(self._data, train, self._data.stream_batch_size, indices):
            yield to_device(inputs, self._device)

    def __deepcopy__(self, memo: dict[int, Any]) -> SourceInputs:
        return self


def time_prediction(
    predict: Callable[[Any], Any],
    inputs: Any,
    device: torch.device,
    seconds: float = 0.5,
) -> tuple[float, float]:
    """Median milliseconds of ``predict(inputs)`` and half the interquartile range, over 20 to
    200 repeats (as many as fit into `seconds`), after a warm-up of at least five."""

    def once() -> float:
        start = time.perf_counter()
        predict(inputs)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    collecting = gc.isenabled()
    gc.disable()
    try:
        begin = time.perf_counter()
        warm = 0
        while warm < 5 or (warm < 50 and time.perf_counter() - begin < seconds / 5):
            once()
            warm += 1
        times: list[float] = []
        begin = time.perf_counter()
        while len(times) < 20 or (len(times) < 200 and time.perf_counter() - begin < seconds):
            times.append(once() * 1000)
    finally:
        if collecting:
            gc.enable()
    lower, median, upper = statistics.quantiles(times, n=4)
    return median, (upper - lower) / 2


def _hits(outputs: Tensor, targets: Any) -> tuple[Tensor, int] | None:
    """Correct predictions and how many were asked for, if the targets are class indices.
    The classes are the last axis (language models) or the second (images)."""
    if not isinstance(targets, Tensor) or targets.dtype == torch.bool:
        return None
    if targets.is_floating_point() or targets.is_complex():
        return None
    if outputs.ndim != targets.ndim + 1 or not outputs.is_floating_point():
        return None
    if outputs.shape[:-1] == targets.shape:
        predicted = outputs.argmax(-1)
    elif outputs.shape[:1] + outputs.shape[2:] == targets.shape:
        predicted = outputs.argmax(1)
    else:
        return None
    counted = targets != IGNORED
    return ((predicted == targets) & counted).sum(), int(counted.sum())


def _join(values: list[Any]) -> Any:
    first = values[0]
    if isinstance(first, Tensor):
        return torch.cat(values)
    if isinstance(first, Mapping):
        return {key: _join([value[key] for value in values]) for key in first}
    if isinstance(first, tuple | list):
        return type(first)(_join(list(items)) for items in zip(*values, strict=True))
    raise TaskError(f"targets hold {describe(first)}; the metrics need tensors")

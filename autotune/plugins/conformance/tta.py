"""What a test-time adaptation must and must not do."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autotune.plugins.conformance import laboratory
from autotune.plugins.conformance.comparing import (
    Fault,
    difference,
    loaded,
    stored,
    through_storage,
    unchanged,
    within_remit,
)
from autotune.plugins.training import TTA

BATCHES = 5


@dataclass(frozen=True)
class StreamErrand:
    """What another process is to do: load `state` and predict the rest of the stream."""

    plugin: type[TTA]
    configuration: dict[str, Any]
    bench: laboratory.Bench
    state: bytes
    start: int
    expected: bytes

    def perform(self, folder: Path) -> str | None:
        """In the other process: adapt to another stream, then to the rest of this one."""
        _follow(_prepared(self.plugin, self.configuration, self.bench, 1), _stream(self.bench, 30))
        method = _prepared(self.plugin, self.configuration, self.bench)
        method.load_state_dict(loaded(self.state))
        return difference(
            loaded(self.expected), _follow(method, _stream(self.bench)[self.start :], self.start)
        )


def check_stream(
    plugin: type[TTA], configuration: Mapping[str, Any], bench: laboratory.Bench
) -> StreamErrand:
    """Predict a stream, again, and again frozen and thawed at every batch with another stream
    in between. Returns what a second process must reproduce."""
    stream = _stream(bench)
    straight = _follow(_prepared(plugin, configuration, bench), stream)
    again = _follow(_prepared(plugin, configuration, bench), stream)
    where = difference(straight, again)
    if where is not None:
        raise Fault(
            f"the same stream gives other logits the second time, at batch {where}; all "
            "randomness must come from torch's global generator"
        )
    method = _prepared(plugin, configuration, bench)
    states = []
    for batch, inputs in enumerate(stream):
        states.append(through_storage(dict(method.state_dict()), "its state_dict"))
        _follow(_prepared(plugin, configuration, bench, 1), _stream(bench, 30)[:1])
        fresh = _prepared(plugin, configuration, bench)
        fresh.load_state_dict(copy.deepcopy(states[-1]))
        where = difference(straight[batch], _predict(fresh, inputs, batch))
        if where is not None:
            raise Fault(
                f"frozen before batch {batch} and thawed, its logits differ from the "
                f"uninterrupted stream ({where}); something it remembers is not in its state_dict"
            )
        method = fresh
    half = BATCHES // 2
    return StreamErrand(
        plugin, dict(configuration), bench, stored(states[half]), half, stored(straight[half:])
    )


def check_logits(plugin: type[TTA], configuration: Mapping[str, Any]) -> None:
    """`predict` gives finite logits without gradients for batches of any size, whether or not
    gradients are recorded around it, and leaves the inputs alone."""
    for bench in _benches(plugin):
        recorded = _prepared(plugin, configuration, bench)
        unrecorded = _prepared(plugin, configuration, bench)
        for batch, inputs in enumerate([*_stream(bench), bench.examples(1, 40)[0]]):
            given = inputs.clone()
            logits = _predict(recorded, inputs, batch)
            with torch.no_grad():
                same = _predict(unrecorded, inputs, batch)
            if not torch.equal(inputs, given):
                raise Fault("predict changes the batch that it is given")
            expected = (len(inputs), laboratory.CLASSES)
            if not isinstance(logits, Tensor) or logits.shape != expected:
                shown = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits)
                raise Fault(f"predict gives {shown} for a batch of {len(inputs)}, not {expected}")
            if not logits.isfinite().all():
                raise Fault(
                    f"predict gives logits that are not finite for a batch of {len(inputs)}"
                )
            if logits.requires_grad:
                raise Fault("predict gives logits that carry gradients")
            if difference(logits, same) is not None:
                raise Fault("predict gives other logits under torch.no_grad()")


def check_reset(plugin: type[TTA], configuration: Mapping[str, Any]) -> None:
    """After `reset` it is as after `prepare`: in its state, and in what it predicts."""
    for bench in _benches(plugin):
        stream = _stream(bench)
        method = _prepared(plugin, configuration, bench)
        start = through_storage(dict(method.state_dict()), "its state_dict")
        first = _follow(method, stream)
        for _ in range(2):
            with within_remit("reset"):
                method.reset()
            again = _follow(method, stream)
            where = difference(first, again)
            if where is not None:
                raise Fault(
                    "after reset it predicts otherwise than after prepare, at batch "
                    f"{where}; reset must restore the state after prepare"
                )
        method.reset()
        where = difference(start, through_storage(dict(method.state_dict()), "its state_dict"))
        if where is not None:
            raise Fault(f"reset does not restore the state after prepare ({where})")


def check_remit(plugin: type[TTA], configuration: Mapping[str, Any]) -> None:
    """It touches the copy of the model that it is given, and no other model."""
    for bench in _benches(plugin):
        original = laboratory.trained_model(bench)
        probe = bench.examples(6, 50)[0]
        weights = {n: t.clone() for n, t in original.state_dict().items()}
        with torch.no_grad():
            before = original(probe)
        with within_remit("prepare"):
            method = _prepared(plugin, configuration, bench, original=original)
        with within_remit("predict"):
            _follow(method, _stream(bench))
        unchanged(weights, original, "it changes a model other than the copy it was given")
        with torch.no_grad():
            after = original(probe)
        if original.training or difference(before, after) is not None:
            raise Fault("it changes how a model other than the copy it was given computes")


CHECKS = (check_logits, check_reset, check_remit)


def _benches(plugin: type[TTA]) -> list[laboratory.Bench]:
    return [bench for bench in laboratory.BENCHES if plugin.supports(bench.info()) is None]


def _stream(bench: laboratory.Bench, seed: int = 20) -> list[Tensor]:
    """Batches of shifted inputs; the last one is smaller."""
    sizes = [6] * (BATCHES - 1) + [4]
    batches = [bench.examples(size, seed + i)[0] for i, size in enumerate(sizes)]
    return [b * 0.5 + 0.7 if b.is_floating_point() else (b + 2) % 11 for b in batches]


def _prepared(
    plugin: type[TTA],
    configuration: Mapping[str, Any],
    bench: laboratory.Bench,
    seed: int = 0,
    original: nn.Module | None = None,
) -> TTA:
    model = laboratory.trained_model(bench, seed) if original is None else original
    method = plugin(configuration)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        method.prepare(copy.deepcopy(model), [bench.examples(6, 60 + i)[0] for i in range(3)])
    return method


def _predict(method: TTA, inputs: Tensor, batch: int) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(batch)
        return method.predict(inputs)


def _follow(method: TTA, stream: Sequence[Tensor], start: int = 0) -> list[Tensor]:
    return [_predict(method, inputs, batch) for batch, inputs in enumerate(stream, start)]

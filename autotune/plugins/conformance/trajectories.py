"""A run that is frozen and thawed at every batch must equal one that never stops."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autotune.plugins.base import Plugin
from autotune.plugins.conformance import laboratory
from autotune.plugins.conformance.comparing import (
    Fault,
    difference,
    loaded,
    stored,
    through_storage,
)
from autotune.train import NotFinite, Run, RunContext

BATCHES = 16
"""How long a run is: more than two epochs of seven batches, the last one smaller."""

HALFWAY = 8
"""Where the run is carried over to another process: in the middle of accumulating gradients
over two batches, just after an epoch's end."""

SEED, OTHER_SEED = 1, 2
"""Of the trial under check, and of the trial that comes in between."""


@dataclass(frozen=True)
class Point:
    """A run after some batches: its metrics and whole state, or the loss that was no number."""

    metrics: dict[str, float] | None
    state: Any


@dataclass(frozen=True)
class RunErrand:
    """What another process is to do: thaw `state` and train to the end."""

    plugin: type[Plugin]
    configuration: dict[str, Any]
    bench: laboratory.Bench
    state: bytes
    batches: int
    expected: bytes

    def perform(self, folder: Path) -> str | None:
        """In the other process: train another trial, then this one. What is wrong, or None."""
        _disturb(opened(self.plugin, self.bench, self.configuration, OTHER_SEED, folder), 3)
        run = opened(self.plugin, self.bench, self.configuration, SEED, folder)
        run.thaw(loaded(self.state))
        *_, last = follow(run, self.batches)
        return difference(loaded(self.expected), _plain(last))


def opened(
    plugin: type[Plugin],
    bench: laboratory.Bench,
    configuration: Mapping[str, Any],
    seed: int,
    folder: Path,
) -> Run:
    """A run at its start."""
    context = RunContext(seed=seed, horizon=BATCHES, folder=folder)
    return laboratory.task(bench, plugin).open(dict(configuration), context)


def follow(run: Run, batches: int = BATCHES) -> Iterator[Point]:
    """Train batch by batch; ends early where the loss is no longer finite."""
    for _ in range(batches):
        try:
            metrics = dict(run.train())
        except NotFinite:
            yield Point(None, None)
            return
        yield Point(metrics, run.freeze())


def check_run(
    plugin: type[Plugin],
    configuration: Mapping[str, Any],
    other: Mapping[str, Any],
    bench: laboratory.Bench,
) -> RunErrand | None:
    """Train the plugin under a configuration, again from the same seed, and again frozen and
    thawed at every batch with batches of another trial (configuration `other`) in between.

    Returns:
        What a second process must reproduce; None if the loss was no number on the way.

    Raises:
        Fault: names the batch and the first value that differs.
    """
    whole = laboratory.trial(plugin, configuration, bench)
    stranger = laboratory.trial(plugin, other, bench)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        straight = list(follow(opened(plugin, bench, whole, SEED, folder)))
        again = list(follow(opened(plugin, bench, whole, SEED, folder)))
        for batch, (one, two) in enumerate(zip(straight, again, strict=False), 1):
            where = difference(_plain(one), _plain(two))
            if where is not None:
                raise Fault(
                    f"the same seed gives another result at batch {batch} ({where}); all "
                    "randomness must come from the generator handed in or torch's global one"
                )
        for batch in range(1, len(straight)):
            _disturb(opened(plugin, bench, stranger, OTHER_SEED, folder), 1)
            _check_thaw(straight, batch, opened(plugin, bench, whole, SEED, folder))
    if len(straight) < BATCHES or straight[-1].metrics is None:
        return None
    return RunErrand(
        plugin=plugin,
        configuration=whole,
        bench=bench,
        state=stored(straight[HALFWAY - 1].state),
        batches=BATCHES - HALFWAY,
        expected=stored(_plain(straight[-1])),
    )


def _check_thaw(straight: Sequence[Point], batch: int, run: Run) -> None:
    """Thaw what was stored after `batch` batches, and train one more."""
    frozen = through_storage(straight[batch - 1].state, "the frozen run")
    run.thaw(frozen)
    where = difference(straight[batch - 1].state, run.freeze())
    if where is not None:
        raise Fault(
            f"a state frozen after batch {batch} is another one after thawing ({where}); "
            "load_state_dict must restore all that state_dict gives"
        )
    (after,) = follow(run, 1)
    where = difference(_plain(straight[batch]), _plain(after))
    if where is not None:
        raise Fault(
            f"frozen after batch {batch} and thawed, batch {batch + 1} differs from the "
            f"uninterrupted run ({where}); something it remembers is not in its state_dict"
        )


def _disturb(run: Run, batches: int) -> None:
    """Another trial at work in the same process."""
    with suppress(NotFinite):
        for _ in range(batches):
            run.train()


def _plain(point: Point) -> dict[str, Any]:
    return {"metrics": point.metrics, "state": point.state}

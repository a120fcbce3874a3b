"""A study's curves as forecasters look at them: oriented so that less is better, brought to one
scale, and bounded, however many trials and observations there are.

A run that diverged is evidence: whatever is not finite, and the unit at which a trial failed,
counts as a value far worse than where trials start.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from autotune.decide import scale as scales
from autotune.decide.scale import Scale
from autotune.plugins.search import Event, Failed, FloatArray, Objective, Observed
from autotune.plugins.trials import Trials

TRIALS = 200
"""Forecasters learn from no more trials: the better half by their best value, the rest the
newest."""

POINTS = 16
"""Of a curve no more observations are looked at: the newest, and ever sparser towards its
start."""

GROWTH = 1.25
"""What the curves have in common is learned anew when trials or observations have grown by this
factor since the last time."""

DIVERGED = 1.5
"""The normalised value of a run that diverged or failed; 1 is about where trials start."""


@dataclass
class Curve:
    """One trial's steps, ascending, and its oriented values; infinite where it diverged. `best` is
    the least of them."""

    steps: array[int] = field(default_factory=lambda: array("q"))
    values: array[float] = field(default_factory=lambda: array("d"))
    best: float = math.inf

    def add(self, step: int, value: float) -> None:
        """Append a value; one at an earlier step was trained again, and what followed with it."""
        if self.steps and self.steps[-1] >= step:
            kept = bisect_left(self.steps, step)
            del self.steps[kept:], self.values[kept:]
            self.best = min(self.values, default=math.inf)
        self.steps.append(step)
        self.values.append(value)
        self.best = min(self.best, value)


@dataclass(frozen=True)
class Sample:
    """Some curves, bounded; arrays padded at the end of each row.

    Args:
        numbers: of the trials.
        steps, values: (trials, points), values normalised; at least one a trial.
        known: (trials, points), False where padded.
        horizon: (trials,).
    """

    numbers: tuple[int, ...]
    steps: FloatArray
    values: FloatArray
    known: NDArray[np.bool_]
    horizon: FloatArray

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def count(self) -> NDArray[np.intp]:
        """Points of each trial, shape (trials,)."""
        return np.asarray(self.known.sum(axis=1))

    def last(self) -> tuple[FloatArray, FloatArray]:
        """Step and value of every trial's last point, each (trials,)."""
        row, place = np.arange(len(self)), self.count - 1
        return self.steps[row, place], self.values[row, place]


@dataclass
class History:
    """All curves of a study, their scale, and when both were last learned.

    Args:
        learned_at: numbers of trials and observations at that time.
    """

    objective: Objective
    scale: Scale
    curves: dict[int, Curve] = field(default_factory=dict)
    observations: int = 0
    learned_at: tuple[int, int] = (0, 0)

    def record(self, event: Event, trials: Trials) -> bool:
        """Fold an event; whether it is time to learn anew. The scale is, then."""
        match event:
            case Observed(trial=number, step=step, metrics=metrics):
                value = trials.score(metrics)
                finite = value if math.isfinite(value) else math.inf
                self.curves.setdefault(number, Curve()).add(step, finite)
            case Failed(trial=number, evaluation=None):
                curve = self.curves.setdefault(number, Curve())
                curve.add((curve.steps[-1] if curve.steps else 0) + 1, math.inf)
            case _:
                return False
        self.observations += 1
        known, observed = self.learned_at
        if len(self.curves) < GROWTH * known and self.observations < GROWTH * observed:
            return False
        self.learned_at = (len(self.curves), self.observations)
        self._rescale()
        return True

    def _rescale(self) -> None:
        firsts = [c.values[0] for c in self.curves.values() if c.values[0] < math.inf]
        bests = [c.best for c in self.curves.values() if c.best < math.inf]
        if firsts:
            self.scale = scales.fitted(self.objective, firsts, bests)
        elif bests:
            self.scale = scales.fitted(self.objective, bests, bests)

    def chosen(self, count: int = TRIALS) -> list[int]:
        """At most `count` trials, ascending: the better half by best value, the rest the newest."""
        known = sorted(self.curves)
        if len(known) <= count:
            return known
        ranked = sorted(known, key=lambda number: (self.curves[number].best, number))
        better = set(ranked[: count // 2])
        newest = [number for number in reversed(known) if number not in better]
        return sorted([*better, *newest[: count - len(better)]])

    def sample(self, numbers: list[int], trials: Trials, points: int = POINTS) -> Sample:
        """The curves of `numbers`, thinned to at most `points` points each."""
        shape = (len(numbers), points)
        steps, values = np.ones(shape), np.zeros(shape)
        known = np.zeros(shape, dtype=bool)
        for row, number in enumerate(numbers):
            curve = self.curves[number]
            places = thinned(len(curve.steps), points)
            steps[row, : len(places)] = [curve.steps[place] for place in places]
            values[row, : len(places)] = [curve.values[place] for place in places]
            known[row, : len(places)] = True
        values = self.scale.normalise(values)
        values = np.where(np.isfinite(values), values, DIVERGED)
        horizon = np.array([trials[number].horizon for number in numbers], dtype=np.float64)
        return Sample(tuple(numbers), steps, values, known, horizon)


def beginning(objective: Objective) -> History:
    """Before any event: the scale is that of the metric's bounds, if they are known."""
    ends = oriented_bounds(objective)
    if ends is None:
        return History(objective, Scale())
    return History(objective, Scale(ends[0], ends[1] - ends[0]))


def oriented_bounds(objective: Objective) -> tuple[float, float] | None:
    """The metric's bounds, where they are known, oriented so that less is better, ascending."""
    if objective.bounds is None:
        return None
    low, high = sorted(objective.sign * bound for bound in objective.bounds)
    return low, high


def thinned(count: int, points: int) -> list[int]:
    """Ascending places of at most `points` of `count` observations: both ends, dense at the
    last."""
    if count <= points:
        return list(range(count))
    back = np.geomspace(1, count, points)
    # Distances from the end, at least one apart.
    distance = np.maximum(np.round(back).astype(int) - 1, np.arange(points))
    return sorted({count - 1 - int(place) for place in distance})

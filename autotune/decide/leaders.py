"""Which of the search's own trials lead, and which of them could go on: kept in order event by
event, so that no decision looks through all trials for them."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator

from autotune.plugins.search import (
    Decided,
    Event,
    Evicted,
    Extended,
    Failed,
    Frozen,
    Lost,
    Restarted,
    Start,
    Thaw,
)
from autotune.plugins.trials import Trials

_Standing = tuple[float, float]
_Entry = tuple[_Standing, int]

_NOWHERE = (math.inf, math.inf)


class Leaders:
    """A fold of events.

    Attributes:
        bests: where each trial that has a finite value stands at its best unit: what it violates
            of the constraints, then the value, oriented so that less is better.
    """

    def __init__(self) -> None:
        self.bests: dict[int, _Standing] = {}
        self._ranked: list[_Entry] = []
        self._frozen: list[_Entry] = []
        self._placed: dict[int, _Entry] = {}
        self._flying: set[int] = set()

    def observe(self, event: Event, trials: Trials) -> None:
        """Fold one event that `trials` has folded already."""
        for number, _, metrics in trials.settled(event):
            if trials[number].own:
                self._improve(number, (trials.violation(metrics), trials.score(metrics)))
        match event:
            case Decided(decision=Start(trial=number) | Thaw(trial=number)):
                self._flying.add(number)
                self._place(number, trials)
            case Frozen(trial=number) | Failed(trial=number) | Lost(trial=number):
                self._place(number, trials)
            case Evicted(trial=number):
                self._place(number, trials)
            case Restarted():
                for number in sorted(self._flying):
                    self._place(number, trials)
            case Extended():  # with a longer horizon, what was done may go on
                for number in trials.all:
                    self._place(number, trials)
            case _:
                pass

    def _improve(self, number: int, standing: _Standing) -> None:
        before = self.bests.get(number, _NOWHERE)
        if not math.isfinite(standing[1]) or not standing < before:
            return
        if number in self.bests:
            del self._ranked[bisect_left(self._ranked, (before, number))]
        self.bests[number] = standing
        insort(self._ranked, (standing, number))

    def _place(self, number: int, trials: Trials) -> None:
        """Among those that could go on, or not: where it stands changes only until it is frozen."""
        entry = self._placed.pop(number, None)
        if entry is not None:
            del self._frozen[bisect_left(self._frozen, entry)]
        trial = trials[number]
        if trial.status != "running":
            self._flying.discard(number)
        if trial.status == "frozen" and trial.own:
            self._placed[number] = self.bests.get(number, _NOWHERE), number
            insort(self._frozen, self._placed[number])

    @property
    def feasible(self) -> int:
        """How many trials have a value and violate no constraint."""
        return bisect_right(self._ranked, ((0.0, math.inf), 0))

    def is_feasible(self, number: int) -> bool:
        """Whether a trial has a value and violates no constraint."""
        return not self.bests.get(number, _NOWHERE)[0] > 0

    def best(self, count: int) -> list[int]:
        """So many trials with a value, best first."""
        return [number for _, number in self._ranked[:count]]

    def frozen(self) -> Iterator[int]:
        """The trials that could go on, best first; without a value last."""
        return (number for _, number in self._frozen)

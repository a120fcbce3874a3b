"""The rungs that every bandit here promotes from: who got where, and who may go on.

A trial is trained to a rung and paused. Whenever a worker is free, the best paused trial that is
among the best 1/`reduction` of all that got to its rung is promoted to the next (Li et al. 2020,
1810.05934, algorithm 2). What differs between the bandits is where the ladder begins and ends, and
how a rung ranks its trials.

A step costs a bisection in a sorted list, whose entries a single move of memory shifts: a few
microseconds with ten thousand trials.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from autotune.plugins.search import (
    Decided,
    Event,
    Evicted,
    Failed,
    Frozen,
    Objective,
    ProposeFunction,
    SearchContext,
    Start,
    Stop,
    Thaw,
    Wait,
)
from autotune.plugins.trials import Trial, Trials
from autotune.space import Integer, Space


def reduction_space() -> Space:
    """The factor between rungs, which every bandit has."""
    return Space({"reduction": Integer(2, 6, default=3)})


def rung_units(horizon: int, reduction: int) -> list[int]:
    """Units of the rungs, ascending: the horizon divided by powers of `reduction`, rounded up,
    down to 1 or the last that is not below it."""
    units = [horizon]
    while horizon / reduction ** len(units) >= 1:
        units.append(math.ceil(horizon / reduction ** len(units)))
    return units[::-1]


class Rung(Protocol):
    """What is known at one rung, and whom it lets go on."""

    def enter(self, number: int, values: Sequence[float], violation: float = 0.0) -> None:
        """A trial got here with these values, oriented so that less is better, and so far beyond
        its constraints: whoever is less beyond stands before it."""

    def fail(self, number: int) -> None:
        """A trial ended badly on its way here: it counts as the worst."""

    def leave(self, number: int) -> None:
        """A trial is no longer paused here."""

    def promotable(self) -> int | None:
        """The best paused trial that is among the best of all that got here, one in so many, their
        number rounded down; None if there is none."""


class SingleRung:
    """Ranks by one objective; of equals the earlier trial comes first. What is not finite is
    never promoted.

    Args:
        reduction: one in so many may go on.
    """

    def __init__(self, reduction: int) -> None:
        self._reduction = reduction
        self.seen: list[tuple[float, float, int]] = []
        self.paused: list[tuple[float, float, int]] = []
        self._score: dict[int, tuple[float, float]] = {}

    def enter(self, number: int, values: Sequence[float], violation: float = 0.0) -> None:
        """A trial got here with one value."""
        (value,) = values
        if not math.isfinite(value):
            return self.fail(number)
        self._score[number] = violation, value
        insort(self.seen, (violation, value, number))
        insort(self.paused, (violation, value, number))

    def fail(self, number: int) -> None:
        """It stands behind all others."""
        insort(self.seen, (math.inf, math.inf, number))

    def leave(self, number: int) -> None:
        """It is promoted, or failed since."""
        entry = (*self._score.get(number, (math.inf, math.inf)), number)
        place = bisect_left(self.paused, entry)
        if self.paused[place : place + 1] == [entry]:
            del self.paused[place]

    def promotable(self) -> int | None:
        """The first that is paused, if it is among the first of all."""
        if not self.paused:
            return None
        first = self.paused[0]
        leads = bisect_left(self.seen, first) < len(self.seen) // self._reduction
        return first[2] if leads else None


class Ladder:
    """One ladder of rungs: the state of ASHA, or of a bracket of Hyperband.

    Trials bound to a horizon at a rung are compared there only with each other, but at their end
    with all. A trial that failed counts at the rung that it did not reach. What breaks a constraint
    stands behind what breaks none, or less.

    A trial that left its rung and was cut short of the next, by the end of a budget say, stands at
    none: it goes on to the next before any other is promoted.

    Attributes:
        units: of the rungs, ascending; places count from 0 in it.
        reached: the place of every trial that got to one.
    """

    def __init__(
        self,
        units: Sequence[int],
        reduction: int,
        objectives: Sequence[Objective],
        rung: Callable[[int], Rung] = SingleRung,
    ) -> None:
        self.units = list(units)
        self.reached: dict[int, int] = {}
        self._under_way: dict[int, None] = {}
        self._reduction = reduction
        self._objectives = tuple(objectives)
        self._new_rung = rung
        self._rungs: list[dict[int | None, Rung]] = [{} for _ in self.units]

    def observe(self, event: Event, trials: Trials) -> None:
        """Fold one event of a trial of this ladder."""
        match event:
            case Decided(decision=Start(trial=number) | Thaw(trial=number)):
                self._leave(trials[number])
                self._under_way[number] = None
            case Frozen(trial=number):
                trial = trials[number]
                place = self.reached.get(number, -1) + 1
                while place < len(self.units) and self.units[place] <= trial.frozen:
                    self._leave(trial)
                    known = trials.known(number, self.units[place])
                    rung = self._rung(trial, place)
                    rung.enter(number, self._values(known), trials.violation(known))
                    self.reached[number] = place
                    self._under_way.pop(number, None)
                    place += 1
                if trial.status == "done":
                    self._drop(trial)  # at the head of a rung it would keep all others there
                if trial.barred and number not in self.reached:
                    self._rung(trial, 0).fail(number)
            case Evicted(trial=number) if trials[number].status == "evicted":
                self._drop(trials[number])  # to train it from nothing costs more than it promises
            case Failed(trial=number, evaluation=None):
                trial = trials[number]
                self._drop(trial)
                place = self.reached.get(number, -1) + 1
                if place < len(self.units):
                    self._rung(trial, place).fail(number)
            case _:
                pass

    def promotion(self, trials: Trials, top: int | None = None) -> Thaw | None:
        """The rest of the way of a trial that was cut short of a rung, else the promotion from
        the highest rung that has one.

        Args:
            top: place that none is promoted beyond; the last unless given.
        """
        top = len(self.units) - 1 if top is None else top
        for cut in self._under_way:
            place = self.reached.get(cut, -1) + 1
            if trials[cut].status == "frozen" and place <= top:
                return Thaw(cut, self.units[place])
        for place in range(top - 1, -1, -1):
            # Free trials first, then those bound to a horizon, the shortest first.
            for _, rung in sorted(self._rungs[place].items(), key=lambda item: item[0] or 0):
                number = rung.promotable()
                if number is not None and trials[number].status == "frozen":
                    return Thaw(number, self.units[place + 1])
        return None

    def bound(self, trial: Trial, place: int) -> int | None:
        """The horizon that a trial depends on at a rung; None where it is free, or at its end."""
        unit = self.units[place]
        bound = trial.bound_from is not None and unit > trial.bound_from * trial.horizon
        return trial.horizon if bound and unit != trial.horizon else None

    def _rung(self, trial: Trial, place: int) -> Rung:
        rungs, bound = self._rungs[place], self.bound(trial, place)
        if bound not in rungs:
            rungs[bound] = self._new_rung(self._reduction)
        return rungs[bound]

    def _drop(self, trial: Trial) -> None:
        """It goes on no more."""
        self._under_way.pop(trial.number, None)
        self._leave(trial)

    def _leave(self, trial: Trial) -> None:
        if trial.number in self.reached:
            self._rung(trial, self.reached[trial.number]).leave(trial.number)

    def _values(self, known: Mapping[str, float]) -> list[float]:
        return [o.sign * known.get(o.name, math.nan) for o in self._objectives]


def start(
    context: SearchContext, propose: ProposeFunction, trials: Trials, to: int
) -> Start | Wait | Stop:
    """A new trial to unit `to`; where none may be started, wait for what is in flight, else the
    search is over."""
    limit = context.budget.trials
    proposed = propose(1) if limit is None or len(trials) < limit else []
    if proposed:
        return Start(len(trials), proposed[0], context.horizon, to)
    if trials.in_flight:
        return Wait()
    return Stop("no trial is left to start or to promote")

"""Asynchronous successive halving by promotion: many short trials, few long ones."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from dataclasses import dataclass, field
from typing import Any

from autotune.plugins.search import (
    Decided,
    Event,
    Failed,
    ForecastFunction,
    Frozen,
    Key,
    Policy,
    ProposeFunction,
    SearchContext,
    Start,
    Stop,
    Thaw,
    Wait,
)
from autotune.plugins.trials import Trial, Trials
from autotune.space import Configuration, Integer, Space


@dataclass
class _Rung:
    """What is known at one rung: all scores in order, and the trials paused there."""

    scores: list[float] = field(default_factory=list)
    paused: list[tuple[float, int]] = field(default_factory=list)

    def promotable(self, reduction: int) -> int | None:
        """The best paused trial, if it is among the best 1/reduction of all seen here."""
        if not self.paused:
            return None
        score, number = self.paused[0]
        if math.isinf(score) or bisect_left(self.scores, score) >= len(self.scores) // reduction:
            return None
        return number


@dataclass
class _State:
    """Rungs by (their place, horizon of the bound trials compared there or None), and the place
    that each trial has reached."""

    rungs: dict[tuple[int, int | None], _Rung] = field(default_factory=dict)
    reached: dict[int, int] = field(default_factory=dict)


class SuccessiveHalving(Policy):
    """ASHA: whenever a worker is free, promote the best paused trial that is among the best
    1/`reduction` at its rung, from the highest rung down; start a new one if there is none.

    Rungs are at the horizon divided by powers of `reduction`, rounded up. Trials are paused, not
    stopped. A failed trial counts at the rung it did not reach as the worst. Trials bound to a
    horizon at a rung are compared there only with each other, at equal horizon.
    """

    name = "successive_halving"
    summary = "asynchronous successive halving: promote the best third at each rung"
    reference = "Li et al. 2020, A System for Massively Parallel Hyperparameter Tuning, 1810.05934"

    @classmethod
    def space(cls) -> Space:
        """The factor between rungs."""
        return Space({"reduction": Integer(2, 6, default=3)})

    def initial(self, context: SearchContext) -> _State:
        """No rung holds anything."""
        return _State()

    def observe(
        self, context: SearchContext, state: _State, event: Event, trials: Trials
    ) -> _State:
        """Enter a frozen trial at the rungs it has reached."""
        match event:
            case Decided(decision=Thaw(trial=number)):
                self._leave(state, trials[number])
            case Frozen(trial=number):
                trial = trials[number]
                levels = self.rungs(trial.horizon)
                place = state.reached.get(number, -1)
                while place + 1 < len(levels) and levels[place + 1] <= trial.frozen:
                    self._leave(state, trial)
                    place += 1
                    score = trials.score(trial.metrics.get(levels[place], {}))
                    self._enter(state, trial, place, score)
            case Failed(trial=number, evaluation=None):
                trial = trials[number]
                self._leave(state, trial)
                place = state.reached.get(number, -1) + 1
                if place < len(self.rungs(trial.horizon)):
                    self._rung(state, trial, place).scores.append(math.inf)
            case _:
                pass
        return state

    def rungs(self, horizon: int) -> list[int]:
        """Units of the rungs, ascending; the last is the horizon."""
        reduction = int(self.configuration["reduction"])
        levels = [horizon]
        while horizon / reduction ** len(levels) >= 1:
            levels.append(math.ceil(horizon / reduction ** len(levels)))
        return levels[::-1]

    def _rung(self, state: _State, trial: Trial, place: int) -> _Rung:
        unit = self.rungs(trial.horizon)[place]
        bound = trial.bound_from is not None and unit > trial.bound_from * trial.horizon
        ended = unit == trial.horizon
        key = (place, trial.horizon if bound and not ended else None)
        return state.rungs.setdefault(key, _Rung())

    def _enter(self, state: _State, trial: Trial, place: int, score: float) -> None:
        rung = self._rung(state, trial, place)
        score = score if math.isfinite(score) else math.inf
        insort(rung.scores, score)
        insort(rung.paused, (score, trial.number))
        state.reached[trial.number] = place

    def _leave(self, state: _State, trial: Trial) -> None:
        if trial.number not in state.reached:
            return
        rung = self._rung(state, trial, state.reached[trial.number])
        rung.paused = [entry for entry in rung.paused if entry[1] != trial.number]

    def decide(
        self,
        context: SearchContext,
        state: _State,
        propose: ProposeFunction,
        forecast: ForecastFunction,
        trials: Trials,
        key: Key,
    ) -> Start | Thaw | Wait | Stop:
        """Promote, else start."""
        for (place, _), rung in sorted(state.rungs.items(), key=_highest_first):
            number = rung.promotable(int(self.configuration["reduction"]))
            if number is None:
                continue
            levels = self.rungs(trials[number].horizon)
            if place + 1 < len(levels) and trials[number].status == "frozen":
                return Thaw(number, levels[place + 1])
        limit = context.budget.trials
        proposed: list[Configuration] = []
        if limit is None or len(trials) < limit:
            proposed = propose(1)
        if proposed:
            to = self.rungs(context.horizon)[0]
            return Start(len(trials), proposed[0], context.horizon, to)
        if trials.in_flight:
            return Wait()
        return Stop("no trial is left to start or to promote")


def _highest_first(entry: tuple[tuple[int, int | None], Any]) -> tuple[int, int]:
    (place, horizon), _ = entry
    return -place, horizon or 0

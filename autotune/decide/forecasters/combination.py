"""Combines forecasters by how well each has predicted this study so far."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from autotune.decide.forecasters.history import History, beginning, oriented_bounds
from autotune.decide.forecasters.quantiles import averaged
from autotune.plugins.base import PluginError
from autotune.plugins.discovery import get, records
from autotune.plugins.search import (
    Event,
    FloatArray,
    Forecast,
    Forecaster,
    Observed,
    Query,
    SearchContext,
)
from autotune.plugins.trials import Trials
from autotune.space import Categorical, Space

USUAL = ("gaussian_process", "last_value", "parametric", "pfn")
"""Members unless the user says otherwise."""

GROWTH = 1.5
"""Members are asked to predict what comes when there are so many times more observations than
the last time they were."""

ROUNDS = 6
"""What comes is held against no more of the newest rounds of predictions."""

ASKED = 24
"""A round asks about so many of the best trials that go on, and as many of the newest; of each the
next unit, that at twice its age, and the last."""

EFFECTIVE = 12.0
"""Predictions that members' records count for at most: those of one study hang together."""

FADING = 0.9
"""Each round so much of older records is kept."""

WORST = 8.0
"""No prediction counts for more nats below the best member's."""

LEAST = 0.02
"""Members of less weight are left out of a forecast."""


@dataclass
class Round:
    """Predictions made at one time by every member; `open` are those whose outcome has not come,
    or has not been scored, by (trial, step) their place."""

    forecasts: list[Forecast]
    open: dict[tuple[int | None, int], int]


@dataclass
class State:
    """The members' states and their records.

    Args:
        context: of the study.
        score, count: log density of what came, summed, by member; and how many came.
        arrived: outcomes since the last round, oriented.
        asked_at: number of observations at the last round.
    """

    context: SearchContext
    members: list[Any]
    history: History
    score: FloatArray
    count: float = 0.0
    rounds: list[Round] = field(default_factory=list)
    arrived: dict[tuple[int | None, int], float] = field(default_factory=dict)
    asked_at: int = 0

    @property
    def weights(self) -> FloatArray:
        """Of the members, summing to 1: equal at first, then by their mean log density."""
        if self.count == 0:
            return np.full(len(self.score), 1.0 / len(self.score))
        log = self.score / self.count * min(self.count, EFFECTIVE)
        weight = np.exp(log - log.max())
        return np.asarray(weight / weight.sum())


class Combination(Forecaster):
    """Averages its members' quantiles, each weighted by its record on this study.

    Now and then (`GROWTH`) every member predicts how some trials go on; when these observations
    come, the log density each member gave them counts. Which forecasters are members is said by
    name: ``{name: combination, pfn: true, last_value: false}``.

    Example:
        >>> forecaster = Combination({"parametric": False})                    # doctest: +SKIP
    """

    name = "combination"
    summary = "several forecasters, weighted by how well each has predicted this study so far"
    reference = (
        "Ratcliff 1979, Group reaction time distributions and an analysis of distribution "
        "statistics, Psychological Bulletin 86 (quantile averaging)"
    )

    def __init__(self, configuration: Mapping[str, Any] | None = None) -> None:
        super().__init__(configuration)
        self.names = tuple(name for name, chosen in self.configuration.items() if chosen)
        if not self.names:
            raise PluginError(
                f"forecaster {self.name!r} has no members: set at least one of "
                f"{', '.join(self.configuration)} to true"
            )
        self._members: list[Any] = [get("forecaster", name)() for name in self.names]

    @classmethod
    def space(cls) -> Space:
        """One switch for every forecaster that can be used here; at least one is on."""
        names = [record.name for record in records("forecaster") if record.name != cls.name]
        installed = [name for name in names if _usable(name)]
        return Space(
            {n: Categorical((True, False), default=n in USUAL) for n in installed},
            forbidden=[dict.fromkeys(installed, False)],
        )

    def initial(self, context: SearchContext) -> State:
        """All members are equally trusted."""
        members = [member.initial(context) for member in self._members]
        return State(context, members, beginning(context.objective), np.zeros(len(members)))

    def observe(self, state: State, event: Event, trials: Trials) -> State:
        """Pass the event on; now and then, score what was predicted, and predict anew."""
        state.members = [
            member.observe(inner, event, trials)
            for member, inner in zip(self._members, state.members, strict=True)
        ]
        state.history.record(event, trials)
        if isinstance(event, Observed):
            value = trials.score(event.metrics)
            if math.isfinite(value):
                state.arrived[event.trial, event.step] = value
            if state.history.observations >= GROWTH * max(state.asked_at, 2):
                self._score(state)
                self._ask(state, trials)
        return state

    def forecast(
        self, context: SearchContext, state: State, trials: Trials, queries: Sequence[Query]
    ) -> Forecast:
        """Predictive distributions for the queries."""
        weights = state.weights
        kept = np.flatnonzero(weights >= LEAST)
        forecasts = [
            self._members[place].forecast(context, state.members[place], trials, queries)
            for place in kept
        ]
        shares = weights[kept] / weights[kept].sum()
        return averaged(state.history.scale, forecasts, shares, oriented_bounds(context.objective))

    def _score(self, state: State) -> None:
        """Hold what arrived against what was predicted of it; it was forecast from at most
        `ROUNDS` earlier prefixes."""
        state.score *= FADING
        state.count *= FADING
        for made in state.rounds:
            come = [key for key in made.open if key in state.arrived]
            if not come:
                continue
            places = np.array([made.open.pop(key) for key in come])
            # What has not come is scored as its median would be, and not counted.
            density = []
            for forecast in made.forecasts:
                values = forecast.quantile(0.5)
                values[places] = [state.arrived[key] for key in come]
                density.append(forecast.log_density(values)[places])
            logs = np.array(density)
            logs = np.maximum(logs, logs.max(axis=0) - WORST)
            state.score += logs.sum(axis=1)
            state.count += len(come)
        state.arrived.clear()

    def _ask(self, state: State, trials: Trials) -> None:
        """A new round of predictions."""
        state.asked_at = state.history.observations
        queries = _asked(state.history, trials)
        if not queries:
            return
        forecasts = [
            member.forecast(state.context, inner, trials, queries)
            for member, inner in zip(self._members, state.members, strict=True)
        ]
        places: dict[tuple[int | None, int], int] = {
            (query.trial, query.step): place for place, query in enumerate(queries)
        }
        state.rounds = [*state.rounds[1 - ROUNDS :], Round(forecasts, places)]


def _asked(history: History, trials: Trials) -> list[Query]:
    """How some of the trials that can go on do so."""
    going = [
        number
        for number in history.chosen()
        if trials[number].failure is None and trials[number].last < trials[number].horizon
    ]
    best = sorted(going, key=lambda number: (history.curves[number].best, number))[:ASKED]
    newest = [number for number in reversed(going) if number not in set(best)][:ASKED]
    queries = []
    for number in sorted([*best, *newest]):
        last, horizon = trials[number].last, trials[number].horizon
        steps = {last + 1, min(2 * last, horizon), horizon} - {last, 0}
        queries += [Query(step, trial=number) for step in sorted(steps)]
    return queries


def _usable(name: str) -> bool:
    """Whether a forecaster can be made: it may need a package or a file that is not there."""
    try:
        get("forecaster", name)()
    except PluginError:
        return False
    return True

"""The stop by utility: the whole search ends when no further training is expected to be worth it.

The user says what an improvement is worth (`Utility`), which is a price: so much of the primary
objective must be gained for every unit (or second) of training. Before a segment is begun, the
forecaster is asked what the best conceivable one would gain: E[max(best - Y, 0)] for Y the value
at its end, over what it costs. Where even that is below the price, the search stops. The idea of
stopping a freeze-thaw search by the user's own trade-off between cost and performance is that of
Cost-Sensitive Freeze-thaw Bayesian Optimization (2510.21379), which learns curves and utility
jointly; here the utility is linear. A single verdict may be a slip of the forecast, so it only
voices a doubt (`Doubt`), which is recorded; `PATIENCE` of them in a row end the search.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from itertools import islice, takewhile

import numpy as np

from autotune.decide.configurations import identity, unseen
from autotune.decide.leaders import Leaders
from autotune.plugins.search import (
    Decided,
    Doubt,
    Event,
    Extended,
    Failed,
    Finalists,
    FloatArray,
    Forecast,
    ForecastFunction,
    Frozen,
    Key,
    Query,
    SearchContext,
    Start,
    Stop,
    Thaw,
    Utility,
)
from autotune.plugins.trials import Trials
from autotune.space import Configuration

EVERY = 5
"""The question is asked at every fifth decision: it costs about as much as a decision."""

PATIENCE = 3
"""So many verdicts in a row are needed."""

EVIDENCE = 10
"""It is not asked before so many trials have a value: the forecaster has to see how much
configurations differ before it can say that no other is better."""

LOOKED_AT = 40
"""So many frozen trials are looked at, those with the best values."""

NEW = 24
"""So many new configurations are looked at, half of them near the best trials."""

PARENTS = 4

_STREAM = 23
_LOWEST = 0.001
_NODES = np.concatenate([[0.0], np.geomspace(1e-3, 1.0, 19)])


def expected_improvement(forecast: Forecast, best: float) -> FloatArray:
    """E[max(best - Y, 0)] of every query, shape (queries,); in the objective's unit, less is
    better. The integral of P(Y < best - x) over x from 0 to where it is 0.001, by trapezoids."""
    reach = np.maximum(best - forecast.quantile(_LOWEST), 0.0)
    below = np.stack([forecast.probability_below(best - reach * node) for node in _NODES])
    return np.asarray(np.trapezoid(below, _NODES, axis=0) * reach)


@dataclass(frozen=True)
class _Prospect:
    """A segment that could be trained: of a trial, or of a new configuration (None), from unit
    `begin` to `end`; what a unit of it costs in seconds."""

    trial: int | None
    begin: int
    end: int
    seconds: float


class UtilityStop:
    """The fold and the verdict. What breaks a constraint improves nothing.

    Args:
        leaders: has always folded the events that are shown here.
    """

    def __init__(self, context: SearchContext, leaders: Leaders) -> None:
        self.context = context
        self._leaders = leaders
        self._aims: dict[int, int] = {}
        self._doubts = 0

    def observe(self, event: Event, trials: Trials) -> None:
        """Fold one event that `trials` has folded already."""
        match event:
            case Decided(decision=Doubt()):
                self._doubts += 1
            case Decided(number=number, decision=Start() | Thaw() as decision):
                # Nothing was asked for a segment that was lost or cut short before.
                if self._is_asked(number) and decision.trial not in self._aims:
                    self._doubts = 0  # it was asked then, and some training was worth its cost
                self._aims[decision.trial] = decision.to
            case Frozen(trial=number, step=step) if step >= self._aims.get(number, 0):
                self._aims.pop(number, None)
            case Failed(trial=number, evaluation=None):
                self._aims.pop(number, None)
            case Decided(decision=Finalists()):
                self._aims.clear()  # whatever was cut short is not gone on with
            case Extended():
                self.context, self._doubts = self.context.extended(event), 0
            case _:
                pass

    def _is_asked(self, number: int) -> bool:
        """Whether the question is asked at a decision of this number."""
        return (
            self.context.utility is not None
            and self._leaders.feasible >= EVIDENCE
            and number % EVERY == 0
        )

    def verdict(
        self, trials: Trials, forecast: ForecastFunction, key: Key, started: Container[str] | None
    ) -> Doubt | Stop | None:
        """That no further training pays, with the figures; None if one may, or if it is not the
        time to ask.

        Args:
            started: the identities of all configurations; None if no other may be started.
        """
        if not self._is_asked(key.number):
            return None
        reason = self._reason(trials, forecast, key, started)
        if reason is None:
            return None
        return Stop(reason) if self._doubts + 1 >= PATIENCE else Doubt(reason)

    def _reason(
        self, trials: Trials, forecast: ForecastFunction, key: Key, started: Container[str] | None
    ) -> str | None:
        utility = self.context.utility
        assert utility is not None, "it is asked only with one"
        _, best = self._leaders.bests[self._leaders.best(1)[0]]
        prospects, queries = self._prospects(trials, key, started)
        if not queries:
            return None
        gains = expected_improvement(forecast(queries), best)
        costs = np.array(
            [(p.end - p.begin) * (p.seconds if utility.units is None else 1.0) for p in prospects]
        )
        price = _price(utility, best)
        rates = gains / np.maximum(costs, 1e-12)
        chosen = int(np.argmax(rates))
        if rates[chosen] >= price:
            return None
        return _words(self.context, prospects[chosen], gains[chosen], costs[chosen], price)

    def _prospects(
        self, trials: Trials, key: Key, started: Container[str] | None
    ) -> tuple[list[_Prospect], list[Query]]:
        mean = trials.train_seconds / max(trials.units, 1)
        prospects: list[_Prospect] = []
        queries: list[Query] = []
        feasible = takewhile(self._leaders.is_feasible, self._leaders.frozen())
        for number in islice(feasible, LOOKED_AT):
            trial = trials[number]
            seconds = trial.seconds.total / max(len(trial.seconds), 1)
            for end in _ends(trial.frozen, trial.horizon):
                prospects.append(_Prospect(number, trial.frozen, end, seconds))
                queries.append(Query(end, trial=number))
        for configuration in [] if started is None else self._new(trials, key, started):
            for end in _ends(0, self.context.horizon):
                prospects.append(_Prospect(None, 0, end, mean))
                queries.append(Query(end, configuration=configuration))
        return prospects, queries

    def _new(self, trials: Trials, key: Key, started: Container[str]) -> list[Configuration]:
        """Configurations that were never started, some near the best trials, some random."""
        space, generator = self.context.space, key.generator(_STREAM)
        parents = self._leaders.best(PARENTS)
        near: dict[str, Configuration] = {}
        for index in range(NEW // 2):
            parent = trials[parents[index % len(parents)]]
            neighbour = space.neighbour(parent.configuration, generator)
            if identity(neighbour) not in started:
                near.setdefault(identity(neighbour), neighbour)
        return [*near.values(), *unseen(space, generator, NEW // 2, started, near)]


def _ends(begin: int, horizon: int) -> list[int]:
    """Where a segment from `begin` could end: after 1, 2, 4, ... units, and at the horizon."""
    steps = {1 << power for power in range((horizon - begin).bit_length())} | {horizon - begin}
    return [begin + step for step in sorted(steps) if 0 < step <= horizon - begin]


def _price(utility: Utility, best: float) -> float:
    """What must be gained, in the objective's unit, for every unit or second."""
    gain = utility.improvement
    if gain is None:
        assert utility.percent is not None, "one of the two is given"
        gain = utility.percent / 100 * abs(best)
    worth = utility.seconds if utility.units is None else utility.units
    assert worth is not None, "one of the two is given"
    return gain / worth


def _words(
    context: SearchContext, prospect: _Prospect, gain: float, cost: float, price: float
) -> str:
    assert context.utility is not None
    counted = "second" if context.utility.units is None else "unit"
    who = "a new configuration" if prospect.trial is None else f"trial {prospect.trial}"
    return (
        f"no further training is expected to pay: the most promising, {who} to unit "
        f"{prospect.end}, would improve {context.objective.name} by {gain:.3g} on average for "
        f"{cost:.3g} {counted}s, {gain / max(cost, 1e-12):.3g} a {counted}; asked for are "
        f"{price:.3g} a {counted}"
    )

"""A study without training: synthetic curves for the parts that decide to be tried on."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from autotune.plugins.search import (
    Budget,
    Decided,
    Event,
    Failed,
    FloatArray,
    Forecast,
    Frozen,
    Lost,
    Objective,
    Observed,
    Query,
    SearchContext,
    Start,
    Thaw,
)
from autotune.plugins.trials import Trials
from autotune.space import Categorical, Choice, Configuration, Float, Integer, Space

CONTEXT = SearchContext(
    space=Space(
        {
            "rate": Float(1e-4, 1.0, log=True, default=0.01),
            "width": Integer(4, 64, log=True, default=16),
            "method": Choice(
                {
                    "plain": Space({}),
                    "momentum": Space({"decay": Float(0.0, 0.99, default=0.9)}),
                },
                default="plain",
            ),
            "shape": Categorical(("round", "square"), default="round"),
        },
        forbidden=[{"method": "plain", "shape": "square"}],
    ),
    evaluation_space=Space({}),
    objectives=(Objective("validation_loss", "minimize", "curve"),),
    horizon=9,
    budget=Budget(trials=8),
    seed=3,
)
"""The study that they are tried on: conditional, with a forbidden combination."""

FAILING, LOST = 2, 3
"""The trials whose second segment fails, and whose first is lost."""


class Simulation:
    """Carries decisions out at once, on curves that fall like a power of the unit.

    Attributes:
        trials: to be folded by the caller, event by event.
        events: all that were given out, in order.
    """

    def __init__(self, context: SearchContext) -> None:
        self.context = context
        self.trials = Trials(context.space, context.objectives, context.constraints)
        self.events: list[Event] = []
        self._lost: set[int] = set()

    def carry_out(self, decision: Start | Thaw) -> list[Event]:
        """The events up to the next question: the decision, and, if no worker is free any
        more, the end of the segment that was begun first."""
        given: list[Event] = [Decided(self.trials.decisions, decision)]
        self.events += given
        if len(self.trials.in_flight) + 1 >= self.context.workers:
            running = [*self.trials.in_flight.values(), decision]
            given += self._segment(running[0])
        return given

    def finish_one(self) -> list[Event]:
        """The end of the segment in flight that was begun first."""
        return self._segment(next(iter(self.trials.in_flight.values())))

    def history(self) -> list[Event]:
        """A whole study in which chance decides, folded already."""
        rng = np.random.default_rng(self.context.seed)
        for number in range(self.context.budget.trials or 0):
            to = int(rng.integers(1, 5))
            configuration = self.context.space.sample(rng)
            self._fold(self.carry_out(Start(number, configuration, self.context.horizon, to)))
            waiting = [t for t in self.trials.all.values() if t.status in ("frozen", "new")]
            for trial in waiting:
                if rng.random() < 0.6:
                    to = min(trial.horizon, trial.frozen + int(rng.integers(1, 4)))
                    self._fold(self.carry_out(Thaw(trial.number, to)))
        return self.events

    def _fold(self, events: Sequence[Event]) -> None:
        for event in events:
            self.trials.observe(event)

    def _segment(self, decision: object) -> list[Event]:
        """What a worker reports of a segment."""
        assert isinstance(decision, Start | Thaw)
        number = decision.trial
        known = self.trials.all.get(number)
        frozen = known.frozen if known is not None else 0
        configuration = (
            decision.configuration
            if isinstance(decision, Start)
            else self.trials[number].configuration
        )
        given: list[Event] = []
        if number == FAILING and frozen > 0:
            given.append(Failed(number, frozen, "not_finite", "the loss is NaN"))
        elif number == LOST and number not in self._lost:
            self._lost.add(number)
            given.append(Lost(number, "the worker died"))
        else:
            to = min(decision.to, self.context.horizon)
            for step in range(frozen + 1, to + 1):
                metrics = {self.context.objective.name: self._value(configuration, number, step)}
                given.append(Observed(number, step, metrics, seconds=1.0))
            given.append(Frozen(number, to, f"checkpoint-{number}-{to}"))
        self.events += given
        return given

    def _value(self, configuration: Configuration, number: int, step: int) -> float:
        """Between 0.1 and 1.4, falling; negated where more is better."""
        encoded, _ = self.context.space.encode(configuration)
        floor = 0.1 + 0.5 * float(np.abs(encoded - 0.4).mean())
        noise = np.random.default_rng([number, step]).normal(scale=0.01)
        return self.context.objective.sign * float(floor + 0.8 * step**-0.7 + noise)


class PlainForecast(Forecast):
    """Normal around the last value seen of the trial, or of all trials."""

    def __init__(self, trials: Trials, queries: Sequence[Query]) -> None:
        last = {n: float(trials.scores(n)[1][-1]) for n, t in trials.all.items() if t.metrics}
        usual = sum(last.values()) / len(last) if last else 1.0
        means = [usual if q.trial is None else last.get(q.trial, usual) for q in queries]
        self._normals = [NormalDist(mean, 0.2) for mean in means]

    def __len__(self) -> int:
        return len(self._normals)

    def probability_below(self, threshold: float | FloatArray) -> FloatArray:
        """From the normal distribution."""
        limits = np.broadcast_to(threshold, len(self))
        return np.array([n.cdf(limit) for n, limit in zip(self._normals, limits, strict=True)])

    def quantile(self, probability: float) -> FloatArray:
        """From the normal distribution."""
        return np.array([normal.inv_cdf(probability) for normal in self._normals])

    def mean(self) -> FloatArray:
        """The last values seen."""
        return np.array([normal.mean for normal in self._normals])

    def log_density(self, value: FloatArray) -> FloatArray:
        """From the normal distribution."""
        pairs = zip(self._normals, value, strict=True)
        return np.array([np.log(normal.pdf(entry)) for normal, entry in pairs])

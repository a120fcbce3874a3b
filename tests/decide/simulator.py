"""Runs a `Search` against a function or a recorded table, without workers or a clock of its own.

Several workers are simulated by virtual time: a segment's units are observed when the segment
ends, in the order of ends.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from autotune.decide import Search
from autotune.plugins.search import (
    Decided,
    Doubt,
    Evaluate,
    Evaluated,
    Event,
    Failed,
    Finalists,
    Frozen,
    Key,
    Lost,
    Measure,
    Observed,
    Start,
    Stop,
    Thaw,
    Wait,
)
from autotune.space import Configuration

Curve = Callable[[Configuration, int], Mapping[str, float]]
Evaluation = Callable[[Configuration, Configuration], Mapping[str, float]]


def no_evaluation(training: Configuration, evaluation: Configuration) -> Mapping[str, float]:
    raise AssertionError("nothing should be evaluated")


@dataclass
class Simulator:
    """Everything a study would do, in virtual time.

    Args:
        curve: metrics of a configuration at a unit; a primary metric that is not finite fails
            the trial there.
        lose: numbers of decisions whose job is lost.
        fail: numbers of decisions whose job fails at once.
        luck: standard deviation of what chance adds to the primary metric, by trial and unit.
    """

    search: Search
    curve: Curve
    evaluation: Evaluation = no_evaluation
    seconds: float = 1.0
    lose: frozenset[int] = frozenset()
    fail: frozenset[int] = frozenset()
    luck: float = 0.0
    static: Callable[[Configuration], Mapping[str, float]] = lambda configuration: {}
    events: list[Event] = field(default_factory=list)
    clock: float = 0.0
    reason: str | None = None

    def run(self, most: int = 100_000) -> list[Event]:
        """Until the search stops; returns all events."""
        context = self.search.context
        ends: list[tuple[float, int, list[Event]]] = []
        order = itertools.count()
        for _ in range(most):
            while len(ends) < context.workers:
                number = self.search.trials.decisions
                decision = self.search.decide(Key(context.seed, number))
                if isinstance(decision, Wait):
                    assert ends, "waits although nothing is in flight"
                    break
                self.tell(Decided(number, decision, self.clock))
                if isinstance(decision, Stop):
                    assert not ends, "stops although something is in flight"
                    self.reason = decision.reason
                    return self.events
                if isinstance(decision, Doubt):
                    continue
                if isinstance(decision, Finalists):
                    assert not ends, "names finalists although something is in flight"
                    continue
                if isinstance(decision, Measure):
                    assert not ends, "measures although something is in flight"
                reports = list(self.reports(number, decision))
                heapq.heappush(ends, (reports[-1].at, next(order), reports))
            _, _, reports = heapq.heappop(ends)
            for report in reports:
                self.clock = max(self.clock, report.at)
                self.tell(report)
        raise AssertionError(f"no end after {most} jobs")

    def tell(self, event: Event) -> None:
        self.events.append(event)
        self.search.observe(event)

    def reports(self, number: int, decision: Any) -> Iterator[Event]:
        trial = self.search.trials[decision.trial]
        at = self.clock + self.seconds
        if isinstance(decision, Evaluate | Measure):
            if number in self.lose:
                yield Lost(trial.number, "lost", decision.evaluation, at)
            elif number in self.fail:
                yield Failed(trial.number, decision.step, "error", "fails", decision.evaluation, at)
            else:
                metrics = self.evaluation(trial.configuration, decision.evaluation)
                alone = {o.name for o in self.search.context.measured if o.alone}
                wanted = {
                    name: value
                    for name, value in metrics.items()
                    if (name in alone) == isinstance(decision, Measure)
                }
                yield Evaluated(
                    trial.number, decision.step, decision.evaluation, wanted, wanted, {}, 1.0, at
                )
            return
        if number in self.fail:
            yield Failed(trial.number, trial.frozen, "error", "fails", at=at)
            return
        objective = self.search.context.objective.name
        at = self.clock
        for step in range(trial.frozen + 1, decision.to + 1):
            at += self.seconds
            metrics = self.curve(trial.configuration, step)
            if self.luck:
                noise = np.random.default_rng([trial.number, step]).normal(scale=self.luck)
                metrics = {**metrics, objective: metrics[objective] + noise}
            if not math.isfinite(metrics[objective]):
                yield Failed(trial.number, step, "not_finite", "diverged", at=at)
                return
            yield Observed(trial.number, step, metrics, self.seconds, at)
        if number in self.lose:
            yield Lost(trial.number, "lost", at=at)
            return
        yield Frozen(
            trial.number,
            decision.to,
            f"{trial.number}-{decision.to}",
            self.static(trial.configuration),
            at=at,
        )


def decisions(
    events: list[Event],
) -> list[Start | Thaw | Finalists | Doubt | Evaluate | Measure | Stop]:
    return [event.decision for event in events if isinstance(event, Decided)]

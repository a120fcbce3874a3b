"""The trials of a study as a fold of its events: what every deciding part looks at.

`Trials.observe` does constant work an event. It holds no policy: which trial is worth thawing
is not its business.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from autotune.plugins.search import (
    Decided,
    Decision,
    Evaluate,
    Evaluated,
    Event,
    Failed,
    Finalists,
    FloatArray,
    Frozen,
    Lost,
    Measure,
    Objective,
    Observed,
    Origin,
    Restarted,
    Start,
    Thaw,
)
from autotune.space import Configuration, Space

Status = Literal["running", "frozen", "new", "done", "failed"]


@dataclass
class Trial:
    """One configuration, its curve and its frozen state.

    `steps` and `values` are the primary objective's curve in its own units; `metrics` all
    metrics by step. `frozen` is the last unit with a durable checkpoint (0: none), `target`
    where the segment in flight goes (None: none in flight). `new` is a trial whose only
    segment was lost before its first checkpoint. `repeat_of` is the trial whose configuration
    this one trains again on another seed, None of a trial in its own right. `origin` is what it
    was derived from in the final phase: a cooldown has the other's curve up to there, and stands
    there, with the other's checkpoint (`checkpoint` is None) until its own first one.
    """

    number: int
    configuration: Configuration
    encoded: FloatArray
    mask: np.ndarray
    horizon: int
    bound_from: float | None = None
    status: Status = "running"
    target: int | None = None
    frozen: int = 0
    checkpoint: str | None = None
    metrics: dict[int, dict[str, float]] = field(default_factory=dict)
    seconds: dict[int, float] = field(default_factory=dict)
    static: dict[str, float] = field(default_factory=dict)
    evaluations: list[Evaluated] = field(default_factory=list)
    evaluating: list[Configuration] = field(default_factory=list)
    failure: Failed | None = None
    losses: int = 0
    exact: bool = True
    segments: list[tuple[int, int]] = field(default_factory=list)
    repeat_of: int | None = None
    origin: Origin | None = None

    @property
    def own(self) -> bool:
        """Whether the search began it: it is no further training of the final phase."""
        return self.repeat_of is None and self.origin is None

    @property
    def last(self) -> int:
        """The last unit observed. (A unit that is trained again keeps its place in the dict.)"""
        return next(reversed(self.metrics), 0)

    def curve(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of one metric, in order of steps."""
        steps = sorted(step for step, values in self.metrics.items() if name in values)
        return steps, [self.metrics[step][name] for step in steps]


class Trials:
    """All trials, by number; and what has been spent. `further` counts those of the final phase
    that are not the search's own, `cooldowns` tells by trial which was branched off it."""

    def __init__(self, space: Space, objectives: tuple[Objective, ...]) -> None:
        self.space = space
        self.objectives = objectives
        self.objective = next(o for o in objectives if o.kind == "curve")
        self.all: dict[int, Trial] = {}
        self.units = 0
        self.train_seconds = 0.0
        self.at = 0.0
        self.decisions = 0
        self.in_flight: dict[int, Decision] = {}
        self.evaluations = 0
        self._alone = {o.name for o in objectives if o.alone}
        self.best: tuple[float, int, int] | None = None
        self.finalists: Finalists | None = None
        self.further = 0
        self.cooldowns: dict[int, int] = {}

    def __getitem__(self, number: int) -> Trial:
        return self.all[number]

    def __len__(self) -> int:
        return len(self.all)

    def score(self, metrics: Mapping[str, float]) -> float:
        """The primary objective, oriented so that less is better; NaN where missing."""
        return self.objective.sign * metrics.get(self.objective.name, math.nan)

    def scores(self, number: int) -> tuple[FloatArray, FloatArray]:
        """Steps and oriented values of a trial's curve, both shape (observations,)."""
        steps, values = self.all[number].curve(self.objective.name)
        return np.asarray(steps, dtype=np.float64), self.objective.sign * np.asarray(
            values, dtype=np.float64
        )

    def best_frozen(self, number: int) -> int:
        """The unit of a trial's best checkpoint: by the primary objective, of equals by the
        other curve objectives, then the earliest; 0 without a checkpoint. It is never deleted."""
        trial = self.all[number]
        curves = [o for o in self.objectives if o.kind == "curve"]
        curves.sort(key=lambda o: o is not self.objective)

        def rank(step: int) -> list[float]:
            values = [o.sign * trial.metrics[step].get(o.name, math.nan) for o in curves]
            return [*(math.inf if math.isnan(value) else value for value in values), step]

        frozen = {step for _, step in trial.segments if step in trial.metrics}
        return min(frozen, key=rank, default=0)

    def observe(self, event: Event) -> None:
        """Fold one event."""
        self.at = max(self.at, event.at)
        match event:
            case Decided(number=number, decision=decision):
                self.decisions = number + 1
                self._decided(decision)
            case Observed():
                trial = self.all[event.trial]
                repeated = event.step in trial.metrics
                trial.metrics[event.step] = dict(event.metrics)
                trial.seconds[event.step] = event.seconds
                self.train_seconds += event.seconds
                if not repeated:
                    self.units += 1
                    score = self.score(event.metrics)
                    if math.isfinite(score) and (self.best is None or score < self.best[0]):
                        self.best = (score, event.trial, event.step)
            case Frozen():
                trial = self.all[event.trial]
                trial.segments.append((trial.frozen, event.step))
                trial.frozen, trial.checkpoint = event.step, event.checkpoint
                trial.static = {**trial.static, **event.static}
                trial.exact = trial.exact and event.exact
                trial.target = None
                trial.status = "done" if event.step >= trial.horizon else "frozen"
                self.in_flight.pop(event.trial, None)
            case Evaluated():
                trial = self.all[event.trial]
                trial.evaluations.append(event)
                self._end_evaluation(trial, event.evaluation)
                if not event.select or set(event.select) - self._alone:
                    self.evaluations += 1
            case Failed():
                trial = self.all[event.trial]
                if event.evaluation is not None:
                    self._end_evaluation(trial, event.evaluation)
                else:
                    trial.failure, trial.status, trial.target = event, "failed", None
                    self.in_flight.pop(event.trial, None)
            case Lost():
                self._lose(self.all[event.trial], event.evaluation)
            case Restarted():
                for number in list(self.in_flight):
                    self._lose(self.all[number], None)
                for trial in self.all.values():
                    trial.evaluating.clear()

    def _decided(self, decision: Decision) -> None:
        match decision:
            case Start(trial=number):
                trial = self._started(decision)
                self.all[number] = trial
                self.further += not trial.own
                if trial.origin is not None and trial.origin.how == "cooldown":
                    self.cooldowns[trial.origin.trial] = number
                self.in_flight[number] = decision
            case Thaw(trial=number, to=to):
                self.all[number].target = to
                self.all[number].status = "running"
                self.in_flight[number] = decision
            case Finalists():
                self.finalists = decision
            case (
                Evaluate(trial=number, evaluation=evaluation)
                | Measure(trial=number, evaluation=evaluation)
            ):
                self.all[number].evaluating.append(evaluation)
            case _:
                pass

    def _started(self, decision: Start) -> Trial:
        """A trial as it begins. What is derived from another lies in the space where that does:
        its schedule may be none that the space has."""
        origin = decision.origin
        source = None if origin is None else self.all[origin.trial]
        encoded, mask = (
            self.space.encode(decision.configuration)
            if source is None
            else (source.encoded, source.mask)
        )
        trial = Trial(
            decision.trial,
            decision.configuration,
            encoded,
            mask,
            decision.horizon,
            decision.bound_from,
            target=decision.to,
            repeat_of=decision.repeat_of,
            origin=origin,
        )
        if origin is not None and source is not None and origin.how == "cooldown":
            trial.frozen = origin.step
            trial.metrics = {s: dict(m) for s, m in source.metrics.items() if s <= origin.step}
            trial.static = dict(source.static)
        return trial

    def _lose(self, trial: Trial, evaluation: Configuration | None) -> None:
        if evaluation is not None:
            self._end_evaluation(trial, evaluation)
            return
        trial.losses += 1
        trial.target = None
        trial.status = "frozen" if trial.frozen else "new"
        self.in_flight.pop(trial.number, None)

    @staticmethod
    def _end_evaluation(trial: Trial, evaluation: Configuration) -> None:
        if evaluation in trial.evaluating:
            trial.evaluating.remove(evaluation)

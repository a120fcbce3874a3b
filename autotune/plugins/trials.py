"""The trials of a study as a fold of its events: what every deciding part looks at.

`Trials.observe` does constant work an event. It holds no policy: which trial is worth thawing
is not its business. A trial is a state machine whose moves are events, so every one of them is in
the record; an event that cannot happen to a trial as it stands raises `IllegalEvent`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from autotune.plugins.columns import Metrics, Seconds
from autotune.plugins.constraints import Constraint, violation
from autotune.plugins.search import (
    Decided,
    Decision,
    Doubt,
    Equipped,
    Evaluate,
    Evaluated,
    Event,
    Evicted,
    Extended,
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
    Stop,
    Thaw,
    constrained_metrics,
)
from autotune.space import Configuration, Space

Status = Literal["new", "running", "frozen", "done", "failed", "evicted"]

_MOVES: dict[type, tuple[Status, ...]] = {
    Thaw: ("new", "frozen", "evicted"),
    Observed: ("running",),
    Frozen: ("running",),
    Failed: ("running",),
    Lost: ("running",),
    Evicted: ("frozen", "done", "failed"),
}
"""In which states a trial must be for what befalls its training. `Start` makes a trial, which
runs; `Restarted` loses whatever runs. Evaluations need a checkpoint, in whatever state."""


class IllegalEvent(RuntimeError):
    """An event that cannot happen to its trial as it stands: a bug, never a user's mistake."""

    def __init__(self, number: int, state: str, event: object) -> None:
        super().__init__(
            f"bug: trial {number} is {state}, to which this cannot happen: {event!r}; please "
            f"report it, with the study's record"
        )


@dataclass
class Trial:
    """One configuration, its curve and its frozen state.

    `metrics` holds all metrics by step; `checkpoints` the names of the checkpoints that are kept
    by step: the newest, those that no other of the trial equals or beats in every curve
    objective, those that were evaluated, and those that other trials begin from. `frozen` is the
    newest of these steps (0: none), `target` where the segment in flight goes (None: none in
    flight).

    One is `barred` that broke a limit by what is measured once: it is ``done``, wherever it stands.

    `new` is a trial whose segments were lost before a first checkpoint, `evicted` one whose
    checkpoints are all gone; either trains from nothing if it is thawed. A trial that is `done`
    or `failed` stays so whatever becomes of its checkpoints. `repeat_of` is the trial whose
    configuration this one trains again on another seed, None of a trial in its own right.
    `origin` is what it was derived from in the final phase: a cooldown has the other's curve up
    to there, and stands there, with the other's checkpoint until its own first one.
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
    checkpoints: dict[int, str] = field(default_factory=dict)
    metrics: Metrics = field(default_factory=Metrics)
    seconds: Seconds = field(default_factory=Seconds)
    static: dict[str, float] = field(default_factory=dict)
    evaluations: list[Evaluated] = field(default_factory=list)
    evaluating: list[tuple[int, Configuration]] = field(default_factory=list)
    origin_of: set[int] = field(default_factory=set)
    failure: Failed | None = None
    losses: int = 0
    exact: bool = True
    segments: list[tuple[int, int]] = field(default_factory=list)
    repeat_of: int | None = None
    origin: Origin | None = None
    barred: bool = False

    @property
    def own(self) -> bool:
        """Whether the search began it: it is no further training of the final phase."""
        return self.repeat_of is None and self.origin is None

    @property
    def base(self) -> int:
        """The unit that it stands at without a checkpoint of its own."""
        origin = self.origin
        return origin.step if origin is not None and origin.how == "cooldown" else 0

    @property
    def checkpoint(self) -> str | None:
        """The newest checkpoint, None without one."""
        return self.checkpoints.get(self.frozen)

    @property
    def extends(self) -> bool:
        """Whether it may go on to another horizon than its own: nothing of it has depended on
        that one yet."""
        if self.origin is not None or self.status == "failed" or self.barred:
            return False
        return self.bound_from is None or 0 < self.last <= self.bound_from * self.horizon

    @property
    def last(self) -> int:
        """The last unit observed."""
        return self.metrics.last

    def curve(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of one metric, in order of steps."""
        return self.metrics.curve(name)


class Trials:
    """All trials, by number; and what has been spent. `further` counts those of the final phase
    that are not the search's own, `cooldowns` tells by trial which was branched off it. `best` is
    the best oriented value with its trial and step, of what keeps the constraints if anything does,
    else of what violates them least, which `best_violation` tells. `gpus` is what each worker
    holds by now, `gpu_seconds` what their jobs took of them."""

    def __init__(
        self,
        space: Space,
        objectives: tuple[Objective, ...],
        constraints: tuple[Constraint, ...] = (),
    ) -> None:
        self.space = space
        self.objectives = objectives
        self.constraints = constraints
        self.objective = next(o for o in objectives if o.kind == "curve")
        self.all: dict[int, Trial] = {}
        self.units = 0
        self.train_seconds = 0.0
        self.gpus = 0.0
        self.gpu_seconds = 0.0
        self.at = 0.0
        self.decisions = 0
        self.in_flight: dict[int, Decision] = {}
        self.evaluations = 0
        measured = (*objectives, *constrained_metrics(objectives, constraints))
        self._alone = {o.name for o in measured if o.alone}
        self._curves = sorted(
            (o for o in objectives if o.kind == "curve"), key=lambda o: o is not self.objective
        )
        self.best: tuple[float, int, int] | None = None
        self.best_violation = 0.0
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

    def violation(self, metrics: Mapping[str, float]) -> float:
        """How far `metrics` are beyond the constraints; 0 where those measured keep theirs."""
        return violation(self.constraints, metrics) if self.constraints else 0.0

    def known(self, number: int, step: int) -> Mapping[str, float]:
        """What training has told of a trial at a step: its curve there and what is measured
        once."""
        trial = self.all[number]
        return {**trial.metrics.get(step, {}), **trial.static}

    def standing(self, number: int) -> tuple[float, float]:
        """Violation and oriented value of a trial at its best unit; infinite without any."""
        if not self.constraints:
            values = self.scores(number)[1]
            return 0.0, float(values[np.isfinite(values)].min(initial=math.inf))
        steps = (self.known(number, step) for step in self.all[number].metrics)
        found = ((self.violation(m), self.score(m)) for m in steps)
        return min((f for f in found if math.isfinite(f[1])), default=(math.inf, math.inf))

    def settled(self, event: Event) -> list[tuple[int, int, Mapping[str, float]]]:
        """(trial, step, metrics) of the units that can be judged from `event` on, which is folded
        already: an observed one at once; with constraints those of a segment when it has ended,
        for what is measured once may break a limit."""
        if not self.constraints:
            if isinstance(event, Observed):
                return [(event.trial, event.step, event.metrics)]
            return []
        if not isinstance(event, Frozen):
            return []
        begin, end = self.all[event.trial].segments[-1]
        steps = range(begin + 1, end + 1)
        return [(event.trial, step, self.known(event.trial, step)) for step in steps]

    def judged_by(self, objective: Objective) -> Trials:
        """The same trials as they stand now, with another objective as the primary one."""
        if objective == self.objective:
            return self
        view = copy(self)
        view.objective, view.best, view.best_violation = objective, None, 0.0
        view._curves = sorted(self._curves, key=lambda o: o != objective)
        return view

    def scores(self, number: int) -> tuple[FloatArray, FloatArray]:
        """Steps and oriented values of a trial's curve, both shape (observations,)."""
        steps, values = self.all[number].metrics.column(self.objective.name)
        return steps.astype(np.float64), self.objective.sign * values

    def best_frozen(self, number: int) -> int:
        """The unit of a trial's best checkpoint: by what it violates, then the primary objective,
        of equals by the other curve objectives, then the earliest; 0 without a checkpoint."""
        trial = self.all[number]
        return min(trial.checkpoints, key=lambda at: (*self._reached(trial, at), at), default=0)

    def _reached(self, trial: Trial, step: int) -> list[float]:
        """What is violated at a step and how many limits' metrics were not measured there, then the
        curve objectives, the primary one first; less is better."""
        metrics = trial.metrics.get(step, {})
        values = [o.sign * metrics.get(o.name, math.nan) for o in self._curves]
        values = [math.inf if math.isnan(value) else value for value in values]
        if not self.constraints:
            return values
        unknown = sum(math.isnan(metrics.get(c.name, math.nan)) for c in self.constraints)
        return [self.violation(metrics), unknown, *values]

    def observe(self, event: Event) -> None:
        """Fold one event. Raises `IllegalEvent`, and then changes nothing."""
        self.check(event)
        self.at = max(self.at, event.at)
        match event:
            case Decided(number=number, decision=decision):
                self.decisions = number + 1
                self._decided(decision)
            case Observed():
                trial = self.all[event.trial]
                repeated = event.step in trial.metrics
                trial.metrics.put(event.step, event.metrics)
                trial.seconds.put(event.step, event.seconds)
                self.train_seconds += event.seconds
                self.gpu_seconds += event.seconds * self.gpus
                if not repeated:
                    self.units += 1
                    self._note_best(event)
            case Frozen():
                trial = self.all[event.trial]
                trial.segments.append((trial.frozen, event.step))
                steps = range(trial.frozen + 1, event.step + 1)
                observed = sum(trial.seconds.get(step, 0.0) for step in steps)
                self.gpu_seconds += max(0.0, event.seconds - observed) * self.gpus
                trial.frozen = event.step
                self._keep(trial, event)
                trial.static = {**trial.static, **event.static}
                trial.exact = trial.exact and event.exact
                trial.barred = self.violation(trial.static) > 0
                trial.target = None
                ended = trial.barred or event.step >= trial.horizon
                trial.status = "done" if ended else "frozen"
                self.in_flight.pop(event.trial, None)
                self._note_best(event)
            case Evicted():
                trial = self.all[event.trial]
                del trial.checkpoints[event.step]
                trial.frozen = max(trial.checkpoints, default=trial.base)
                if trial.status == "frozen" and not trial.frozen:
                    trial.status = "evicted"
            case Evaluated():
                trial = self.all[event.trial]
                trial.evaluations.append(event)
                self.gpu_seconds += event.seconds * self.gpus
                self._end_evaluation(trial, event.evaluation)
                if not event.select or set(event.select) - self._alone:
                    self.evaluations += 1
            case Failed():
                trial = self.all[event.trial]
                self._charge(trial, event)
                if event.evaluation is not None:
                    self._end_evaluation(trial, event.evaluation)
                else:
                    trial.failure, trial.status, trial.target = event, "failed", None
                    self.in_flight.pop(event.trial, None)
            case Lost():
                self._charge(self.all[event.trial], event)
                self._lose(self.all[event.trial], event.evaluation)
            case Restarted():
                for number in list(self.in_flight):
                    self._lose(self.all[number], None)
                for trial in self.all.values():
                    trial.evaluating.clear()
            case Equipped(gpus=gpus):
                self.gpus = gpus
            case Extended():
                self._extend(event.horizon)

    def _charge(self, trial: Trial, event: Failed | Lost) -> None:
        """GPU-seconds of a job that came to nothing, beyond those of the units it observed."""
        observed = 0.0
        if event.evaluation is None:
            steps = range(trial.frozen + 1, trial.last + 1)
            observed = sum(trial.seconds.get(step, 0.0) for step in steps)
        self.gpu_seconds += max(0.0, event.seconds - observed) * self.gpus

    def _note_best(self, event: Event) -> None:
        for number, step, metrics in self.settled(event):
            beyond, score = self.violation(metrics), self.score(metrics)
            known = math.inf if self.best is None else self.best[0]
            if math.isfinite(score) and (
                self.best is None or (beyond, score) < (self.best_violation, known)
            ):
                self.best, self.best_violation = (score, number, step), beyond

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
                self.all[number].evaluating.append((decision.step, evaluation))
            case _:
                pass

    def check(self, event: Event) -> None:
        """Raise `IllegalEvent` for what cannot happen to its trial. Changes nothing."""
        happens = event.decision if isinstance(event, Decided) else event
        if isinstance(happens, Start):
            if happens.trial in self.all:
                raise IllegalEvent(happens.trial, self.all[happens.trial].status, event)
            return
        if isinstance(happens, Finalists | Doubt | Stop | Restarted | Equipped | Extended):
            return
        trial = self.all.get(happens.trial)
        if trial is None:
            raise IllegalEvent(happens.trial, "unknown", event)
        match happens:
            case Evaluate() | Measure():
                legal = happens.step in trial.checkpoints
            case Evaluated() | Failed() | Lost() if happens.evaluation is not None:
                legal = any(happens.evaluation == running for _, running in trial.evaluating)
            case _:
                legal = trial.status in _MOVES[type(happens)]
        match happens:
            case Thaw(to=to):
                legal = legal and trial.frozen < to <= trial.horizon
            case Observed(step=step) | Frozen(step=step):
                legal = legal and trial.frozen < step <= (trial.target or 0)
            case Evicted(step=step):
                busy = any(step == at for at, _ in trial.evaluating)
                legal = legal and step in trial.checkpoints and not busy
        if not legal:
            at = f" at unit {trial.frozen}" if trial.frozen else ""
            raise IllegalEvent(trial.number, f"{trial.status}{at}", event)

    def _keep(self, trial: Trial, new: Frozen) -> None:
        """Add the newest checkpoint, and drop what it makes needless."""
        steps = sorted(trial.checkpoints)
        pinned = {e.step for e in trial.evaluations} | {step for step, _ in trial.evaluating}
        pinned |= trial.origin_of
        reached = {step: self._reached(trial, step) for step in (*steps, new.step)}

        def needed(step: int) -> bool:
            return step in pinned or not any(
                all(a <= b for a, b in zip(reached[other], reached[step], strict=True))
                and (reached[other] != reached[step] or other < step)
                for other in reached
            )

        trial.checkpoints = {step: trial.checkpoints[step] for step in steps if needed(step)}
        trial.checkpoints[new.step] = new.checkpoint

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
        if origin is not None and source is not None:
            source.origin_of.add(origin.step)
        if origin is not None and source is not None and origin.how == "cooldown":
            trial.frozen = origin.step
            for step in source.metrics:
                if step <= origin.step:
                    trial.metrics.put(step, source.metrics[step])
            trial.static = dict(source.static)
        return trial

    def _extend(self, horizon: int) -> None:
        """The search goes on: what the final phase said holds no more, but what it trained
        does. Cooldowns ended at the horizon that was."""
        self.finalists = None
        for trial in self.all.values():
            if trial.horizon < horizon and trial.extends:
                trial.horizon = horizon
                self.cooldowns.pop(trial.number, None)
                if trial.status == "done":
                    trial.status = "frozen" if trial.frozen else "evicted"

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
        for entry in trial.evaluating:
            if entry[1] == evaluation:
                trial.evaluating.remove(entry)
                return

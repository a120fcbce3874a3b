"""The closing phase: what evaluation choices do to the trained checkpoints, and what the points
that may be on the front cost at inference.

Training is over. First promising trials are evaluated under evaluation configurations
(`Evaluate`), then what has to be measured alone is measured for the points that may be on the
front (`Measure`), then the study stops. One checkpoint serves many evaluation configurations;
each costs a pass over the shifted stream.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from autotune.decide.configurations import identity
from autotune.decide.cost import ENOUGH, predicted
from autotune.decide.final import best_run
from autotune.decide.forecasters.surface import Embedding
from autotune.decide.ranking import ranked
from autotune.plugins.constraints import violation
from autotune.plugins.search import (
    Decided,
    Decision,
    Evaluate,
    Evaluated,
    Event,
    Evicted,
    Extended,
    Failed,
    Frozen,
    Key,
    Lost,
    Measure,
    Objective,
    Restarted,
    SearchContext,
    Stop,
    Wait,
)
from autotune.plugins.trials import Trial, Trials
from autotune.space import Choice, Configuration, Space, SpaceError

CLOSING_SHARE = 0.15
"""Share of a budget in seconds that is kept back for the closing phase."""

EVALUATIONS = 60
"""Evaluations made where the budget names no number."""

SYSTEMATIC_SHARE = 0.6
"""Share of the evaluations that try every option at its default; the rest are sampled."""

EVALUATION_SHARE = 0.7
"""Share of the time kept back after which no evaluation is begun, only measurements."""

ATTEMPTS = 3
"""How often an evaluation that was lost is begun."""

SAMPLING_TRIES = 30
"""Draws after which no new evaluation configuration is looked for."""

SAMPLED_TRIALS = 4
"""Sampled evaluation configurations go to so many of the best trials, the first most often."""


@dataclass
class _Job:
    """One evaluation or measurement that was asked for."""

    kind: Literal["evaluate", "measure"]
    trial: int
    step: int
    evaluation: Configuration
    attempts: int = 0
    state: Literal["running", "done", "failed", "lost"] = "running"


@dataclass(frozen=True)
class _Point:
    """One checkpoint under one evaluation configuration, as far as it is known. `seconds` is
    what its evaluation took, a first guess at its latency."""

    trial: int
    step: int
    evaluation: Configuration
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0


class Closing:
    """The fold and the decisions of the closing phase.

    Rules:
        - trials are taken in turn from two lists, best first: by the primary objective, and by
          fronts over curve and static objectives (small but poor trials lead that one), each
          trial at its best checkpoint; the winner of a final phase comes before all others, and
          the other repeats are left out;
        - `SYSTEMATIC_SHARE` of the evaluations go to the best trials under the default and
          every option of every evaluation choice at its default, trial by trial; the rest
          are sampled (half of them near the best so far) for the `SAMPLED_TRIALS` best, and
          where nothing new can be sampled go to further trials as before;
        - whatever breaks a constraint, as far as that is known, comes after all that breaks none;
        - what a forbidden clause excludes together with the trial's own choices is left out;
        - measured are points in turn from two lists, up to half as many as evaluations: by
          fronts over the objectives known by then, and by fronts over the primary objective and
          the seconds that the evaluation took (what adapts nothing is quick, and may be on the
          front for its latency alone);
        - with constraints on what is measured alone, points that are expected to keep them are
          measured first;
        - in seconds: no evaluation begins after `EVALUATION_SHARE` of the time kept back, no
          measurement after its end, except that the best trial is evaluated and measured once.
    """

    def __init__(self, context: SearchContext) -> None:
        self.context = context
        evaluated = [o for o in context.measured if o.kind == "evaluation"]
        # With an evaluation space but no evaluation objective, evaluations still tell what the
        # choices do; with an objective measured alone as the only one, there is no stream.
        self._alone = any(o.alone for o in evaluated)
        self._streams = any(not o.alone for o in evaluated) or (
            not evaluated and bool(context.evaluation_space.slots)
        )
        self.needed = self._alone or self._streams
        self.begun = False
        self._limit = EVALUATIONS
        if context.budget.evaluations is not None:
            self._limit = context.budget.evaluations
        self._jobs: dict[tuple[str, int, str], _Job] = {}
        self._points: dict[tuple[int, int, str], _Point] = {}
        self._options = _options(context.evaluation_space)
        self._seconds: dict[str, list[float]] = {"evaluate": [], "measure": []}
        self._best: tuple[tuple[int, int], list[Trial]] | None = None

    # --- fold ---------------------------------------------------------------------------------

    def observe(self, event: Event, trials: Trials) -> None:
        """Fold one event that `trials` has folded already."""
        match event:
            case Extended():
                # Training goes on; then others may be the best, and are to be evaluated too.
                self.context, self.begun, self._best = self.context.extended(event), False, None
                evaluated = sum(job.kind == "evaluate" for job in self._jobs.values())
                self._limit = event.budget.evaluations or evaluated + EVALUATIONS
            case Decided(decision=Evaluate(trial=number, step=step, evaluation=evaluation)):
                self._begin(_Job("evaluate", number, step, evaluation))
            case Decided(decision=Measure(trial=number, step=step, evaluation=evaluation)):
                self._begin(_Job("measure", number, step, evaluation))
            case Evaluated():
                job = self._running(event.trial, event.evaluation)
                job.state = "done"
                self._seconds[job.kind].append(event.seconds)
                self._add(event, trials)
            case Failed(trial=number, evaluation=evaluation) if evaluation is not None:
                self._running(number, evaluation).state = "failed"
            case Lost(trial=number, evaluation=evaluation) if evaluation is not None:
                _lose(self._running(number, evaluation))
            case Frozen(trial=number):
                # What was lost is tried again where its checkpoint is still there.
                kept = trials[number].checkpoints
                self._jobs = {
                    key: job
                    for key, job in self._jobs.items()
                    if job.state != "lost" or job.trial != number or job.step in kept
                }
            case Evicted(trial=number, step=step):
                # What was asked of that checkpoint may be asked of the trial's next best.
                gone = (number, step)
                jobs, points = self._jobs, self._points
                self._jobs = {k: j for k, j in jobs.items() if (j.trial, j.step) != gone}
                self._points = {k: p for k, p in points.items() if (p.trial, p.step) != gone}
                self._best = None
            case Restarted():
                for job in self._jobs.values():
                    if job.state == "running":
                        _lose(job)
            case _:
                pass

    def _begin(self, new: _Job) -> None:
        self.begun = True
        job = self._jobs.setdefault((new.kind, new.trial, identity(new.evaluation)), new)
        job.attempts += 1
        job.state = "running"

    def _running(self, trial: int, evaluation: Configuration) -> _Job:
        # A point is measured after it was evaluated, so at most one of the two is running.
        for kind in ("evaluate", "measure"):
            job = self._jobs.get((kind, trial, identity(evaluation)))
            if job is not None and job.state == "running":
                return job
        raise ValueError(f"trial {trial} has no evaluation {evaluation!r} in flight")

    def _add(self, event: Evaluated, trials: Trials) -> None:
        trial = trials[event.trial]
        key = (event.trial, event.step, identity(event.evaluation))
        if key not in self._points:
            known = {**trial.metrics.get(event.step, {}), **trial.static}
            self._points[key] = _Point(
                event.trial, event.step, event.evaluation, known, event.seconds
            )
        self._points[key].metrics.update(event.select)

    # --- decide -------------------------------------------------------------------------------

    def decide(self, trials: Trials, key: Key, reason: str) -> Decision:
        """The next evaluation or measurement; `Stop` with `reason` when there is none."""
        best = self._kept_ranking(trials) if self.needed else []
        if not best:
            return Stop(reason)
        decision: Evaluate | Measure | None = None
        if self._streams:
            decision = self._next_evaluation(trials, best, key)
        if decision is None and any(job.state == "running" for job in self._jobs.values()):
            return Wait()
        if decision is None and self._alone:
            decision = self._next_measurement(trials, best)
        return Stop(reason) if decision is None else decision

    def _next_evaluation(self, trials: Trials, best: list[Trial], key: Key) -> Evaluate | None:
        jobs = [job for job in self._jobs.values() if job.kind == "evaluate"]
        if jobs and not self._in_time(trials, "evaluate", EVALUATION_SHARE):
            return None
        lost = next((job for job in jobs if job.state == "lost"), None)
        if lost is not None:
            return Evaluate(lost.trial, lost.step, lost.evaluation)
        if len(jobs) >= self._limit:
            return None
        systematic = next(self._systematic(trials, best), None)
        if systematic is not None and len(jobs) < max(1, round(SYSTEMATIC_SHARE * self._limit)):
            return systematic
        return self._sampled(trials, best, key) or systematic

    def _systematic(self, trials: Trials, best: list[Trial]) -> Iterator[Evaluate]:
        """Trial by trial, every option at its default."""
        for trial in best:
            default = self.context.evaluation_space.default(trial.configuration)
            for evaluation in (default, *self._options):
                if self._open(trial, evaluation):
                    yield Evaluate(trial.number, trials.best_frozen(trial.number), evaluation)

    def _sampled(self, trials: Trials, best: list[Trial], key: Key) -> Evaluate | None:
        """A sampled configuration for one of the best trials, half the time near one of the
        best points so far; None if nothing new turns up."""
        space = self.context.evaluation_space
        generator = key.generator()
        few = {trial.number: trial for trial in best[:SAMPLED_TRIALS]}
        points = [point for point in self._best_points() if point.trial in few]
        for _ in range(SAMPLING_TRIES):
            if points and generator.random() < 0.5:
                point = points[min(int(generator.geometric(0.5)), len(points)) - 1]
                trial = few[point.trial]
                evaluation = space.neighbour(point.evaluation, generator)
            else:
                trial = best[min(int(generator.geometric(0.5)), len(few)) - 1]
                evaluation = space.sample(generator, prior=True)
            if self._open(trial, evaluation):
                return Evaluate(trial.number, trials.best_frozen(trial.number), evaluation)
        return None

    def _open(self, trial: Trial, evaluation: Configuration) -> bool:
        """Not asked for yet, and allowed together with the trial's own choices."""
        if ("evaluate", trial.number, identity(evaluation)) in self._jobs:
            return False
        return allowed(self.context, trial.configuration, evaluation)

    def _next_measurement(self, trials: Trials, best: list[Trial]) -> Measure | None:
        jobs = [job for job in self._jobs.values() if job.kind == "measure"]
        if jobs and not self._in_time(trials, "measure", 1.0):
            return None
        lost = next((job for job in jobs if job.state == "lost"), None)
        if lost is not None:
            return Measure(lost.trial, lost.step, lost.evaluation)
        if len(jobs) >= max(1, math.ceil(self._limit / 2)):
            return None
        points = self._to_measure() if self._streams else self._trained_points(trials, best)
        for point in self._likely_first(trials, points):
            if ("measure", point.trial, identity(point.evaluation)) not in self._jobs:
                return Measure(point.trial, point.step, point.evaluation)
        return None

    def _likely_first(self, trials: Trials, given: Iterable[_Point]) -> Iterable[_Point]:
        """Points in order, but first those that are expected to keep the constraints on what is
        measured alone: a process over the trials' configurations says what the others will be
        measured at, once `ENOUGH` were."""
        names = {o.name for o in self.context.measured if o.alone}
        limits = [c for c in self.context.constraints if c.name in names]
        if not limits:
            return given
        points = list(given)
        expected: list[dict[str, float]] = [{} for _ in points]
        embed = Embedding(trials.space)
        for name in {limit.name for limit in limits}:
            seen = [p for p in self._points.values() if p.metrics.get(name, 0.0) > 0]
            if len(seen) < ENOUGH or not points:
                continue
            known, asked = (
                embed(
                    np.stack([trials[p.trial].encoded for p in some]),
                    np.stack([trials[p.trial].mask for p in some]),
                )
                for some in (seen, points)
            )
            logs = np.log([point.metrics[name] for point in seen])
            for row, value in zip(expected, predicted(known, logs, asked)[0], strict=True):
                row[name] = float(np.exp(value))
        order = sorted(range(len(points)), key=lambda i: violation(limits, expected[i]))
        return [points[index] for index in order]

    def _trained_points(self, trials: Trials, best: list[Trial]) -> Iterator[_Point]:
        """Without anything to evaluate, trials by themselves are the points: under every option
        where there is an evaluation space, which is then searched for the measured alone."""
        for trial in best:
            for evaluation in self._options:
                if allowed(self.context, trial.configuration, evaluation):
                    yield _Point(trial.number, trials.best_frozen(trial.number), evaluation)

    def _in_time(self, trials: Trials, kind: str, share: float) -> bool:
        """Whether a job of this kind, at the mean duration of those before it, would end within
        `share` of the time kept back."""
        known = self._seconds[kind]
        seconds = sum(known) / len(known) if known else 0.0
        budget, within = self.context.budget, 1 - CLOSING_SHARE * (1 - share)
        running = 1 + sum(job.state == "running" for job in self._jobs.values())
        taken = trials.gpu_seconds + running * seconds * trials.gpus
        in_time = budget.seconds is None or trials.at + seconds <= budget.seconds * within
        return in_time and (budget.gpu_seconds is None or taken <= budget.gpu_seconds * within)

    # --- ranking ------------------------------------------------------------------------------

    def _kept_ranking(self, trials: Trials) -> list[Trial]:
        """`_ranked`, which stays as it is while nothing is trained."""
        state = len(trials), trials.units
        if self._best is None or self._best[0] != state:
            self._best = state, self._ranked(trials)
        return self._best[1]

    def _ranked(self, trials: Trials) -> list[Trial]:
        """Trials with a checkpoint whose value there is finite, most promising first, each at
        its best checkpoint."""
        winner, _ = best_run(trials) or (None, 0)
        own = [n for n, t in trials.all.items() if t.repeat_of is None or n == winner]
        frozen = {number: trials.best_frozen(number) for number in own}
        found = [
            trials[number]
            for number in own
            if math.isfinite(trials.score(trials[number].metrics.get(frozen[number], {})))
        ]
        rows = [{**trial.metrics[frozen[trial.number]], **trial.static} for trial in found]
        primary = self.context.objective
        static = [o for o in self.context.objectives if o.kind != "evaluation"]
        beyond = [trials.violation(row) for row in rows]
        by_value = ranked(rows, [primary], primary, beyond)
        order = _in_turn(by_value, ranked(rows, static, primary, beyond))
        in_order = [found[index] for index in order]
        return sorted(in_order, key=lambda trial: trial.number != winner)

    def _best_points(self) -> list[_Point]:
        """Evaluated points, most promising first."""
        points = list(self._points.values())
        return [points[index] for index in self._order(points)]

    def _to_measure(self) -> list[_Point]:
        """Evaluated points, those that measuring may bring onto the front first. How long an
        evaluation took hints at latency; but without a budget in seconds no decision may depend
        on times, so that two runs of a study take the same ones."""
        points = list(self._points.values())
        if not self.context.budget.timed:
            return [points[index] for index in self._order(points)]
        primary = self.context.objective
        rows = [{**point.metrics, "seconds": point.seconds} for point in points]
        seconds = Objective("seconds", "minimize", "evaluation")
        quick = ranked(rows, [primary, seconds], primary, self._violations(points))
        return [points[index] for index in _in_turn(self._order(points), quick)]

    def _order(self, points: list[_Point]) -> list[int]:
        known = [o for o in self.context.objectives if not o.alone]
        rows = [point.metrics for point in points]
        return ranked(rows, known, self.context.objective, self._violations(points))

    def _violations(self, points: list[_Point]) -> list[float]:
        return [violation(self.context.constraints, point.metrics) for point in points]


def _in_turn(first: list[int], second: list[int]) -> list[int]:
    return list(dict.fromkeys(index for pair in zip(first, second, strict=True) for index in pair))


def _lose(job: _Job) -> None:
    job.state = "failed" if job.attempts >= ATTEMPTS else "lost"


def allowed(context: SearchContext, training: Configuration, evaluation: Configuration) -> bool:
    """Whether no forbidden clause excludes the two together."""
    space = context.evaluation_space
    return space.forbids(space.join(training, evaluation)) is None


def _options(space: Space) -> list[Configuration]:
    """The default, and every option of every choice outside another choice at its default."""
    found = {identity(c): c for c in [space.default()]}
    for partial in _partials(space):
        try:
            configuration = space.complete(partial)
        except SpaceError:  # forbidden with the other choices at their defaults
            continue
        found.setdefault(identity(configuration), configuration)
    return list(found.values())


def _partials(space: Space) -> Iterator[dict[str, Any]]:
    for name, node in space.parameters.items():
        if isinstance(node, Choice):
            for option in node.options:
                yield {name: {"name": option}}
        elif isinstance(node, Space):
            for partial in _partials(node):
                yield {name: partial}

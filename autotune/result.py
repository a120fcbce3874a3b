"""What came out of a study, told from its record alone: best configuration, front, curves,
checkpoints. The task is imported only when a model is asked for.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autotune import record
from autotune.decide.final import Standing, best_run, standings
from autotune.header import Header, StudyError
from autotune.pareto import non_dominated
from autotune.plugins.constraints import feasibility, violation
from autotune.plugins.search import Evaluated, Event, Extended, Objective, SearchContext
from autotune.plugins.trials import Trials
from autotune.space import Configuration

if TYPE_CHECKING:
    from torch import nn

Curve = tuple[list[int], list[float]]

_BY_FEASIBILITY = (False, None, True)
"""The worst first."""


@dataclass(frozen=True)
class Point:
    """A trained checkpoint under one evaluation configuration: what a front is made of.

    Args:
        trial: its number; step: the unit that the checkpoint stands at.
        configuration: the whole configuration, training and evaluation choices together.
        training: the part that training sees; evaluation: the rest.
        metrics: by name, as the search saw them: the curve at `step`, what was measured once,
            and the part of the shifted stream that choices are made on.
        reported: the same with the shifted stream's other part, which no choice has seen.
        spread: half-widths of uncertainty by metric, where known.
        checkpoint: as the checkpoint store names it.
    """

    trial: int
    step: int
    configuration: Configuration
    training: Configuration
    evaluation: Configuration
    metrics: Mapping[str, float]
    reported: Mapping[str, float]
    spread: Mapping[str, float]
    checkpoint: str
    _view: StudyView = field(repr=False, compare=False)

    @property
    def feasible(self) -> bool | None:
        """Whether it keeps all constraints; None where none that was measured is broken, but not
        all were measured."""
        return feasibility(self._view.context.constraints, self.metrics)

    @property
    def broken(self) -> list[str]:
        """The constraints that it breaks, each with what was measured."""
        found = self.metrics
        return [
            f"{limit}, but it is {found[limit.name]:.6g}"
            for limit in self._view.context.constraints
            if limit.excess(found.get(limit.name, math.nan)) > 0
        ]

    def load_model(self, task: Any = None) -> nn.Module:
        """The trained model, in eval mode on the CPU, adapters folded in where they can be.

        Args:
            task: needed only if the study's task was handed over as an object, in another
                session than this one.

        Raises:
            StudyError: if the task has no importable name and none is given, or it keeps no
                torch model (a `Trainable`).
        """
        view = self._view
        given = view.task if task is None else task
        if given is None:
            given = view.header.task
        if given is None:
            raise StudyError(
                f"the task of study {view.name!r} was handed over as an object, which is not "
                f"kept: pass it, as in load_model(task=task)"
            )
        model = _model(view, given, self)
        if model is None:
            raise StudyError(
                f"the task of study {view.name!r} ({view.header.task_name}) keeps no torch model "
                f"that could be handed out"
            )
        return model


def _model(view: StudyView, task: Any, point: Point) -> nn.Module | None:
    from autotune.execute.remote_store import open_store
    from autotune.execute.task_address import as_task, load_task
    from autotune.execute.worker import random_state_kept
    from autotune.train.task import RunContext

    content = open_store(view.folder, view.header.checkpoint_url).load(point.checkpoint)
    opened = load_task(task) if isinstance(task, str) else as_task(task)
    context = RunContext(content["seed"], content["horizon"], "cpu", view.folder)
    with random_state_kept("cpu"):  # thawing puts a trial's generators in place of the user's
        run = opened.open(point.training, context)
        run.thaw(content["state"])
        return run.model()


def _key(trial: int, step: int, evaluation: Configuration) -> tuple[int, int, str]:
    return trial, step, json.dumps(evaluation, sort_keys=True)


def evaluated(trials: Trials) -> dict[tuple[int, int], list[Evaluated]]:
    """By (trial, step), what is known of each evaluation configuration, once."""
    found: dict[tuple[int, int], list[Evaluated]] = {}
    for trial in trials.all.values():
        merged: dict[tuple[int, int, str], Evaluated] = {}
        for event in trial.evaluations:
            key = _key(event.trial, event.step, event.evaluation)
            merged[key] = _merged(merged[key], event) if key in merged else event
        for event in merged.values():
            found.setdefault((event.trial, event.step), []).append(event)
    return found


def _merged(first: Evaluated, second: Evaluated) -> Evaluated:
    # The shifted stream and latency are measured by different jobs.
    return Evaluated(
        second.trial,
        second.step,
        second.evaluation,
        {**first.select, **second.select},
        {**first.report, **second.report},
        {**first.spread, **second.spread},
        first.seconds + second.seconds,
        second.at,
    )


def points_of(view: StudyView) -> list[Point]:
    """Every kept checkpoint under every evaluation configuration it was evaluated with; one
    that was not evaluated stands under the default one. In order of trial and step."""
    evaluations = evaluated(view.trials)
    points = []
    for number, trial in sorted(view.trials.all.items()):
        for step, name in sorted(trial.checkpoints.items()):
            plain = {**trial.metrics.get(step, {}), **trial.static}
            default = view.context.evaluation_space.default(trial.configuration)
            unevaluated = Evaluated(number, step, default, {}, {})
            for event in evaluations.get((number, step), [unevaluated]):
                points.append(
                    Point(
                        trial=number,
                        step=step,
                        configuration=view.header.resolved.join(
                            trial.configuration, event.evaluation
                        ),
                        training=trial.configuration,
                        evaluation=event.evaluation,
                        metrics={**plain, **event.select},
                        reported={**plain, **event.select, **event.report},
                        spread=event.spread,
                        checkpoint=name,
                        _view=view,
                    )
                )
    return points


def best_of(
    points: Iterable[Point], context: SearchContext, run: tuple[int, int] | None = None
) -> Point | None:
    """The point with the best primary objective of those that keep the constraints; if none is
    known to, of those that break none as far as they were measured; else the least violating. Of
    several evaluation configurations of one checkpoint, the best in the first evaluation objective
    that need not be measured alone; of equals the earliest. None if no point has a finite value.

    Args:
        run: (trial, step) of the winner of a final phase: other points are looked at only where
            they keep the constraints better than all of its own. Repeats that did not win are
            looked at never.
    """
    second = next((o for o in context.objectives if o.kind == "evaluation" and not o.alone), None)

    def rank(point: Point) -> tuple[int, float, bool, float, int, int, float]:
        return (
            -_BY_FEASIBILITY.index(feasibility(context.constraints, point.metrics)),
            violation(context.constraints, point.metrics),
            run is not None and (point.trial, point.step) != run,
            _score(context.objective, point.metrics),
            point.trial,
            point.step,
            _score(second, point.metrics) if second else 0.0,
        )

    found = (p for p in points if math.isfinite(_score(context.objective, p.metrics)))
    return min((p for p in found if _counts(p._view.trials, p, run)), key=rank, default=None)


def _score(objective: Objective, metrics: Mapping[str, float]) -> float:
    value = objective.sign * metrics.get(objective.name, math.inf * objective.sign)
    return math.inf if math.isnan(value) else value


def front_of(points: list[Point], objectives: tuple[Objective, ...]) -> list[Point]:
    """The points that keep the constraints and have every objective and that no other such point
    dominates by more than both spreads, by the first objective, best first."""
    points = [point for point in points if point.feasible]
    if not points:
        return []
    values = [[p.metrics.get(o.name, math.nan) for o in objectives] for p in points]
    spread = [[p.spread.get(o.name, 0.0) for o in objectives] for p in points]
    on_front = non_dominated(values, [o.sign for o in objectives], spread)
    chosen = [point for point, good in zip(points, on_front, strict=True) if good]
    return sorted(chosen, key=lambda p: (_score(objectives[0], p.metrics), p.trial, p.step))


def _counts(trials: Trials, point: Point, run: tuple[int, int] | None) -> bool:
    return trials[point.trial].repeat_of is None or (point.trial, point.step) == run


class StudyView:
    """A study as its record tells it. Made without importing the task; does not change.

    Attributes:
        folder: the study's folder.
        name: of the study.
        header: what it was begun with.
        context: what its deciding parts are told by now.
        count: how many events there are.
        trials: the fold of the events.
        meta: the record's further entries; ``winner`` and ``finished`` once there are any.
        task: the task object, where the view was made by `tune` or `resume`; else None.
    """

    def __init__(self, folder: Path, task: Any = None) -> None:
        """Raises `record.RecordError` if there is no readable record."""
        with record.reading(folder) as (events, meta):
            context = Header.from_plain(meta["header"]).context()
            trials = Trials(context.space, context.objectives, context.constraints)
            count = 0
            for event in events:
                trials.observe(event)
                count += 1
                if isinstance(event, Extended):
                    context = context.extended(event)
        self._tell(folder, task, meta, context, trials, count)

    @classmethod
    def folded(
        cls,
        folder: Path,
        meta: Mapping[str, Any],
        context: SearchContext,
        trials: Trials,
        count: int,
        task: Any = None,
    ) -> StudyView:
        """A study that somebody has folded already: `trials` and `context` after `count` events.
        It is as good as the trials, which it shares, stay as they are."""
        view = cls.__new__(cls)
        view._tell(folder, task, dict(meta), context, trials, count)
        return view

    def _tell(
        self,
        folder: Path,
        task: Any,
        meta: dict[str, Any],
        context: SearchContext,
        trials: Trials,
        count: int,
    ) -> None:
        self.folder = folder
        self.task = task
        self.meta = meta
        self.header: Header = Header.from_plain(meta["header"])
        self.name = self.header.name
        self.context = context
        self.trials = trials
        self.count = count

    @cached_property
    def events(self) -> list[Event]:
        """All of them, in order; read again when first asked for, as most uses need only what
        they fold to."""
        with record.reading(self.folder) as (events, _):
            return list(islice(events, self.count))

    @cached_property
    def result(self) -> Result:
        """What came out, so far or for good."""
        return Result(self, points_of(self))

    @property
    def checkpoints(self) -> str:
        """The folder, or the URL, where its checkpoints are."""
        return self.header.checkpoint_url or str(self.folder / "checkpoints")

    @property
    def finished(self) -> bool:
        """Whether the search has stopped and its winner is scored."""
        return "finished" in self.meta


class Result:
    """What a study found.

    Attributes:
        best: the `Point` with the best primary objective, None if nothing was trained. After a
            final phase, of the trainings of the configuration with the best mean.
        standings: the candidates of the final phase with their mean over seeds, the winner
            first (`autotune.decide.final.Standing`); empty without one.
        pareto: the `Point`s that no other dominates, by the first objective; with constraints, of
            those that keep all of them.
        points: all `Point`s with a checkpoint.
        trials: all trials, the failed ones too.
        test: the winner's metrics on the test split, looked at once; None until the search
            has stopped.
        reason: why the search stopped, in words; None while it has not.
        folder: the study's folder.
    """

    def __init__(self, view: StudyView, points: list[Point]) -> None:
        self.view = view
        self.folder = view.folder
        self.points = points
        self.trials = view.trials
        run = best_run(self.trials)
        # A configuration stands on the front once: its repeats are there to judge it by.
        once = [p for p in points if _counts(self.trials, p, run)]
        self.pareto = front_of(once, view.context.objectives)
        self.standings = standings(self.trials)
        winner = view.meta.get("winner")
        self.test: dict[str, float] | None = winner.get("metrics") if winner else None
        self.test_failure: str | None = winner.get("failure") if winner else None
        self.reason: str | None = view.meta.get("finished", {}).get("reason")
        self.best: Point | None = best_of(points, view.context, run)
        if winner:
            key = _key(winner["trial"], winner["step"], winner["evaluation"])
            self.best = next(p for p in points if _key(p.trial, p.step, p.evaluation) == key)

    @cached_property
    def feasibility(self) -> dict[int, bool | None]:
        """Of the search's own trials with a checkpoint, whether a point of it keeps all
        constraints (True); if none is known to, whether one may (None)."""
        found: dict[int, bool | None] = {}
        for point in self.points:
            if self.trials[point.trial].own:
                before = found.get(point.trial, False)
                found[point.trial] = max(before, point.feasible, key=_BY_FEASIBILITY.index)
        return found

    @property
    def unmet(self) -> str | None:
        """That no trial is known to keep all constraints, in words, if so; then `best` is what
        violates them least. None without constraints, or if any keeps them."""
        limits = ", ".join(map(str, self.view.context.constraints))
        if not limits or self.best is None or self.best.feasible:
            return None
        if self.best.feasible is None:
            missing = [
                c.name for c in self.view.context.constraints if c.name not in self.best.metrics
            ]
            return (
                f"no trial is known to keep the constraints ({limits}); not measured yet: "
                f"{', '.join(dict.fromkeys(missing))}"
            )
        return (
            f"no trial keeps the constraints ({limits}); the best one is the one that violates "
            f"them least: {'; '.join(self.best.broken)}"
        )

    @property
    def curves(self) -> dict[int, dict[str, Curve]]:
        """By trial and metric: steps and values."""
        return {
            number: {name: trial.curve(name) for name in sorted(trial.metrics.names)}
            for number, trial in sorted(self.trials.all.items())
        }

    @property
    def report(self) -> Path:
        """Where the HTML report lies once it is written."""
        return self.folder / "report.html"

    @property
    def winner(self) -> Standing | None:
        """The standing of the winner over several seeds; None without a final phase."""
        first = next(iter(self.standings), None)
        return first if first is not None and first.mean is not None else None

    def __repr__(self) -> str:
        if self.best is None:
            return f"Result({str(self.folder)!r}, nothing trained)"
        name = self.view.context.objective.name
        unmet = "" if self.best.feasible else "; the constraints are not met"
        return (
            f"Result({str(self.folder)!r}, {name}={self.best.metrics[name]:.6g} by trial "
            f"{self.best.trial} at {self.view.header.unit} {self.best.step}, "
            f"{len(self.pareto)} points on the front{unmet})"
        )

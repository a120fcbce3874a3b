"""What happened when, and what it cost: a study's events told as segments, spending and
forecasts of what is unfinished."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from autotune.plugins.search import (
    Decided,
    Evaluate,
    Evaluated,
    Event,
    Failed,
    Forecaster,
    Frozen,
    Lost,
    Measure,
    Observed,
    Query,
    Restarted,
    SearchContext,
    Start,
    Thaw,
)
from autotune.plugins.trials import Trials
from autotune.report.words import choices

Outcome = Literal["frozen", "failed", "lost", "running", "done"]


@dataclass(frozen=True)
class Segment:
    """One stretch of work on a trial, from a decision to its end.

    Args:
        trial: its number.
        work: ``start`` and ``thaw`` train; ``evaluate`` and ``measure`` do not.
        first, last: unit it began after and unit it reached.
        began, ended: seconds since the study's start; `ended` is the last that is known of
            it where it is still running.
        seconds: spent training, summed over its units.
        outcome: how it ended; ``done`` for evaluations.
    """

    trial: int
    work: Literal["start", "thaw", "evaluate", "measure"]
    first: int
    last: int
    began: float
    ended: float
    seconds: float
    outcome: Outcome


@dataclass
class _Open:
    work: Literal["start", "thaw", "evaluate", "measure"]
    first: int
    last: int
    began: float
    seconds: float = 0.0


def segments(events: Sequence[Event]) -> list[Segment]:
    """All segments in the order they ended; those in flight at the end come last."""
    found: list[Segment] = []
    training: dict[int, _Open] = {}
    evaluating: list[tuple[int, Mapping[str, Any], _Open]] = []
    frozen: dict[int, int] = defaultdict(int)
    clock = 0.0

    def end(trial: int, piece: _Open, outcome: Outcome, at: float) -> None:
        found.append(
            Segment(
                trial, piece.work, piece.first, piece.last, piece.began, at, piece.seconds, outcome
            )
        )

    def take(trial: int, evaluation: Mapping[str, Any]) -> _Open | None:
        for index, (number, configuration, piece) in enumerate(evaluating):
            if number == trial and configuration == evaluation:
                del evaluating[index]
                return piece
        return None

    for event in events:
        clock = max(clock, event.at)
        match event:
            case Decided(decision=Start(trial=trial)):
                training[trial] = _Open("start", 0, 0, event.at)
            case Decided(decision=Thaw(trial=trial)):
                training[trial] = _Open("thaw", frozen[trial], frozen[trial], event.at)
            case Decided(decision=Evaluate() | Measure() as decision):
                work: Literal["evaluate", "measure"] = (
                    "evaluate" if isinstance(decision, Evaluate) else "measure"
                )
                piece = _Open(work, decision.step, decision.step, event.at)
                evaluating.append((decision.trial, decision.evaluation, piece))
            case Observed(trial=trial) if trial in training:
                training[trial].last = event.step
                training[trial].seconds += event.seconds
            case Frozen(trial=trial):
                frozen[trial] = event.step
                if trial in training:
                    training[trial].last = event.step
                    end(trial, training.pop(trial), "frozen", event.at)
            case Evaluated(trial=trial):
                if (taken := take(trial, event.evaluation)) is not None:
                    taken.seconds = event.seconds
                    end(trial, taken, "done", event.at)
            case (
                Failed(trial=trial, evaluation=evaluation)
                | Lost(trial=trial, evaluation=evaluation)
            ):
                outcome: Outcome = "failed" if isinstance(event, Failed) else "lost"
                if evaluation is not None:
                    if (taken := take(trial, evaluation)) is not None:
                        end(trial, taken, outcome, event.at)
                elif trial in training:
                    end(trial, training.pop(trial), outcome, event.at)
            case Restarted():
                for trial in list(training):
                    end(trial, training.pop(trial), "lost", event.at)
                for trial, _, piece in evaluating:
                    end(trial, piece, "lost", event.at)
                evaluating.clear()
            case _:
                pass
    for trial, piece in training.items():
        end(trial, piece, "running", clock)
    for trial, _, piece in evaluating:
        end(trial, piece, "running", clock)
    return found


def best_so_far(trials: Trials, events: Sequence[Event]) -> tuple[list[int], list[float]]:
    """The best value of the primary objective after each unit spent, in its own units: units
    spent in total and the value, both where it improves and at the end. What violates the
    constraints less is better, whatever its value."""
    spent, best = 0, (np.inf, np.inf)
    units: list[int] = []
    values: list[float] = []
    seen: set[tuple[int, int]] = set()
    for event in events:
        if not isinstance(event, Observed) or (event.trial, event.step) in seen:
            continue
        seen.add((event.trial, event.step))
        spent += 1
        score = trials.score(event.metrics)
        beyond = 0.0
        if trials.constraints:
            beyond = trials.violation({**event.metrics, **trials[event.trial].static})
        found = beyond, score
        if np.isfinite(score) and found < best:
            best = found
            units.append(spent)
            values.append(trials.objective.sign * score)
    if units and units[-1] != spent:
        units.append(spent)
        values.append(values[-1])
    return units, values


@dataclass(frozen=True)
class Band:
    """A forecast of one trial: steps ahead with the 10 %, 50 % and 90 % quantiles of the
    primary objective in its own units."""

    trial: int
    steps: tuple[int, ...]
    low: tuple[float, ...]
    middle: tuple[float, ...]
    high: tuple[float, ...]


def forecasts(
    context: SearchContext, events: Sequence[Event], forecaster: Forecaster, limit: int = 6
) -> list[Band]:
    """What the study's forecaster expects, after the last event, of unfinished trials: of the
    `limit` with the best values so far, at up to ten steps each.

    The forecaster's state is rebuilt by folding the events, as on resuming a study.
    """
    trials = Trials(context.space, context.objectives, context.constraints)
    state = forecaster.initial(context)
    for event in events:
        trials.observe(event)
        state = forecaster.observe(state, event, trials)
    ranked = []
    for trial in trials.all.values():
        values = trials.scores(trial.number)[1]
        finite = values[np.isfinite(values)]
        if trial.status in ("frozen", "running") and len(finite) and trial.last < trial.horizon:
            ranked.append((float(finite.min()), trial.number))
    queries: list[Query] = []
    spans: list[tuple[int, list[int]]] = []
    for _, number in sorted(ranked)[:limit]:
        trial = trials[number]
        ahead = np.unique(np.linspace(trial.last + 1, trial.horizon, 10).round().astype(int))
        spans.append((number, ahead.tolist()))
        queries += [Query(int(step), trial=number) for step in ahead]
    if not queries:
        return []
    forecast = forecaster.forecast(context, state, trials, queries)
    sign = context.objective.sign
    edges = [sign * forecast.quantile(p) for p in (0.1, 0.5, 0.9)]
    low, high = np.minimum(edges[0], edges[2]), np.maximum(edges[0], edges[2])
    bands, start = [], 0
    for number, steps in spans:
        part = slice(start, start + len(steps))
        start += len(steps)
        bands.append(
            Band(
                number,
                tuple(steps),
                tuple(low[part].tolist()),
                tuple(edges[1][part].tolist()),
                tuple(high[part].tolist()),
            )
        )
    return bands


@dataclass(frozen=True)
class Standing:
    """How one option of a choice did.

    Args:
        choice: path of the choice, e.g. ``optimizer``.
        option: its name.
        trials: how many trials (or evaluated points) took it.
        failed: how many of them failed.
        best, median: of the primary objective, over each trial's best value (None: no value).
        front: points on the front that took it.
        units, seconds: trained with it (0 for choices of evaluation only).
    """

    choice: str
    option: str
    trials: int
    failed: int
    best: float | None
    median: float | None
    front: int
    units: int
    seconds: float


def best_value(trials: Trials, number: int) -> float | None:
    """A trial's best value of the primary objective, in its own units."""
    values = trials.scores(number)[1]
    finite = values[np.isfinite(values)]
    return float(trials.objective.sign * finite.min()) if len(finite) else None


def standings(
    trials: Trials, front: Sequence[Mapping[str, Any]], evaluated: Sequence[Mapping[str, Any]]
) -> list[Standing]:
    """One row for each option that was tried, by choice, best first.

    Args:
        trials: of the study.
        front: whole configurations of the points on the front.
        evaluated: whole configurations of all evaluated points: choices that affect only
            evaluation are counted there, since no trial makes them.
    """
    members: dict[tuple[str, str], list[int]] = defaultdict(list)
    for trial in trials.all.values():
        for choice in choices(trial.configuration).items():
            members[choice].append(trial.number)
    on_front: dict[tuple[str, str], int] = defaultdict(int)
    for configuration in front:
        for choice in choices(configuration).items():
            on_front[choice] += 1
    points: dict[tuple[str, str], int] = defaultdict(int)
    trained = {choice for choice, _ in members}
    for configuration in evaluated:
        for choice in choices(configuration).items():
            if choice[0] not in trained:
                points[choice] += 1
    rows = [
        Standing(path, option, count, 0, None, None, on_front[path, option], 0, 0.0)
        for (path, option), count in points.items()
    ]
    for (path, option), numbers in members.items():
        values = [v for n in numbers if (v := best_value(trials, n)) is not None]
        ordered = sorted(values, key=lambda value: trials.objective.sign * value)
        rows.append(
            Standing(
                path,
                option,
                len(numbers),
                sum(trials[n].status == "failed" for n in numbers),
                ordered[0] if ordered else None,
                float(np.median(ordered)) if ordered else None,
                on_front[path, option],
                sum(len(trials[n].metrics) for n in numbers),
                sum(trials[n].seconds.total for n in numbers),
            )
        )
    order = list(dict.fromkeys(row.choice for row in rows if row.choice in trained))
    order += [path for path in dict.fromkeys(row.choice for row in rows) if path not in trained]
    return sorted(
        rows,
        key=lambda row: (
            order.index(row.choice),
            np.inf if row.best is None else trials.objective.sign * row.best,
            -row.front,
            row.option,
        ),
    )

"""The opening of a model-based search: a short race, by observed values alone.

A forecaster that has seen only first epochs does not know how curves of this task go on: where
learning takes off late, all first epochs look alike and nothing seems worth going on with; where
the first few trials happen to be good, nothing seems worth starting. Both cost the freeze-thaw
search its first hundred epochs on recorded tables. So the first trials run a small successive
halving (Karnin et al. 2013; by promotion as in Li et al. 2020, 1810.05934): all of them a little,
the better third of them three times as long, and so on. What is chosen at the end is good already,
and the forecaster has seen long curves beside short ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from autotune.decide.ranking import ranked
from autotune.plugins.search import Objective, Thaw
from autotune.plugins.trials import Trial, Trials

REDUCTION = 3
"""One in so many is promoted, to so many times the length."""


def levels(horizon: int, trials: int) -> list[int]:
    """Units at which the first `trials` trials are compared: 1, 3, 9, ... up to the horizon, while
    there is one to promote."""
    found = [1]
    while found[-1] * REDUCTION <= min(horizon, trials):
        found.append(found[-1] * REDUCTION)
    return found


def promotion(
    trials: Trials, count: int, horizon: int, objectives: Sequence[Objective] = ()
) -> Thaw | None:
    """Of the first `count` trials the one to go on with: the best that is frozen below the next
    level and among the best third at its own, from the highest level down. None if there is none.

    Args:
        objectives: if several, the best are those on the first fronts.
    """
    first = [trials[number] for number in range(min(count, len(trials)))]
    rungs = levels(horizon, count)
    for low, high in zip(reversed(rungs[:-1]), reversed(rungs[1:]), strict=True):
        there = [trial for trial in first if trial.status == "failed" or trial.last >= low]
        best = sorted((*_standing(trials, trial, low), trial.number) for trial in there)
        if len(objectives) > 1:
            best = _by_fronts(trials, best, objectives, low)
        for _, value, number in best[: len(there) // REDUCTION]:
            trial = trials[number]
            to = min(high, trial.horizon)
            if math.isfinite(value) and trial.status == "frozen" and trial.frozen < to:
                return Thaw(number, to)
    return None


def _standing(trials: Trials, trial: Trial, unit: int) -> tuple[float, float]:
    """What it violates and its best value at the best unit up to this one."""
    value = _best(trial, unit, trials.objective)
    if not trials.constraints:
        return 0.0, value
    if math.isinf(value):  # behind what has a value, whatever that violates
        return math.inf, value
    known = (trials.known(trial.number, step) for step in trial.metrics if step <= unit)
    found = ((trials.violation(metrics), trials.score(metrics)) for metrics in known)
    return min(entry for entry in found if math.isfinite(entry[1]))


def _by_fronts(
    trials: Trials, best: list[tuple[float, float, int]], objectives: Sequence[Objective], unit: int
) -> list[tuple[float, float, int]]:
    """In every curve objective a trial counts with its best value up to the unit."""
    curves = [objective for objective in objectives if objective.kind == "curve"]
    rows = [
        {**trials[n].static, **{o.name: o.sign * _best(trials[n], unit, o) for o in curves}}
        for _, _, n in best
    ]
    violations = [beyond for beyond, _, _ in best]
    return [best[index] for index in ranked(rows, objectives, trials.objective, violations)]


def _best(trial: Trial, unit: int, objective: Objective) -> float:
    """The best finite value up to a unit, oriented so that less is better; infinite of a trial
    that failed."""
    if trial.status == "failed":
        return math.inf
    steps = (trial.metrics.get(step, {}) for step in range(1, unit + 1))
    values = (objective.sign * metrics.get(objective.name, math.nan) for metrics in steps)
    return min((value for value in values if math.isfinite(value)), default=math.inf)

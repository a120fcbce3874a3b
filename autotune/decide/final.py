"""The final phase: the best candidates are finished and trained again on other seeds, so that
the winner is not a lucky draw.

Among hundreds of trials the one with the best validation value was lucky in part: its value
overstates what its configuration does. When the search is over, the few that are expected to end
best (`Finalists`) are trained to their horizon, and each of their configurations again on other
seeds to the unit of its best checkpoint. The configuration with the best mean over the other
seeds wins; the value that it was chosen for does not count.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, replace

import numpy as np

from autotune.plugins.search import (
    Event,
    Final,
    Finalists,
    FloatArray,
    ForecastFunction,
    Observed,
    Query,
    SearchContext,
    Start,
    Thaw,
)
from autotune.plugins.trials import Trial, Trials

LOOKED_AT = 50
"""So many trials, best first by their best value, are forecast to choose the finalists from."""

LEAST = 2
"""Fewer candidates cannot be compared, and fewer seeds have no spread."""


def planned(context: SearchContext, trials: Trials) -> Final | None:
    """How many candidates and seeds the budget pays for, as `Final` says; None if the study has
    no final phase.

    What it costs at most, `candidates` times (`seeds` + 1) trainings to the horizon, is held
    against `Final.share` of the units, of the trials' trainings, and, once the cost of a unit
    is known, of the seconds.
    """
    wanted = context.final
    if wanted is None:
        return None
    least, most = min(wanted.seeds, LEAST), wanted.candidates
    fewer = [(most, seeds) for seeds in range(wanted.seeds, least - 1, -1)]
    fewer += [(count, least) for count in range(most - 1, min(most, LEAST) - 1, -1)]
    trainings = wanted.share * _trainings(context, trials)
    for candidates, seeds in fewer:
        if candidates * (seeds + 1) <= trainings:
            return Final(candidates, seeds, wanted.share)
    return None


def _trainings(context: SearchContext, trials: Trials) -> float:
    """How many trainings from nothing to the horizon the whole budget pays for."""
    budget = context.budget
    limits = [math.inf]
    if budget.units is not None:
        limits.append(budget.units / context.horizon)
    if budget.trials is not None:
        limits.append(budget.trials)
    if budget.seconds is not None and trials.units:
        seconds = trials.train_seconds / trials.units / context.workers
        limits.append(budget.seconds / (context.horizon * seconds) if seconds > 0 else math.inf)
    return min(limits)


@dataclass(frozen=True)
class Standing:
    """What the final phase says of one finalist.

    Args:
        trial: the candidate.
        step: the unit that its repeats are trained to: that of its own best checkpoint.
        value: of the primary objective there, which it was chosen for.
        repeats: (trial, value) of every repeat that got there, in the order of seeds.
        failed: repeats that failed; a finalist with one ranks behind those with none.
        mean: over the repeats; None without any.
        standard_error: of the mean, from the spread of the repeats around their own means over
            all finalists together; None where no two repeats are of one finalist.
    """

    trial: int
    step: int
    value: float
    repeats: tuple[tuple[int, float], ...]
    failed: int
    mean: float | None
    standard_error: float | None

    @property
    def runs(self) -> tuple[tuple[int, int], ...]:
        """(trial, step) of every training of the configuration that counts."""
        return (self.trial, self.step), *((trial, self.step) for trial, _ in self.repeats)


def standings(trials: Trials) -> list[Standing]:
    """All finalists with a checkpoint, the winner first; empty without a final phase.

    Ranked by: no repeat failed; then the mean over the repeats, where one with fewer repeats
    than another by two or more (its units ran out) ranks behind it. Those that were not
    repeated follow in the order they were chosen in.
    """
    if trials.finalists is None:
        return []
    found = []
    spreads: list[FloatArray] = []
    for number in trials.finalists.trials:
        step = trials.best_frozen(number)
        repeats = [trial for trial in trials.all.values() if trial.repeat_of == number]
        ended = tuple(
            (trial.number, trial.metrics[step][trials.objective.name])
            for trial in repeats
            if trial.frozen >= step and step in trial.metrics
        )
        values = np.array([value for _, value in ended])
        if step == 0:
            continue
        mean = float(values.mean()) if len(values) else None
        spreads.append(values - values.mean() if len(values) else values)
        value = trials[number].metrics[step][trials.objective.name]
        failed = sum(trial.status == "failed" for trial in repeats)
        found.append(Standing(number, step, value, ended, failed, mean, None))
    freedom = sum(max(0, len(away) - 1) for away in spreads)
    if freedom:
        deviation = math.sqrt(sum(float(away @ away) for away in spreads) / freedom)
        found = [
            replace(standing, standard_error=deviation / math.sqrt(len(standing.repeats)))
            if standing.repeats
            else standing
            for standing in found
        ]
    most = max((len(standing.repeats) for standing in found), default=0)
    sign = trials.objective.sign

    def rank(standing: Standing) -> tuple[bool, bool, bool, float]:
        mean = math.inf if standing.mean is None else sign * standing.mean
        return standing.mean is None, standing.failed > 0, len(standing.repeats) < most - 1, mean

    return sorted(found, key=rank)


def winner(trials: Trials) -> Standing | None:
    """The finalist with the best mean; None without a final phase, or where its repeats never
    came to an end."""
    first = next(iter(standings(trials)), None)
    return first if first is not None and first.mean is not None else None


def best_run(trials: Trials) -> tuple[int, int] | None:
    """(trial, step) of the checkpoint that is handed out for the winner: of all trainings of its
    configuration to the unit that was compared, the one with the best value, the first of
    equals. None without a winner."""
    first = winner(trials)
    if first is None:
        return None
    # A repeat that was cut short and went on may have a better checkpoint at an earlier unit,
    # which was not compared.
    runs = [(t, step) for t, step in first.runs if trials.best_frozen(t) == step]
    return min(runs, key=lambda run: (trials.score(trials[run[0]].metrics[run[1]]), run))


class FinalPhase:
    """The fold and the decisions of the final phase."""

    def __init__(self, context: SearchContext) -> None:
        self.context = context
        self._bests: dict[int, float] = {}

    def observe(self, event: Event, trials: Trials) -> None:
        """Fold one event that `trials` has folded already."""
        if isinstance(event, Observed):
            value = trials.score(event.metrics)
            if math.isfinite(value):
                self._bests[event.trial] = min(value, self._bests.get(event.trial, math.inf))

    def kept(self, trials: Trials) -> int:
        """Units to keep back: whole trainings of all finalists and their repeats, since any
        trial may turn out to be a finalist. What is not needed of it stays unspent."""
        plan = planned(self.context, trials)
        return 0 if plan is None else plan.candidates * (plan.seeds + 1) * self.context.horizon

    def finalists(
        self, trials: Trials, forecast: ForecastFunction, reason: str
    ) -> Finalists | None:
        """Who is expected to end best: by the better of the best value so far and the median
        forecast at the horizon. None without a final phase."""
        plan = planned(self.context, trials)
        fit = [n for n in self._bests if trials.best_frozen(n)]
        if plan is None or not fit:
            return None
        fit = heapq.nsmallest(LOOKED_AT, fit, key=lambda n: (self._bests[n], n))
        score = {number: self._bests[number] for number in fit}
        going = [number for number in fit if trials[number].status == "frozen"]
        if going:
            ends = forecast([Query(trials[number].horizon, trial=number) for number in going])
            for number, end in zip(going, ends.quantile(0.5), strict=True):
                score[number] = min(score[number], float(end))
        chosen = sorted(fit, key=lambda n: (score[n], n))[: plan.candidates]
        return Finalists(tuple(chosen), plan.seeds, reason)

    def decide(self, trials: Trials, left: float) -> Start | Thaw | None:
        """What to train next, with so many units left; None if there is nothing that could be
        begun now. First every finalist goes to its horizon; then come the repeats, one of each
        finalist in turn, as far as whole ones can be paid for."""
        assert trials.finalists is not None
        for number in trials.finalists.trials:
            trial = trials[number]
            if trial.status == "frozen" and min(trial.horizon, trial.frozen + left) > trial.frozen:
                return Thaw(number, int(min(trial.horizon, trial.frozen + left)))
        counts = dict.fromkeys(trials.finalists.trials, 0)
        for trial in trials.all.values():
            if trial.repeat_of is not None:
                counts[trial.repeat_of] += 1
        for round_ in range(trials.finalists.seeds):
            for number, count in counts.items():
                if count == round_ and number not in trials.in_flight:
                    again = self._repeat(trials, trials[number])
                    if again is not None and again.to <= left:
                        return again
        return None

    def _repeat(self, trials: Trials, trial: Trial) -> Start | None:
        step = trials.best_frozen(trial.number)
        if not step:
            return None
        return Start(
            len(trials), trial.configuration, trial.horizon, step, trial.bound_from, trial.number
        )

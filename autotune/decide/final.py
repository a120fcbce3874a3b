"""The final phase: the best candidates are finished and trained again on other seeds, so that
the winner is not a lucky draw.

Among hundreds of trials the one with the best validation value was lucky in part: its value
overstates what its configuration does. When the search is over, the few that are expected to end
best (`Finalists`) are trained to their horizon, and each of their configurations again on other
seeds to the unit of its best checkpoint. The configuration with the best mean over the other
seeds wins; the value that it was chosen for does not count.

Two kinds of candidates join them, trials of their own that are derived from a checkpoint under
another schedule (`Origin`). A rate that is held until the end leaves a run noisier than it need
be, so that values at a constant rate and at the end of a decay do not compare: finalists whose
schedule knows no horizon are cooled down to it, which costs nothing beyond finishing them
(Hägele et al. 2024, arXiv 2405.18392). And the winner may be trained once more under the schedule
that its own gradient norms suggest (Defazio et al. 2023, arXiv 2310.07831).
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, replace

import numpy as np

from autotune.decide.feasibility import limited_curves
from autotune.plugins.search import (
    Budget,
    Decided,
    Event,
    Extended,
    Final,
    Finalists,
    FloatArray,
    ForecastFunction,
    Origin,
    Query,
    SearchContext,
    Start,
    Thaw,
)
from autotune.plugins.trials import Trial, Trials
from autotune.space import Configuration

LOOKED_AT = 50
"""So many trials, best first by their best value, are forecast to choose the finalists from."""

MORE = 2
"""Where less is needed than was kept back, since finalists are trained already, there are up to
so many times as many repeats."""

LEAST = 2
"""Fewer candidates cannot be compared, and fewer seeds have no spread."""


def planned(context: SearchContext, trials: Trials) -> Final | None:
    """How many candidates and seeds the budget pays for, as `Final` says; None if the study has
    no final phase.

    What it costs at most, `candidates` and `refine` times (`seeds` + 1) trainings to the
    horizon, is held against `Final.share` of the units, of the trials' trainings, and, once the
    cost of a unit is known, of the seconds.
    """
    if context.final is None:
        return None
    return _paid_for(context.final, _trainings(context, trials))


def kept_at_first(final: Final | None, budget: Budget, horizon: int) -> int:
    """Units that are kept back of a budget before anything is known of what a unit costs."""
    plan = None if final is None else _paid_for(final, _counted(budget, horizon))
    return 0 if plan is None else _kept(plan, horizon)


def _paid_for(wanted: Final, trainings: float) -> Final | None:
    least, most = min(wanted.seeds, LEAST), wanted.candidates
    fewer = [(most, wanted.seeds, rounds) for rounds in range(wanted.refine, -1, -1)]
    fewer += [(most, seeds, 0) for seeds in range(wanted.seeds - 1, least - 1, -1)]
    fewer += [(count, least, 0) for count in range(most - 1, min(most, LEAST) - 1, -1)]
    trainings *= wanted.share
    for candidates, seeds, refine in fewer:
        if (candidates + refine) * (seeds + 1) <= trainings:
            return replace(wanted, candidates=candidates, seeds=seeds, refine=refine)
    return None


def _trainings(context: SearchContext, trials: Trials) -> float:
    """How many trainings from nothing to the horizon the whole budget pays for."""
    budget, trainings = context.budget, _counted(context.budget, context.horizon)
    if budget.seconds is not None and trials.units:
        seconds = trials.train_seconds / trials.units / context.workers
        if seconds > 0:
            trainings = min(trainings, budget.seconds / (context.horizon * seconds))
    if budget.gpu_seconds is not None and trials.train_seconds * trials.gpus > 0:
        seconds = trials.train_seconds / trials.units * trials.gpus
        trainings = min(trainings, budget.gpu_seconds / (context.horizon * seconds))
    return trainings


def _counted(budget: Budget, horizon: int) -> float:
    """Those that its units and trials pay for."""
    units = math.inf if budget.units is None else budget.units / horizon
    return min(units, math.inf if budget.trials is None else budget.trials)


def _kept(plan: Final, horizon: int) -> int:
    """Units of whole trainings of all finalists and their repeats, since any trial may turn out to
    be a finalist, and of as many refined ones as are wanted."""
    return (plan.candidates + plan.refine) * (plan.seeds + 1) * horizon


@dataclass(frozen=True)
class Standing:
    """What the final phase says of one candidate: a finalist, or what was derived from one.

    Args:
        trial: the candidate.
        origin: what it was derived from, None of a finalist.
        step: the unit that its repeats are trained to: that of its own best checkpoint.
        value: of the primary objective there, which it was chosen for.
        repeats: (trial, value) of every repeat that got there, in the order of seeds.
        failed: repeats that failed; a finalist with one ranks behind those with none.
        violation: of the constraints, by the means of the constrained metrics over the repeats.
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
    origin: Origin | None = None
    violation: float = 0.0

    @property
    def runs(self) -> tuple[tuple[int, int], ...]:
        """(trial, step) of every training of the configuration that counts."""
        return (self.trial, self.step), *((trial, self.step) for trial, _ in self.repeats)


def standings(trials: Trials) -> list[Standing]:
    """All candidates with a checkpoint, the winner first; empty without a final phase.

    Ranked by: the constraints are violated least; no repeat failed; then the mean over the repeats,
    where one with fewer repeats than another by two or more (its units ran out) ranks behind it.
    Those that were not repeated follow in the order they were chosen in.
    """
    if trials.finalists is None:
        return []
    found = []
    spreads: list[FloatArray] = []
    derived = [n for n, t in trials.all.items() if t.origin is not None and t.repeat_of is None]
    for number in (*trials.finalists.trials, *derived):
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
        origin = trials[number].origin
        if origin is not None and origin.how == "cooldown":
            source = trials[origin.trial]
            base = source.number if source.repeat_of is None else source.repeat_of
            repeats += [trial for trial in trials.all.values() if trial.repeat_of == base]
        failed = sum(trial.status == "failed" for trial in repeats)
        beyond = _violation(trials, step, [trial for trial, _ in ended] or [number])
        found.append(Standing(number, step, value, ended, failed, mean, None, origin, beyond))
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

    def rank(standing: Standing) -> tuple[bool, float, bool, bool, float]:
        mean = math.inf if standing.mean is None else sign * standing.mean
        few = len(standing.repeats) < most - 1
        return standing.mean is None, standing.violation, standing.failed > 0, few, mean

    return sorted(found, key=rank)


def _violation(trials: Trials, step: int, numbers: list[int]) -> float:
    """What the means over trials at a step violate."""
    if not trials.constraints:
        return 0.0
    known = [trials.known(number, step) for number in numbers]
    names = {constraint.name for constraint in trials.constraints}
    shared = (name for name in names if all(name in metrics for metrics in known))
    means = {name: float(np.mean([metrics[name] for metrics in known])) for name in shared}
    return trials.violation(means)


def winner(trials: Trials) -> Standing | None:
    """The finalist with the best mean; None without a final phase, or where its repeats never
    came to an end."""
    first = next(iter(standings(trials)), None)
    return first if first is not None and first.mean is not None else None


def best_run(trials: Trials) -> tuple[int, int] | None:
    """(trial, step) of the checkpoint that is handed out for the winner: of all trainings of its
    configuration to the unit that was compared, the one that violates the constraints least and
    has the best value, the first of equals. None without a winner."""
    first = winner(trials)
    if first is None:
        return None
    # A repeat that was cut short and went on may have a better checkpoint at an earlier unit,
    # which was not compared.
    runs = [(t, step) for t, step in first.runs if trials.best_frozen(t) == step]

    def rank(run: tuple[int, int]) -> tuple[float, float, tuple[int, int]]:
        known = trials.known(*run)
        return trials.violation(known), trials.score(known), run

    return min(runs, key=rank)


class FinalPhase:
    """The fold and the decisions of the final phase.

    Rules:
        - a finalist whose schedule knows no horizon is trained up to `Final.cooldown` of the
          horizon before it, and from there cooled down to it, as a trial of its own; one that
          stands beyond that point is cooled down from where it stands. Both may win;
        - a repeat of it is trained as far as that too, and cooled down, which gives a repeat of
          both. Of a finalist that stood at its horizon already, the first repeat's cooldown is
          the candidate;
        - every other finalist goes to its horizon;
        - the repeats follow, one of each finalist in turn, to the unit of its best checkpoint,
          as far as whole ones can be paid for;
        - then the winner is refined, if that is asked for and it recorded its gradient norms,
          and repeated as often as the others: it wins if it is better;
        - what is left of the units that were kept pays for more repeats, up to `MORE` times as
          many.
    """

    def __init__(self, context: SearchContext) -> None:
        self.context = context
        self._bests: dict[int, tuple[float, float]] = {}
        self._begun_at = 0

    def observe(self, event: Event, trials: Trials) -> None:
        """Fold one event that `trials` has folded already."""
        if isinstance(event, Decided) and isinstance(event.decision, Finalists):
            self._begun_at = trials.units
        if isinstance(event, Extended):
            self.context = self.context.extended(event)
        for number, _, metrics in trials.settled(event):
            found = trials.violation(metrics), trials.score(metrics)
            if trials[number].own and math.isfinite(found[1]):
                self._bests[number] = min(found, self._bests.get(number, found))

    def kept(self, trials: Trials) -> int:
        """Units to keep back."""
        plan = planned(self.context, trials)
        return 0 if plan is None else _kept(plan, self.context.horizon)

    def _reserve(self, trials: Trials) -> float:
        """What is left of the units that were kept."""
        flying = (trials[number] for number in trials.in_flight)
        ahead = sum(max(0, (trial.target or 0) - trial.last) for trial in flying)
        return self.kept(trials) - (trials.units - self._begun_at) - ahead

    def finalists(
        self, trials: Trials, forecast: ForecastFunction, reason: str
    ) -> Finalists | None:
        """Who is expected to end best: by the better of the best so far and the median forecasts
        at the horizon, of the constrained metrics and the primary objective. None without a final
        phase, or where all trials are barred."""
        plan = planned(self.context, trials)
        fit = [n for n in self._bests if trials.best_frozen(n) and not trials[n].barred]
        if plan is None or not fit:
            return None
        fit = heapq.nsmallest(LOOKED_AT, fit, key=lambda n: (self._bests[n], n))
        score = {number: self._bests[number] for number in fit}
        going = [number for number in fit if trials[number].status == "frozen"]
        if going:
            queries = [Query(trials[number].horizon, trial=number) for number in going]
            ends = forecast(queries).quantile(0.5)
            metrics: list[dict[str, float]] = [{} for _ in going]
            for _, metric in limited_curves(self.context, trials):
                medians = metric.sign * forecast(queries, metric.name).quantile(0.5)
                for known, median in zip(metrics, medians, strict=True):
                    known[metric.name] = float(median)
            for number, end, known in zip(going, ends, metrics, strict=True):
                score[number] = min(score[number], (trials.violation(known), float(end)))
        chosen = sorted(fit, key=lambda n: (score[n], n))[: plan.candidates]
        return Finalists(tuple(chosen), plan.seeds, reason)

    def decide(self, trials: Trials, left: float) -> Start | Thaw | None:
        """What to train next, with so many units left; None if there is nothing that could be
        begun now."""
        assert trials.finalists is not None
        chosen = [trials[number] for number in trials.finalists.trials]
        refined = [t for t in trials.all.values() if _is_refined(t)]
        for trial in chosen:
            further = self._further(trials, trial, left)
            if further is not None:
                return further
        assert self.context.final is not None, "there is a final phase"
        seeds, repeated = trials.finalists.seeds, [*chosen, *refined]
        again = self._again(trials, repeated, seeds, left)
        if again is not None:
            return again
        if len(refined) < self.context.final.refine:
            if trials.in_flight:
                return None  # which may change who wins
            further = self._refined(trials, refined, left)
            if further is not None:
                return further
        left = min(left, self._reserve(trials))
        return self._again(trials, repeated, MORE * seeds, left)

    # --- the finalists themselves ---------------------------------------------------------------

    def _further(self, trials: Trials, trial: Trial, left: float) -> Start | Thaw | None:
        """The next segment of a finalist, or the start of its cooldown."""
        end = trial.horizon
        if self._is_cooled(trials, trial):
            if trial.number in trials.in_flight or trial.frozen == end:
                return None
            end = self._branch_unit(trial)
            if trial.frozen == end:
                return self._cool(trials, trial, left, None)
        end = int(min(end, trial.frozen + left))
        return Thaw(trial.number, end) if trial.status == "frozen" and end > trial.frozen else None

    def _is_cooled(self, trials: Trials, trial: Trial) -> bool:
        """Whether a finalist is cooled down to its horizon, too. One whose cooldown failed is
        not."""
        cooled = self._cooldown_of(trials, trial)
        return (
            "cooldown" in self.context.derived
            and trial.origin is None
            and trial.bound_from is None
            and trial.status != "failed"
            and self._branch_unit(trial) > 0
            and (cooled is None or cooled.status != "failed")
        )

    def _branch_unit(self, trial: Trial) -> int:
        """The unit that cooldowns of a finalist and its repeats begin after."""
        assert self.context.final is not None, "there is a final phase"
        units = max(1, round(self.context.final.cooldown * self.context.horizon))
        planned = trial.horizon - units
        return trial.frozen if planned < trial.frozen < trial.horizon else planned

    def _cooldown_of(self, trials: Trials, trial: Trial) -> Trial | None:
        """The cooldown that is a candidate: of a finalist itself, or, where that had passed the
        unit, of one of its repeats."""
        for number, cooled in trials.cooldowns.items():
            own = number == trial.number or trials[number].repeat_of == trial.number
            if own and trials[cooled].repeat_of is None:
                return trials[cooled]
        return None

    def _cool(
        self, trials: Trials, trial: Trial, left: float, repeat_of: int | None
    ) -> Start | None:
        if trial.number in trials.cooldowns or trial.horizon - trial.frozen > left:
            return None
        return Start(
            len(trials),
            self._derived(trial, "cooldown"),
            trial.horizon,
            trial.horizon,
            repeat_of=repeat_of,
            origin=Origin("cooldown", trial.number, trial.frozen),
        )

    def _derived(self, trial: Trial, how: str) -> Configuration:
        """The configuration with the schedule that a trial is derived with: its own, if that is
        the one."""
        schedule, own = self.context.derived[how], trial.configuration["schedule"]
        if own["name"] == schedule["name"]:
            schedule = own
        return {**trial.configuration, "schedule": schedule}

    # --- repeats --------------------------------------------------------------------------------

    def _again(
        self, trials: Trials, candidates: list[Trial], seeds: int, left: float
    ) -> Start | Thaw | None:
        """The next repeat of up to `seeds` each, or what is still to be done with one."""
        repeats: dict[int, list[Trial]] = {candidate.number: [] for candidate in candidates}
        for trial in trials.all.values():
            if trial.repeat_of in repeats:
                repeats[trial.repeat_of].append(trial)
        for candidate in candidates:
            for trial in repeats[candidate.number]:
                further = self._go_on(trials, candidate, trial, left)
                if further is not None:
                    return further
        # A repeat whose cooldown is the candidate is none of that.
        wanted = {c.number: seeds + self._is_a_repeats(trials, c) for c in candidates}
        for round_ in range(seeds + 1):
            for candidate in candidates:
                if len(repeats[candidate.number]) == round_ < wanted[candidate.number]:
                    again = self._repeat(trials, candidate, left)
                    if again is not None:
                        return again
        return None

    def _is_a_repeats(self, trials: Trials, candidate: Trial) -> bool:
        """Whether the candidate's cooldown was branched off a repeat."""
        cooled = self._cooldown_of(trials, candidate)
        origin = None if cooled is None else cooled.origin
        return origin is not None and origin.trial != candidate.number

    def _go_on(
        self, trials: Trials, candidate: Trial, trial: Trial, left: float
    ) -> Start | Thaw | None:
        """Cool a repeat down from the unit that its candidate was cooled down from; then train it
        on to the unit that the candidate itself is compared at."""
        if trial.status != "frozen" or trial.number in trials.in_flight:
            return None
        branched = trials.cooldowns.get(trial.number)
        if self._is_cooled(trials, candidate) and trial.frozen == self._branch_unit(candidate):
            cooled = self._cooldown_of(trials, candidate)
            if branched is None:
                number = None if cooled is None else cooled.number
                return self._cool(trials, trial, left, number)
            if trials[branched].status not in ("done", "failed"):
                return None  # it may have to begin again from the checkpoint
        to = trials.best_frozen(candidate.number)
        if self._is_cooled(trials, candidate) and trial.frozen < self._branch_unit(candidate):
            to = self._branch_unit(candidate)  # where the study was given a longer horizon
        if trial.frozen < to <= trial.frozen + left:
            return Thaw(trial.number, to)
        return None

    def _repeat(self, trials: Trials, trial: Trial, left: float) -> Start | None:
        step = whole = trials.best_frozen(trial.number)
        if self._is_cooled(trials, trial):
            if trial.frozen < trial.horizon and self._cooldown_of(trials, trial) is None:
                return None  # its own cooldown comes first
            to = self._branch_unit(trial)
            whole, step = max(step, to) + trial.horizon - to, to
        if not step or whole > left or trial.number in trials.in_flight:
            return None
        return Start(
            len(trials),
            trial.configuration,
            trial.horizon,
            step,
            trial.bound_from,
            trial.number,
            trial.origin,
        )

    # --- refinement -----------------------------------------------------------------------------

    def _refined(self, trials: Trials, done: list[Trial], left: float) -> Start | None:
        """The winner, or what it was refined to last, under the schedule that its norms suggest;
        only if its repeats can be paid for too."""
        best = winner(trials)
        if best is None or "refinement" not in self.context.derived:
            return None
        source = done[-1] if done else trials[best.trial]
        assert trials.finalists is not None, "it has begun"
        recorded = source.configuration.get("record_gradient_norms") is True
        whole = source.horizon * (1 + trials.finalists.seeds)
        if not recorded or source.status == "failed" or whole > left:
            return None
        return Start(
            len(trials),
            self._derived(source, "refinement"),
            source.horizon,
            source.horizon,
            origin=Origin("refinement", source.number, source.frozen),
        )


def _is_refined(trial: Trial) -> bool:
    """Whether a trial is a refined winner, and no repeat of one."""
    origin = trial.origin
    return origin is not None and origin.how == "refinement" and trial.repeat_of is None

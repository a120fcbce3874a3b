"""Freeze-thaw search: train a little whatever is most likely to beat the best."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import compress

import numpy as np

from autotune.decide import scale as scales
from autotune.decide.avoidance import Avoidance
from autotune.decide.configurations import first_configurations, identity
from autotune.decide.cost import Costs, spare_seconds
from autotune.decide.feasibility import likely_kept, limited_curves
from autotune.decide.front import DIRECTIONS, Aim, Front, searched
from autotune.decide.policies import candidates, opening
from autotune.plugins.search import (
    Decided,
    Event,
    Failed,
    FloatArray,
    ForecastFunction,
    Key,
    Policy,
    ProposeFunction,
    Query,
    SearchContext,
    Start,
    Stop,
    Thaw,
    Wait,
)
from autotune.plugins.trials import Trial, Trials
from autotune.space import Configuration, Float, Integer, Space

FROZEN = 120
"""No more frozen trials are candidates: the better half by their best value, the rest the
newest."""

THRESHOLDS = 4
"""Thresholds for each horizon: they cost no further forecast."""

FIRST_SHARE = 0.5
"""Of several objectives, the first alone is aimed at in so many decisions: it is what the best
configuration is picked by, and a front that grows at its cheap end would leave it behind."""

UNLIKELY = 0.01
"""Where no trial may be started any more, the search ends when no frozen one is more likely than
this to beat the best by its horizon."""

PROMOTIONS = 2
"""A new configuration's first segment leaves room to triple its length so often."""

LIKELY = 0.5
"""What a segment in flight is expected to bring counts if it is as likely to keep the constraints.
"""

_STREAM = 19


@dataclass
class _State:
    """First and best finite value of every trial, oriented so that less is better, the best where
    it violates the constraints least; how far that is; the identities of all configurations that
    were started; how trials stand; what units cost; which regions fail; and the front, where there
    are several objectives to search for."""

    avoidance: Avoidance
    front: Front | None
    firsts: dict[int, float] = field(default_factory=dict)
    bests: dict[int, float] = field(default_factory=dict)
    violations: dict[int, float] = field(default_factory=dict)
    started: set[str] = field(default_factory=set)
    standing: candidates.Standing = field(default_factory=candidates.Standing)
    costs: Costs = field(default_factory=Costs)

    def note(self, number: int, violation: float, value: float) -> None:
        """A trial has a finite value that violates the constraints so far."""
        self.firsts.setdefault(number, value)
        known = self.violations.get(number, 0.0), self.bests.get(number, math.inf)
        if number not in self.bests or (violation, value) < known:
            self.bests[number] = value
            self.violations.pop(number, None)
            if violation > 0:
                self.violations[number] = violation

    def to_beat(self) -> float:
        """The best value of what keeps the constraints; infinite where nothing does."""
        kept = (v for n, v in self.bests.items() if n not in self.violations)
        return min(kept if self.violations else self.bests.values(), default=math.inf)


@dataclass(frozen=True)
class _Candidates:
    """What a worker could train: frozen trials, then new configurations.

    Args:
        most: units that each can be trained further, by its horizon and what is left of the
            budget, (candidates,); at least 1.
        price: cost of a unit of each, (candidates,); all 1 where the budget counts units.
        warm_up: units that the first of a new one costs beyond one.
    """

    frozen: list[Trial]
    new: list[Configuration]
    most: FloatArray
    price: FloatArray
    warm_up: float = 0.0

    def __len__(self) -> int:
        return len(self.frozen) + len(self.new)

    def queries(self, ahead: int) -> list[Query]:
        """Each after `ahead` more units, or as many as it can be trained."""
        units = np.minimum(ahead, self.most).astype(int).tolist()
        old, begun = units[: len(self.frozen)], units[len(self.frozen) :]
        return [
            *(Query(t.frozen + n, trial=t.number) for t, n in zip(self.frozen, old, strict=True)),
            *(Query(n, configuration=c) for c, n in zip(self.new, begun, strict=True)),
        ]

    def prices(self, ahead: int) -> FloatArray:
        """Mean cost of a unit over `ahead` more units of each, relative to the cheapest."""
        prices = self.price.copy()
        prices[len(self.frozen) :] *= 1.0 + self.warm_up / ahead
        return np.asarray(prices / prices.min())

    def within(self, seconds: float, unit: FloatArray, warm_up: float) -> _Candidates:
        """Those of which a unit ends within so many seconds, and no more units than do.

        Args:
            unit: seconds of a unit of each, (candidates,).
            warm_up: units that the first of a new one costs beyond one.
        """
        spare = seconds / unit
        spare[len(self.frozen) :] -= warm_up
        keep = np.floor(spare) >= 1
        old, begun = keep[: len(self.frozen)].tolist(), keep[len(self.frozen) :].tolist()
        return _Candidates(
            list(compress(self.frozen, old)),
            list(compress(self.new, begun)),
            np.minimum(self.most, np.floor(spare))[keep],
            self.price[keep],
            self.warm_up,
        )


class FreezeThaw(Policy):
    """Freeze-thaw with the acquisition of ifBO, MFPI-random, and an opening race.

    The first `opening` trials run a small successive halving (`autotune.decide.policies.opening`).
    From then on each decision draws horizons h and thresholds T below the best value, and goes on
    with the candidate that is most likely, on average over them, to be below T after h more units:
    a frozen trial that is among the best third of those trained as long, or a new configuration
    (`autotune.decide.policies.candidates`). A frozen trial is trained for one unit, or for the
    share `growth` of what it has trained, so that decisions stay few; a new one for one unit until
    three horizons are spent, then for 3, from nine horizons on for 9, and so on, as long as that
    can be tripled twice within the horizon. By first units alone, one more new configuration
    always looks a little likelier than the many whose first unit is known to be ordinary: where
    learning takes off late, a long search by such steps goes through hundreds of them and on with
    none. With several objectives it stays at one unit.

    h is uniform up to the horizon and T = best - 10^tau * (way from the best to the ideal value),
    tau uniform in (-4, -1), as in the paper; where the ideal is unknown or near, the way from where
    trials start to the best is taken instead (`_threshold`). The paper draws one h and one T a
    decision; averaged over `horizons` draws of h, in equal parts of its range, and `THRESHOLDS` of
    T for each, what is good by one lucky draw is not chosen. Neither h nor a segment passes what is
    left of the budget.

    New configurations are what the proposer suggests, neighbours of the best trials, a Sobol
    piece of the space, and draws from its priors; none is nearly the same as a trial's.

    Several workers: segments in flight are no candidates, and the value to beat is what they are
    expected to bring where that is better than the best so far, so that no worker runs after a
    gain that is on its way.

    Several objectives that training changes (curves) or decides (measured once: parameters,
    memory): the threshold becomes the front. A decision draws directions from the reference point,
    and goes on with the candidate that is most likely to reach beyond the front along them
    (`autotune.decide.front`): every curve objective is forecast, what is measured once is known
    after a trial's first segment and predicted before. The opening race then promotes by fronts,
    all frozen trials may go on, and the neighbours are those of the front. In half of the decisions
    (`FIRST_SHARE`) the first objective alone is aimed at, as if there were no other.

    Where trials failed, new configurations like theirs are left out (`autotune.decide.avoidance`).

    Constraints: the best is the best that keeps them, and the probability is that of beating it and
    keeping the limits on curves, too (`autotune.decide.feasibility`).

    With a budget in seconds or GPU-seconds alone, the probability is taken per expected second
    (`autotune.decide.cost`), and no unit is begun that would not end in time.
    """

    name = "freeze_thaw"
    summary = "train a little whatever is most likely to beat the best soon (MFPI-random)"
    reference = (
        "Rakotoarison et al. 2024, In-Context Freeze-Thaw Bayesian Optimization for "
        "Hyperparameter Optimization, 2404.16795"
    )

    @classmethod
    def space(cls) -> Space:
        """How many new configurations are candidates in a decision, by their source; how many
        trials the opening race has; a step's share of what is trained; and how many horizons are
        drawn in a decision."""
        return Space(
            {
                "proposals": Integer(0, 64, default=1),
                "neighbours": Integer(0, 256, default=16),
                "sobol": Integer(0, 256, default=48),
                "prior": Integer(0, 256, default=8),
                "opening": Integer(1, 100, default=27),
                "growth": Float(0.0, 1.0, default=0.2),
                "horizons": Integer(1, 8, default=3),
            }
        )

    def initial(self, context: SearchContext) -> _State:
        """Nothing is known."""
        objectives = searched(context)
        front = Front(objectives) if len(objectives) > 1 else None
        return _State(Avoidance(context.space, context.seed), front)

    def observe(
        self, context: SearchContext, state: _State, event: Event, trials: Trials
    ) -> _State:
        """Note a trial's configuration, its first and best value, and what its units cost."""
        state.costs.observe(event)
        state.avoidance.observe(event, trials)
        if state.front is not None:
            state.front.observe(event, trials)
        for number, step, metrics in trials.settled(event):
            value, violation = trials.score(metrics), trials.violation(metrics)
            state.standing.note(number, step, math.inf if violation > 0 else value)
            if math.isfinite(value):
                state.note(number, violation, value)
        match event:
            case Decided(decision=Start(configuration=configuration)):
                state.started.add(identity(configuration))
            case Failed(trial=number, evaluation=None):
                state.standing.fail(number)
            case _:
                pass
        return state

    def decide(
        self,
        context: SearchContext,
        state: _State,
        propose: ProposeFunction,
        forecast: ForecastFunction,
        trials: Trials,
        key: Key,
    ) -> Start | Thaw | Wait | Stop:
        """The opening race, then the most promising candidate."""
        limit = context.budget.trials
        may_start = limit is None or len(trials) < limit
        opened = self._open(context, state, propose, trials, may_start)
        if opened is not None:
            return opened
        generator = key.generator(_STREAM)
        front = state.front
        if front is not None and (not len(front.points) or generator.random() < FIRST_SHARE):
            front = None
        found = self._candidates(context, state, front, propose, trials, generator, may_start)
        if not len(found) and front is not state.front:
            front = state.front
            found = self._candidates(context, state, front, propose, trials, generator, may_start)
        if not state.bests or not len(found):
            return Wait() if trials.in_flight else Stop(_exhausted(state, trials, may_start))
        if front is not None and len(front.points):
            promise = self._front_promise(context, front, found, forecast, trials, generator)
        else:
            promise = self._promise(context, state, found, forecast, trials, generator)
        chosen = int(np.argmax(promise))
        if chosen >= len(found.frozen):
            first = 1 if state.front is not None else _first_segment(context.horizon, trials.units)
            new = found.new[chosen - len(found.frozen)]
            return _start(context, trials, new, min(first, int(found.most[chosen])))
        if not may_start and not trials.in_flight:
            if front is not None and promise[chosen] < UNLIKELY / DIRECTIONS:
                return Stop(f"no trial is more likely than {UNLIKELY:.0%} to improve the front")
            if state.front is None and _hopeless(context, state, found.frozen, forecast, trials):
                return Stop(f"no trial is more likely than {UNLIKELY:.0%} to beat the best")
        trial = found.frozen[chosen]
        step = max(1, round(float(self.configuration["growth"]) * trial.frozen))
        return Thaw(trial.number, trial.frozen + min(step, int(found.most[chosen])))

    def _open(
        self,
        context: SearchContext,
        state: _State,
        propose: ProposeFunction,
        trials: Trials,
        may_start: bool,
    ) -> Start | Thaw | None:
        """The next segment of the opening race; None if it waits for others or is over."""
        asked_for = len(first_configurations(context)) - 1
        count = int(self.configuration["opening"])
        if state.front is not None:  # a front is wide: the search itself begins many trials
            count = (count + 1) // 2
        count += asked_for
        promoted = opening.promotion(trials, count, context.horizon, searched(context))
        if promoted is not None and _in_time(context, state, trials, promoted):
            return promoted
        if may_start and (len(trials) < count or not state.bests):
            proposed = propose(1)
            if proposed:
                return _start(context, trials, proposed[0])
        return None

    def _candidates(
        self,
        context: SearchContext,
        state: _State,
        front: Front | None,
        propose: ProposeFunction,
        trials: Trials,
        generator: np.random.Generator,
        may_start: bool,
    ) -> _Candidates:
        """All that a worker could train at least one more unit of, with its cost."""
        if front is None:
            frozen = candidates.frozen(
                trials, state.bests, state.standing, FROZEN, violations=state.violations
            )
            bests, beyond = state.bests, state.violations
            best = sorted(bests, key=lambda n: (beyond.get(n, 0.0), bests[n], n))
            parents = best[: candidates.PARENTS]
        else:
            owners = sorted(set(front.owners))
            frozen = candidates.frozen(
                trials, state.bests, None, FROZEN, set(owners), state.violations
            )
            parents = generator.permutation(owners)[: candidates.PARENTS].tolist()
        new: list[Configuration] = []
        if may_start:
            counts = {
                source: int(self.configuration[source])
                for source in ("proposals", "neighbours", "sobol", "prior")
            }
            new = candidates.new(
                context, trials, parents, state.started, propose, generator, counts
            )
            new = state.avoidance.kept(new, trials) or new
        most = np.array([*(t.horizon - t.frozen for t in frozen), *[context.horizon] * len(new)])
        left = _units_left(context, trials)
        most = np.minimum(most.astype(float), max(left, 1.0))
        if not context.budget.timed:
            return _Candidates(frozen, new, most, np.ones(len(most)))
        model = state.costs.model(trials, context.costs)
        unit = np.append([model.of_trial(trial.number) for trial in frozen], model.of_new(new))
        counted = context.budget.units is None
        if not model.known:  # costs are relative: they forbid nothing
            return _Candidates(frozen, new, most, unit if counted else np.ones(len(most)))
        warm_up = model.warm_up - 1.0
        found = _Candidates(
            frozen,
            new,
            most,
            unit if counted else np.ones(len(unit)),
            warm_up if counted else 0.0,
        )
        return found.within(spare_seconds(context.budget, trials), unit, warm_up)

    def _promise(
        self,
        context: SearchContext,
        state: _State,
        found: _Candidates,
        forecast: ForecastFunction,
        trials: Trials,
        generator: np.random.Generator,
    ) -> FloatArray:
        """Mean probability of every candidate to beat a threshold by a horizon, per cost."""
        ahead = self._ahead(context, generator)
        parts = len(ahead)
        margins = 10.0 ** -generator.uniform(1.0, 4.0, size=(parts, THRESHOLDS))
        pending = _pending(trials)
        queries = [query for h in ahead for query in found.queries(h)]
        limits = limited_curves(context, trials)
        kept = likely_kept(limits, forecast, queries + pending)
        likely = np.full((parts, len(found)), float(THRESHOLDS))
        best = state.to_beat()
        if math.isfinite(best):
            forecasts = forecast(queries + pending)
            expected = forecasts.quantile(0.5)[len(queries) :] if pending else np.zeros(0)
            best = min([best, *expected[kept[len(queries) :] >= LIKELY].tolist()])
            beaten = _thresholds(state, trials, best, margins)
            likely = np.zeros((parts, len(found)))
            for column in range(THRESHOLDS):
                each = np.append(np.repeat(beaten[:, column], len(found)), [best] * len(pending))
                below = forecasts.probability_below(each)[: len(queries)]
                likely += below.reshape(parts, len(found))
        if limits:
            likely *= kept[: len(queries)].reshape(parts, len(found))
        return np.asarray(
            np.mean([p / found.prices(h) for p, h in zip(likely, ahead, strict=True)], 0)
        )

    def _front_promise(
        self,
        context: SearchContext,
        front: Front,
        found: _Candidates,
        forecast: ForecastFunction,
        trials: Trials,
        generator: np.random.Generator,
    ) -> FloatArray:
        """Mean probability of every candidate to reach beyond the front, per cost."""
        ahead = self._ahead(context, generator)
        pending, flying = _pending(trials), _flying(trials)
        queries = [query for h in ahead for query in found.queries(h)]
        forecasts = [forecast(queries + pending, o.name) for o in front.curves]
        expected = np.stack([f.quantile(0.5)[len(queries) :] for f in forecasts], axis=1)
        aim = Aim(front, trials, generator, flying, expected)
        static = aim.static([trial.number for trial in found.frozen], found.new)
        promise = aim.promise(np.tile(static, (len(ahead), 1, 1)), forecasts)
        promise = promise * likely_kept(limited_curves(context, trials), forecast, queries)
        likely = promise.reshape(len(ahead), len(found))
        return np.asarray(
            np.mean([p / found.prices(h) for p, h in zip(likely, ahead, strict=True)], 0)
        )

    def _ahead(self, context: SearchContext, generator: np.random.Generator) -> list[int]:
        """Horizons of one decision, one in each equal part of their range."""
        parts = int(self.configuration["horizons"])
        return [
            1 + int(context.horizon * (part + generator.random()) / parts) for part in range(parts)
        ]


def _start(
    context: SearchContext, trials: Trials, configuration: Configuration, first: int = 1
) -> Start:
    return Start(len(trials), configuration, context.horizon, first)


def _first_segment(horizon: int, spent: int) -> int:
    """Units that a new configuration is trained before it is compared."""
    first = 1
    while (
        first * opening.REDUCTION ** (1 + PROMOTIONS) <= horizon
        and spent >= first * opening.REDUCTION * horizon
    ):
        first *= opening.REDUCTION
    return first


def _in_time(context: SearchContext, state: _State, trials: Trials, thaw: Thaw) -> bool:
    """Whether one unit of a trial ends before the deadline, if there is one."""
    if not context.budget.timed:
        return True
    model = state.costs.model(trials, context.costs)
    spare = spare_seconds(context.budget, trials)
    return not model.known or model.of_trial(thaw.trial) <= spare


def _exhausted(state: _State, trials: Trials, may_start: bool) -> str:
    """Why nothing is a candidate."""
    if may_start or candidates.frozen(trials, state.bests, state.standing, FROZEN):
        return "no trial can be trained further within the budget, and no other begun"
    return "every trial that is among the best at its length is trained to its horizon"


def _units_left(context: SearchContext, trials: Trials) -> float:
    """Units that are neither trained nor on their way."""
    if context.budget.units is None:
        return math.inf
    flying = (trials[number] for number in trials.in_flight)
    ahead = sum(max(0, (trial.target or 0) - trial.last) for trial in flying)
    return context.budget.units - trials.units - ahead


def _pending(trials: Trials) -> list[Query]:
    """Asks what the segments in flight will bring."""
    found = []
    for number in trials.in_flight:
        trial = trials[number]
        if trial.target is not None and trial.metrics:
            found.append(Query(trial.target, trial=number))
        elif trial.target is not None:
            found.append(Query(trial.target, configuration=trial.configuration))
    return found


def _flying(trials: Trials) -> list[int]:
    """Whom `_pending` asks of."""
    return [number for number in trials.in_flight if trials[number].target is not None]


def _hopeless(
    context: SearchContext,
    state: _State,
    frozen: list[Trial],
    forecast: ForecastFunction,
    trials: Trials,
) -> bool:
    ends = [Query(trial.horizon, trial=trial.number) for trial in frozen]
    better = likely_kept(limited_curves(context, trials), forecast, ends)
    if math.isfinite(best := state.to_beat()):
        better = better * forecast(ends).probability_below(best)
    return bool(better.max() < UNLIKELY)


def _thresholds(state: _State, trials: Trials, best: float, margins: FloatArray) -> FloatArray:
    """The values to beat, of the shape of `margins`: so much of the way from the best to the ideal
    value, or, where that is unknown or nearer, of the way from where trials start to the best."""
    scale = scales.fitted(trials.objective, list(state.firsts.values()), list(state.bests.values()))
    if scale.origin is not None:
        return scale.restore(scale.normalise(np.array(best)) - margins)
    ideal = scales.ideal(trials.objective, best)
    return best - margins * max(scale.width, 0.0 if ideal is None else best - ideal)

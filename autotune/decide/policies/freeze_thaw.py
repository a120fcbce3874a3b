"""Freeze-thaw search: train a little whatever is most likely to beat the best."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from autotune.decide import scale as scales
from autotune.decide.configurations import first_configurations, identity, unseen
from autotune.plugins.search import (
    Decided,
    Event,
    ForecastFunction,
    Key,
    Observed,
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

FROZEN = 200
"""No more frozen trials are candidates: the better half by their best value, the rest the
newest."""

PARENTS = 5
"""New configurations are also looked for near so many of the best trials."""

UNLIKELY = 0.01
"""Where no trial may be started any more, the search ends when no frozen one is more likely than
this to beat the best by its horizon."""

_STREAM = 19


@dataclass
class _State:
    """First and best finite value of every trial, oriented so that less is better; and the
    identities of all configurations that were started."""

    firsts: dict[int, float] = field(default_factory=dict)
    bests: dict[int, float] = field(default_factory=dict)
    started: set[str] = field(default_factory=set)


class FreezeThaw(Policy):
    """The acquisition of ifBO, MFPI-random.

    Each decision draws a horizon h and a threshold T below the best value, and goes on with the
    candidate that is most likely to be below T after h more units: a frozen trial, or a new
    configuration. It is trained for one unit only, or, with a `growth`, for that share of what it
    has trained, so that decisions stay few.

    h ~ U{1..horizon} and T = best - 10^tau * (way from the best to the ideal value), tau ~
    U(-4, -1), as in the paper; where the ideal is unknown or near, the way from where trials
    start to the best is taken instead (`_threshold`). New configurations are what the proposer
    suggests, neighbours of the best trials, and random ones. Unlike in the paper their
    probability is multiplied by `eagerness`: with many equally good candidates the less known is
    always a little likelier to win, and the search would start trials without ever going on.
    Trials in flight are no candidates, and their configurations are not proposed again.
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
        random ones are tried before the first forecast; a step's share of what is trained; and
        the factor on the probability of new configurations."""
        return Space(
            {
                "proposals": Integer(0, 64, default=1),
                "neighbours": Integer(0, 256, default=24),
                "random": Integer(0, 256, default=24),
                "start": Integer(1, 100, default=3),
                "growth": Float(0.0, 1.0, default=0.0),
                "eagerness": Float(0.0, 1.0, default=0.8),
            }
        )

    def initial(self, context: SearchContext) -> _State:
        """Nothing is known."""
        return _State()

    def observe(
        self, context: SearchContext, state: _State, event: Event, trials: Trials
    ) -> _State:
        """Note a trial's configuration, and its first and best value."""
        match event:
            case Decided(decision=Start(configuration=configuration)):
                state.started.add(identity(configuration))
            case Observed(trial=number):
                value = trials.score(event.metrics)
                if math.isfinite(value):
                    state.firsts.setdefault(number, value)
                    state.bests[number] = min(value, state.bests.get(number, math.inf))
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
        """Start what comes first, then the most promising candidate."""
        limit = context.budget.trials
        may_start = limit is None or len(trials) < limit
        first = len(first_configurations(context)) + int(self.configuration["start"]) - 1
        if may_start and (len(trials) < first or not state.bests):
            proposed = propose(1)
            if proposed:
                return self._start(context, trials, proposed[0])
        frozen = _candidates(state, trials)
        generator = key.generator(_STREAM)
        new = self._new(context, state, propose, trials, generator) if may_start else []
        if not state.bests or not (frozen or new):
            reason = "every trial is trained to its horizon, and no other may be started"
            return Wait() if trials.in_flight else Stop(reason)
        ahead = int(generator.integers(1, context.horizon + 1))
        queries = [Query(min(t.frozen + ahead, t.horizon), trial=t.number) for t in frozen]
        queries += [Query(ahead, configuration=configuration) for configuration in new]
        threshold = _threshold(state, trials, 10.0 ** generator.uniform(-4.0, -1.0))
        likely = forecast(queries).probability_below(threshold)
        likely[len(frozen) :] *= float(self.configuration["eagerness"])
        chosen = int(np.argmax(likely))
        if chosen >= len(frozen):
            return self._start(context, trials, new[chosen - len(frozen)])
        if not may_start and not trials.in_flight and self._hopeless(frozen, forecast, trials):
            return Stop(f"no trial is more likely than {UNLIKELY:.0%} to beat the best")
        trial = frozen[chosen]
        step = max(1, round(float(self.configuration["growth"]) * trial.frozen))
        return Thaw(trial.number, min(trial.frozen + step, trial.horizon))

    def _start(self, context: SearchContext, trials: Trials, configuration: Configuration) -> Start:
        return Start(len(trials), configuration, context.horizon, 1)

    def _hopeless(self, frozen: list[Trial], forecast: ForecastFunction, trials: Trials) -> bool:
        assert trials.best is not None
        ends = forecast([Query(trial.horizon, trial=trial.number) for trial in frozen])
        return bool(ends.probability_below(trials.best[0]).max() < UNLIKELY)

    def _new(
        self,
        context: SearchContext,
        state: _State,
        propose: ProposeFunction,
        trials: Trials,
        generator: np.random.Generator,
    ) -> list[Configuration]:
        """New configurations, all different and none of a trial."""
        proposals = int(self.configuration["proposals"])
        found = propose(proposals) if proposals else []
        taken = state.started | {identity(configuration) for configuration in found}
        parents = sorted(state.bests, key=lambda number: (state.bests[number], number))[:PARENTS]
        for index in range(int(self.configuration["neighbours"]) if parents else 0):
            parent = trials[parents[index % len(parents)]].configuration
            neighbour = context.space.neighbour(parent, generator)
            if identity(neighbour) not in taken:
                taken.add(identity(neighbour))
                found.append(neighbour)
        half = int(self.configuration["random"]) // 2
        found += unseen(context.space, generator, half, taken, prior=True)
        taken |= {identity(configuration) for configuration in found}
        return found + unseen(context.space, generator, half, taken)


def _threshold(state: _State, trials: Trials, margin: float) -> float:
    """The value to beat: `margin` of the way from the best to the ideal value, or, where that
    is unknown or nearer, of the way from where trials start to the best."""
    scale = scales.fitted(trials.objective, list(state.firsts.values()), list(state.bests.values()))
    best = min(state.bests.values())
    if scale.origin is not None:
        return float(scale.restore(scale.normalise(np.array(best)) - margin))
    ideal = scales.ideal(trials.objective, best)
    return best - margin * max(scale.width, 0.0 if ideal is None else best - ideal)


def _candidates(state: _State, trials: Trials) -> list[Trial]:
    """Frozen trials that may go on, at most `FROZEN`, by number."""
    found = [t for t in trials.all.values() if t.status == "frozen" and t.number in state.bests]
    if len(found) > FROZEN:
        ranked = sorted(found, key=lambda trial: (state.bests[trial.number], trial.number))
        best, rest = ranked[: FROZEN // 2], ranked[FROZEN // 2 :]
        newest = sorted(rest, key=lambda trial: -trial.number)[: FROZEN - len(best)]
        found = sorted([*best, *newest], key=lambda trial: trial.number)
    return found

"""Shares a budget among the options of one choice (which optimizer, which adapter) as evidence
comes in: an arm bandit decides whose turn it is, successive halving what of that family is trained.
"""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from bisect import bisect_left, bisect_right, insort
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from autotune.decide.arms.bandit import Bandit, Pull
from autotune.decide.arms.families import KINDS, PARENTS, Families
from autotune.decide.avoidance import Avoidance
from autotune.decide.configurations import first_configurations, identity
from autotune.decide.policies.asha import ASHA
from autotune.plugins.base import PluginError
from autotune.plugins.search import (
    Decided,
    Event,
    Evicted,
    Failed,
    ForecastFunction,
    Frozen,
    Key,
    Policy,
    ProposeFunction,
    SearchContext,
    Start,
    Stop,
    Thaw,
    Wait,
)
from autotune.plugins.trials import Trials
from autotune.space import Categorical, Configuration, Space

_STREAM = 41


_Value = tuple[float, float]
_WORST: _Value = (math.inf, math.inf)


@dataclass
class _State:
    """The fold.

    Args:
        families: the options that are arms.
        bandit: which shares the pulls, and `arms`, its state.
        inside: the state of successive halving among each family's own trials.
        pulls: those whose segment has not ended, by trial.
        latest: every trial's violation of the constraints and newest value (infinite if it
            failed), and `ordered`, all of them.
        best: each family's best trials by these, so many as new ones are bred from.
        started: the identities of all configurations, and `first`, of those that come first,
            whatever the bandit says.
        avoidance: of what is likely to fail, as the study's proposers keep to it.
    """

    families: Families
    bandit: Bandit
    arms: Any
    inside: list[Any]
    avoidance: Avoidance
    first: set[str]
    pulls: dict[int, Pull] = field(default_factory=dict)
    latest: dict[int, _Value] = field(default_factory=dict)
    ordered: list[_Value] = field(default_factory=list)
    best: list[list[tuple[_Value, int]]] = field(default_factory=list)
    started: set[str] = field(default_factory=set)


class ArmPolicy(Policy):
    """Whenever a worker is free, the bandit picks a family, and asynchronous successive halving
    among that family's own trials says whether one of them is promoted or a new one begun; if
    neither is possible, the next family that the bandit would have picked has its turn.

    A segment's reward, which arrives when it ends, is the share of all trials whose newest value is
    worse than the one it reached (equals count half): 1 for the best of all, 0 for a failure. It
    has no unit, and it drifts: what led early does not lead for ever.

    `over` says which kind of plugin is shared out where the space lets several be chosen. A space
    without a choice of that kind is shared by the next of optimizer, adapter and schedule that it
    has a choice of, else by its first choice.
    """

    @classmethod
    @abstractmethod
    def bandit_space(cls) -> Mapping[str, Any]:
        """Hyperparameters of the bandit."""

    @abstractmethod
    def bandit(self, arms: int) -> Bandit:
        """The bandit for so many arms."""

    @classmethod
    def space(cls) -> Space:
        """What is shared out, and the bandit's own hyperparameters."""
        over = Categorical(KINDS, default=KINDS[0])
        return Space({"over": over, **cls.bandit_space()})

    def initial(self, context: SearchContext) -> _State:
        """Every family is worth the same.

        Raises:
            PluginError: the space has no such choice.
        """
        families = Families.found(context.space, str(self.configuration["over"]))
        if families is None:
            raise PluginError(
                f"policy {self.name!r} shares a budget among the options of a choice, but the "
                f"space has none with two options or more; use another policy"
            )
        bandit = self.bandit(len(families.options))
        inside = [_INSIDE.initial(context) for _ in families.options]
        best: list[list[tuple[_Value, int]]] = [[] for _ in families.options]
        avoidance = Avoidance(context.space, context.seed)
        first = {identity(configuration) for configuration in first_configurations(context)}
        return _State(families, bandit, bandit.initial(), inside, avoidance, first, best=best)

    def observe(
        self, context: SearchContext, state: _State, event: Event, trials: Trials
    ) -> _State:
        """Note a pull, or its reward; a segment that was lost is gone on with by the search, and is
        still the same pull."""
        number = self._concerned(event)
        if number is None:
            return state
        arm = state.families.of(trials[number])
        state.avoidance.observe(event, trials)
        if isinstance(event, Decided) and number not in state.pulls:
            among = self._among(context, state, event, arm, trials)
            state.pulls[number] = state.bandit.pulled(state.arms, arm, among)
        state.inside[arm] = _INSIDE.observe(context, state.inside[arm], event, trials)
        match event:
            case Decided():
                state.started.add(identity(trials[number].configuration))
            case Frozen(step=step):
                known = trials.known(number, step)
                value = trials.violation(known), trials.score(known)
                self._reward(state, number, arm, value if math.isfinite(value[1]) else _WORST)
            case Failed():
                self._reward(state, number, arm, _WORST)
            case _:
                pass
        return state

    @staticmethod
    def _among(
        context: SearchContext, state: _State, event: Decided, arm: int, trials: Trials
    ) -> list[int]:
        """The arms that could be pulled when one was, before `state` knows of it. Those that would
        have come before it could not, for whatever reason."""
        decision, limit = event.decision, context.budget.trials
        may_start = limit is None or len(trials) - trials.further < limit
        if isinstance(decision, Start):
            may_start = True
            if identity(decision.configuration) in state.first:
                return [arm]
        generator = Key(context.seed, event.number).generator(_STREAM)
        order = state.bandit.choose(state.arms, generator)
        after = order[order.index(arm) + 1 :]
        return [arm, *(a for a in after if may_start or state.inside[a].promotion(trials))]

    @staticmethod
    def _concerned(event: Event) -> int | None:
        match event:
            case Decided(decision=Start(trial=number) | Thaw(trial=number)):
                return number
            case Frozen(trial=number) | Failed(trial=number, evaluation=None):
                return number
            case Evicted(trial=number):
                return number
            case _:
                return None

    @staticmethod
    def _reward(state: _State, number: int, arm: int, value: _Value) -> None:
        if number in state.latest:
            del state.ordered[bisect_left(state.ordered, state.latest[number])]
        state.latest[number] = value
        pull = state.pulls.pop(number, None)
        if pull is not None:
            state.bandit.rewarded(state.arms, pull, _standing(value, state.ordered))
        insort(state.ordered, value)
        kept = [entry for entry in state.best[arm] if entry[1] != number]
        state.best[arm] = sorted([*kept, (value, number)])[:PARENTS] if value < _WORST else kept

    def decide(
        self,
        context: SearchContext,
        state: _State,
        propose: ProposeFunction,
        forecast: ForecastFunction,
        trials: Trials,
        key: Key,
    ) -> Start | Thaw | Wait | Stop:
        """The turn of the family that is picked. What is likely to fail is begun only if no family
        has anything else to train."""
        generator = key.generator(_STREAM)
        order = state.bandit.choose(state.arms, generator)
        reasons = []
        for careful, arm in itertools.product((True, False), order):

            def within(count: int, arm: int = arm, careful: bool = careful) -> list[Configuration]:
                def promising(configuration: Configuration) -> bool:
                    return not careful or bool(state.avoidance.kept([configuration], trials))

                parents = [trials[number].encoded for _, number in state.best[arm]]
                return state.families.proposed(
                    arm, count, propose, context, parents, state.started, promising, generator
                )

            decision = _INSIDE.decide(context, state.inside[arm], within, forecast, trials, key)
            if isinstance(decision, Start | Thaw):
                return decision
            reasons.append(decision)
        return next((r for r in reasons if isinstance(r, Stop)), Wait())


_INSIDE = ASHA()


def _standing(value: _Value, others: list[_Value]) -> float:
    """The share of `others`, in order, that a value is better than; equals count half."""
    if value == _WORST:
        return 0.0
    if not others:
        return 0.5
    worse = len(others) - bisect_right(others, value)
    equal = bisect_right(others, value) - bisect_left(others, value)
    return (worse + 0.5 * equal) / len(others)

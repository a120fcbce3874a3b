"""Asynchronous Hyperband: ladders of successive halving that begin at every rung, side by side."""

from __future__ import annotations

from dataclasses import dataclass, field

from autotune.decide.policies.rungs import Ladder, reduction_space, rung_units, start
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
from autotune.space import Space


@dataclass
class _State:
    """The brackets, the one with the shortest first rung first; the units given to each; the
    bracket of every trial; and the units given to it."""

    brackets: list[Ladder]
    spent: list[int]
    bracket: dict[int, int] = field(default_factory=dict)
    given: dict[int, int] = field(default_factory=dict)

    def in_turn(self) -> list[int]:
        """The brackets, the one that was given the least first."""
        return sorted(range(len(self.brackets)), key=lambda index: self.spent[index])

    def give(self, number: int, units: int) -> None:
        """All that a trial was given so far."""
        self.spent[self.bracket[number]] += units - self.given.get(number, 0)
        self.given[number] = units


class Hyperband(Policy):
    """Bracket s is an ASHA whose ladder begins at rung s: the first bracket starts many trials
    and halves them early, the last trains each to its horizon, for tasks where short trials say
    little. A free worker works for the bracket that was given the fewest units so far: it promotes
    there, or starts a trial if that has none to promote.

    So all brackets spend alike, as in Hyperband, at every moment and not only at the end, and none
    ever waits. Li et al. (2020) run asynchronous Hyperband as brackets of ASHA one after the other;
    here they run side by side.

    With a proposer that models the longest trials of which there are enough, such as ``tpe``,
    this is the search of BOHB (Falkner et al. 2018, 1807.01774), with that proposer's model.
    """

    name = "hyperband"
    summary = "asynchronous Hyperband: brackets of asha that begin at every rung, spending alike"
    reference = (
        "Li et al. 2018, Hyperband, JMLR 18, 1603.06560; asynchronous as in Li et al. 2020, "
        "1810.05934"
    )

    @classmethod
    def space(cls) -> Space:
        """The factor between rungs."""
        return reduction_space()

    def initial(self, context: SearchContext) -> _State:
        """No bracket has spent anything."""
        reduction = int(self.configuration["reduction"])
        units = rung_units(context.horizon, reduction)
        brackets = [
            Ladder(units[first:], reduction, [context.objective]) for first in range(len(units))
        ]
        return _State(brackets, [0] * len(brackets))

    def observe(
        self, context: SearchContext, state: _State, event: Event, trials: Trials
    ) -> _State:
        """A new trial belongs to the bracket that was given the least, which it was started for."""
        match event:
            case Decided(decision=Start(trial=number, to=to)):
                state.bracket[number] = state.in_turn()[0]
                state.give(number, to)
            case Decided(decision=Thaw(trial=number, to=to)):
                state.give(number, to)
            case Frozen(trial=number) | Failed(trial=number, evaluation=None):
                state.give(number, trials[number].last)
            case Evicted(trial=number):
                pass
            case _:
                return state
        state.brackets[state.bracket[number]].observe(event, trials)
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
        """Work for the bracket that was given the least, or where it can do nothing, another."""
        first, *others = (state.brackets[index] for index in state.in_turn())
        decision = first.promotion(trials) or start(context, propose, trials, first.units[0])
        if isinstance(decision, Start | Thaw):
            return decision
        return next(filter(None, (other.promotion(trials) for other in others)), decision)

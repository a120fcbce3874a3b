"""Asynchronous successive halving by promotion: many short trials, few long ones."""

from __future__ import annotations

from autotune.decide.policies.rungs import Ladder, reduction_space, rung_units, start
from autotune.plugins.search import (
    Event,
    ForecastFunction,
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


class ASHA(Policy):
    """Whenever a worker is free, promotes the best paused trial that is among the best
    1/`reduction` at its rung, from the highest rung down; starts a new one if there is none.

    Rungs are at the horizon divided by powers of `reduction`, rounded up. Trials are paused, not
    stopped, so one worker is enough (`autotune.decide.policies.rungs`).
    """

    name = "asha"
    summary = "asynchronous successive halving: promote the best third at each rung"
    reference = "Li et al. 2020, A System for Massively Parallel Hyperparameter Tuning, 1810.05934"

    @classmethod
    def space(cls) -> Space:
        """The factor between rungs."""
        return reduction_space()

    def initial(self, context: SearchContext) -> Ladder:
        """No rung holds anything."""
        reduction = int(self.configuration["reduction"])
        return Ladder(rung_units(context.horizon, reduction), reduction, [context.objective])

    def observe(
        self, context: SearchContext, state: Ladder, event: Event, trials: Trials
    ) -> Ladder:
        """Enter a frozen trial at the rungs that it has reached."""
        state.observe(event, trials)
        return state

    def decide(
        self,
        context: SearchContext,
        state: Ladder,
        propose: ProposeFunction,
        forecast: ForecastFunction,
        trials: Trials,
        key: Key,
    ) -> Start | Thaw | Wait | Stop:
        """Promote, else start."""
        return state.promotion(trials) or start(context, propose, trials, state.units[0])

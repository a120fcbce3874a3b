"""Random search: every configuration is trained to its horizon, in the order proposed."""

from __future__ import annotations

from typing import Any

from autotune.plugins.search import (
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


class RandomSearch(Policy):
    """Trains what the proposer suggests, one configuration after the other, to the horizon.

    With the ``random`` proposer this is random search; with another it is that proposer's
    search without early stopping.
    """

    name = "random_search"
    summary = "train every proposed configuration to its horizon"
    reference = "Bergstra and Bengio 2012, Random Search for Hyper-Parameter Optimization, JMLR 13"

    def decide(
        self,
        context: SearchContext,
        state: Any,
        propose: ProposeFunction,
        forecast: ForecastFunction,
        trials: Trials,
        key: Key,
    ) -> Start | Thaw | Wait | Stop:
        """A new trial; what was frozen short of its horizon is resumed by the search."""
        limit = context.budget.trials
        if limit is not None and len(trials) >= limit:
            return Wait() if trials.in_flight else Stop(f"all {limit} trials are trained")
        proposed = propose(1)
        if not proposed:
            reason = "every configuration of the space is trained"
            return Wait() if trials.in_flight else Stop(reason)
        return Start(len(trials), proposed[0], context.horizon, context.horizon)

"""Random search: every configuration is trained to its horizon, in the order proposed."""

from __future__ import annotations

from autotune.plugins.search import (
    Decided,
    Event,
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


class RandomSearch(Policy):
    """Trains what the proposer suggests, one configuration after the other, to the horizon.

    With the ``random`` proposer this is random search; with another it is that proposer's
    search without early stopping. Where what is measured once may break a limit, the search lets it
    begin with one unit (`SearchContext.probes`), and it goes on with those that break none.
    """

    name = "random_search"
    summary = "train every proposed configuration to its horizon"
    reference = "Bergstra and Bengio 2012, Random Search for Hyper-Parameter Optimization, JMLR 13"

    def initial(self, context: SearchContext) -> dict[int, None]:
        """Nothing was begun."""
        return {}

    def observe(
        self, context: SearchContext, state: dict[int, None], event: Event, trials: Trials
    ) -> dict[int, None]:
        """Keep the trials that stand after their first unit."""
        match event:
            case Frozen(trial=number):
                state.pop(number, None)
                trial = trials[number]
                if context.probes and trial.frozen == 1 and trial.status == "frozen":
                    state[number] = None
            case Decided(decision=Thaw(trial=number)) | Failed(trial=number, evaluation=None):
                state.pop(number, None)
            case _:
                pass
        return state

    def decide(
        self,
        context: SearchContext,
        state: dict[int, None],
        propose: ProposeFunction,
        forecast: ForecastFunction,
        trials: Trials,
        key: Key,
    ) -> Start | Thaw | Wait | Stop:
        """A new trial; what was frozen short of its horizon is resumed by the search."""
        for number in state:
            if trials[number].status == "frozen":
                return Thaw(number, trials[number].horizon)
        limit = context.budget.trials
        if limit is not None and len(trials) >= limit:
            return Wait() if trials.in_flight else Stop(f"all {limit} trials are trained")
        proposed = propose(1)
        if not proposed:
            reason = "every configuration of the space is trained"
            return Wait() if trials.in_flight else Stop(reason)
        return Start(len(trials), proposed[0], context.horizon, context.horizon)

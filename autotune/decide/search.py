"""The search: one fold over a study's events that answers "what does a free worker do next?"

It joins a policy, a proposer and a forecaster, and keeps for itself what is the same for all of
them: the budget, the order (the default and the user's own configurations before anything that
is proposed), segments that were lost or cut short, failures, and the closing phase
(`autotune.decide.closing`). `decide` is pure: it depends on the events folded and the key alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import islice

from autotune.decide.avoidance import Avoidance
from autotune.decide.closing import CLOSING_SHARE, Closing
from autotune.decide.configurations import first_configurations, identity, unseen
from autotune.decide.final import FinalPhase
from autotune.decide.history import History
from autotune.decide.leaders import Leaders
from autotune.decide.transfer import Informed
from autotune.decide.utility import UtilityStop
from autotune.plugins.base import PluginError
from autotune.plugins.search import (
    Decided,
    Decision,
    Doubt,
    Event,
    Extended,
    Failed,
    Finalists,
    Forecaster,
    Frozen,
    Key,
    Lost,
    Objective,
    Observed,
    Policy,
    Proposer,
    Query,
    Restarted,
    SearchContext,
    Start,
    Stop,
    Thaw,
    Wait,
)
from autotune.plugins.search import Forecast as ForecastContract
from autotune.plugins.trials import Trial, Trials
from autotune.space import Configuration

FRUITLESS = 20
"""The search stops after so many failed segments in a row of which none completed a unit."""

_LOST = 1
"""Stream of a decision's key from which missing proposals are drawn."""


class Search:
    """What to do next, given everything that has happened.

    Rules:
        - the default configuration and `context.first` are proposed first, then what the
          proposer suggests; no configuration is ever started twice;
        - a segment that was lost, or frozen short of its target, is resumed before the policy
          is asked; a failed trial is never trained again;
        - `to` is clipped to the trial's horizon and to what is left of the budget, counting
          what is in flight, so that `budget.units` is never exceeded (a unit that is trained
          again after a loss counts once); in seconds and GPU-seconds, to what the trial's mean
          cost a unit lets end in time;
        - `budget.trials` limits how many trials are started; then the policy goes on with those
          there are, until it stops or another limit is reached;
        - of a budget in seconds or GPU-seconds, `CLOSING_SHARE` is kept back for the closing phase;
        - what the final phase costs (`FinalPhase.kept`) is kept back of units and seconds. When
          the search is over, the finalists are named (`Finalists`), finished and repeated; the
          policy is asked no more;
        - with a reusable hold-out, the search is over when its budget is spent, and there is no
          final phase, of which nothing would be told;
        - where what is measured once may break a constraint, a trial begins with one unit, and one
          that does break it (`Trial.barred`) is never trained again;
        - with a utility, the search is over when no further training is expected to be worth
          its cost (`autotune.decide.utility`).

    Args:
        past: reads the events folded so far again, from their first, where they are needed:
            when the study is extended. None: they are kept in memory.

    Attributes:
        trials: the fold of the events.
    """

    def __init__(
        self,
        context: SearchContext,
        policy: Policy,
        proposer: Proposer,
        forecaster: Forecaster,
        past: Callable[[], Iterable[Event]] | None = None,
    ) -> None:
        self.context = context
        self.trials = Trials(context.space, context.objectives, context.constraints)
        self._policy, self._proposer = policy, proposer
        self._policy_state = policy.initial(context)
        self._proposer_state = proposer.initial(context)
        self._forecaster = forecaster
        self._informed = _informed(context, forecaster, self.trials)
        self._first = {identity(c): c for c in first_configurations(context)}
        self._started: set[str] = set()
        self._aims: dict[int, int] = {}
        self._unfinished: dict[int, int] = {}
        self._observations = 0
        self._paid = 0
        self._fruitless: list[str] = []
        self._past = past
        self._history = History()
        self._folded = 0
        self._closing = Closing(context)
        self._final = FinalPhase(context)
        self._leaders = Leaders()
        self._utility = UtilityStop(context, self._leaders)
        self._avoidance = Avoidance(context.space, context.seed)

    # --- fold ---------------------------------------------------------------------------------

    def observe(self, event: Event) -> None:
        """Fold one event."""
        self._note(event)
        self.trials.observe(event)
        self._closing.observe(event, self.trials)
        self._final.observe(event, self.trials)
        self._leaders.observe(event, self.trials)
        self._utility.observe(event, self.trials)
        self._avoidance.observe(event, self.trials)
        if isinstance(event, Extended):
            self._extend(event)
        else:
            self._show(event, self.trials)
        if self._past is None:
            self._history.append(event)
        self._folded += 1

    def _show(self, event: Event, trials: Trials) -> None:
        """Tell policy, proposer and forecaster; but nothing of the final phase's further
        trainings, whose curves are not those of their configurations."""
        decision = event.decision if isinstance(event, Decided) else None
        number = getattr(event if decision is None else decision, "trial", None)
        if isinstance(decision, Finalists | Doubt) or (
            number is not None and not trials[number].own
        ):
            return
        self._proposer_state = self._proposer.observe(self._proposer_state, event, trials)
        for informed in self._informed.values():
            informed.observe(event)
        self._policy_state = self._policy.observe(self.context, self._policy_state, event, trials)

    def _extend(self, event: Extended) -> None:
        """Go on with another budget and horizon. The parts fold everything anew, as if the study
        had had them from the start: what they keep may depend on either."""
        self.context = context = self.context.extended(event)
        self._policy_state = self._policy.initial(context)
        self._proposer_state = self._proposer.initial(context)
        trials = Trials(context.space, context.objectives, context.constraints)
        self._informed = _informed(context, self._forecaster, trials)
        events = self._history if self._past is None else self._past()
        for past in islice(events, self._folded):
            if isinstance(past, Decided) and isinstance(past.decision, Start):
                horizon = self.trials[past.decision.trial].horizon
                past = replace(past, decision=replace(past.decision, horizon=horizon))
            trials.observe(past)
            if not isinstance(past, Extended):
                self._show(past, trials)
        for informed in self._informed.values():
            informed.adopt(self.trials)

    def _note(self, event: Event) -> None:
        match event:
            case Decided(decision=Start() | Thaw() as decision):
                self._aims[decision.trial] = decision.to
                self._unfinished.pop(decision.trial, None)
                if isinstance(decision, Start):
                    text = identity(decision.configuration)
                    self._started.add(text)
                    self._first.pop(text, None)
            case Decided(decision=Finalists()):
                self._unfinished.clear()  # whatever else was cut short is not gone on with
            case Observed():
                self._observations += 1
                self._paid += event.paid
                self._fruitless.clear()
            case Frozen(trial=number, step=step):
                if step < self._aims.get(number, 0):
                    self._unfinished[number] = self._aims[number]
            case Failed(trial=number, evaluation=None):
                self._unfinished.pop(number, None)
                self._fruitless.append(event.message)
            case Lost(trial=number, evaluation=None):
                self._unfinished[number] = self._aims[number]
            case Restarted():
                self._unfinished.update((n, self._aims[n]) for n in self.trials.in_flight)
            case Extended():
                self._fruitless.clear()
            case _:
                pass

    # --- decide -------------------------------------------------------------------------------

    def decide(self, key: Key) -> Decision:
        """What a free worker does next. Changes nothing.

        Raises:
            PluginError: the policy asked for something that cannot be, such as thawing a trial
                that is not frozen.
        """
        finalists = self.trials.finalists
        if self._closing.begun:
            over = self._over() or "nothing was left that was worth training"
            over = over if finalists is None else finalists.reason
            return self._closing.decide(self.trials, key, over)
        decision = self._train(key) if finalists is None else self._finish(finalists.reason)
        if not isinstance(decision, Stop):
            return decision
        if self.trials.in_flight:
            return Wait()
        if finalists is None and not self._blind():
            named = self._final.finalists(self.trials, self._forecast, decision.reason)
            if named is not None:
                return named
        return self._closing.decide(self.trials, key, decision.reason)

    def _finish(self, reason: str) -> Start | Thaw | Stop:
        """The next segment of the final phase; `Stop` if there is none that may begin."""
        left, spare = self._units_left(), self._spare()
        resumed = self._resumed(left, spare)
        if resumed is not None:
            return resumed
        if self._blind():
            return Stop(reason)
        if spare is not None:
            left = min(left, self._affordable(None, spare))
        return self._final.decide(self.trials, left) or Stop(reason)

    def _over(self) -> str | None:
        """Why nothing more may be trained, apart from what is unfinished; None if it may."""
        if len(self._fruitless) >= FRUITLESS:
            return (
                f"the last {len(self._fruitless)} segments failed within their first unit, "
                f"most recently: {self._fruitless[-1]}"
            )
        if self._blind():
            return (
                f"the hold-out has given the {self._paid} answers that it may; more would fit "
                f"the search to it"
            )
        if self._units_left() <= 0:
            kept = self._kept()
            rest = f", {kept} of them kept for the final phase" if kept else ""
            return f"all {self.context.budget.units} units of training are spent{rest}"
        return self._late()

    def _blind(self) -> bool:
        """Whether the reusable hold-out says nothing any more."""
        holdout = self.context.holdout
        return holdout is not None and self._paid >= holdout.budget

    def _unworthy(self, key: Key) -> Doubt | Stop | None:
        """That no further training is worth its cost to the user; None if some is."""
        limit = self.context.budget.trials
        may_start = limit is None or len(self.trials) - self.trials.further < limit
        started = self._started if may_start else None
        return self._utility.verdict(self.trials, self._forecast, key, started)

    def _late(self) -> str | None:
        """Why there is no time for one more unit, at the mean cost of a unit; None if there
        is."""
        spare = self._spare()
        if spare is None or self._affordable(None, spare) >= 1:
            return None
        uses = ["the final phase"] if self._kept() else []
        uses += ["evaluation"] if self._closing.needed else []
        kept = f" (the rest is kept for {' and '.join(uses)})" if uses else ""
        seconds, gpu_seconds = self.context.budget.seconds, self.context.budget.gpu_seconds
        deadline = self.deadline()
        if deadline is not None and self._affordable(None, deadline - self.trials.at) < 1:
            return f"the {seconds:g} s of the budget are spent{kept}"
        return f"the {gpu_seconds:g} GPU-seconds of the budget are spent{kept}"

    def _resumed(self, left: float, spare: float | None) -> Thaw | None:
        """A segment that was lost or cut short, to its target."""
        if spare is None or spare > 0:
            for number, to in sorted(self._unfinished.items()):
                trial = self.trials[number]
                to = self._clipped(trial, to, left, spare)
                if to > trial.frozen and not trial.barred:
                    return Thaw(number, to)
        return None

    def _train(self, key: Key) -> Start | Thaw | Doubt | Wait | Stop:
        spare = self._spare()
        left = self._units_left()
        resumed = self._resumed(left, spare)
        if resumed is not None:
            return resumed
        over = self._over()
        unworthy = Stop(over) if over is not None else self._unworthy(key)
        if unworthy is not None:
            return unworthy
        decision = self._policy.decide(
            self._limited(spare),
            self._policy_state,
            lambda count: self._propose(key, count),
            self._forecast,
            self.trials,
            key,
        )
        match decision:
            case Start():
                return self._checked_start(decision, left, spare)
            case Thaw():
                return self._checked_thaw(decision, left, spare)
            case Wait():
                if not self.trials.in_flight:
                    raise self._wrong("waits although nothing is in flight")
                return decision
            case Stop():
                return decision
        raise self._wrong(f"decided {decision!r}, which is not its business")

    def _checked_start(self, decision: Start, left: float, spare: float | None) -> Start | Stop:
        trials, budget = self.trials, self.context.budget
        if decision.trial != len(trials):
            raise self._wrong(f"started trial {decision.trial}, expected {len(trials)}")
        if budget.trials is not None and len(trials) - trials.further >= budget.trials:
            raise self._wrong(f"started another trial although all {budget.trials} are started")
        if identity(decision.configuration) in self._started:
            raise self._wrong(f"started {decision.configuration!r} a second time")
        to = min(1 if self.context.probes else decision.to, decision.horizon, left)
        if spare is not None:
            to = min(to, self._affordable(None, spare))
        if to < 1:
            raise self._wrong(f"started a trial to unit {decision.to}")
        return Start(
            decision.trial, decision.configuration, decision.horizon, int(to), decision.bound_from
        )

    def _checked_thaw(self, decision: Thaw, left: float, spare: float | None) -> Thaw | Stop:
        trial = self.trials.all.get(decision.trial)
        if trial is None or trial.status not in ("frozen", "new", "evicted"):
            state = "unknown" if trial is None else trial.status
            raise self._wrong(f"thawed trial {decision.trial}, which is {state}")
        if decision.to <= trial.frozen:
            raise self._wrong(
                f"thawed trial {decision.trial} to unit {decision.to}, where it stands already"
            )
        to = self._clipped(trial, decision.to, left, spare)
        if to > trial.frozen:
            return Thaw(decision.trial, to)
        return self._in_time_left(left, spare)

    def _in_time_left(self, left: float, spare: float | None) -> Thaw | Stop:
        """One more unit of the best frozen trial of which one still ends in time."""
        for number in self._leaders.frozen():
            trial = self.trials[number]
            if self._clipped(trial, trial.frozen + 1, left, spare) > trial.frozen:
                return Thaw(number, trial.frozen + 1)
        return Stop("there is no time for another unit of any trial that may go on")

    def _wrong(self, what: str) -> PluginError:
        return PluginError(f"policy {self._policy.name!r} {what}")

    # --- budget -------------------------------------------------------------------------------

    def _kept(self) -> int:
        """Units kept back for the final phase; none any more once it has begun."""
        return self._final.kept(self.trials) if self.trials.finalists is None else 0

    def _limited(self, spare: float | None) -> SearchContext:
        """The context as the policy is told it: its budget less what is kept back."""
        budget, gpu_seconds = self.context.budget, self._gpu_seconds()
        if gpu_seconds is not None and spare is not None:
            gpu_seconds = self.trials.gpu_seconds + self._gpu_spare(gpu_seconds) * self.trials.gpus
        units = None if budget.units is None else budget.units - self._kept()
        # Policies count all trials there are.
        count = None if budget.trials is None else budget.trials + self.trials.further
        return replace(
            self.context,
            budget=replace(
                budget,
                units=units,
                trials=count,
                seconds=self.deadline(),
                gpu_seconds=gpu_seconds,
            ),
        )

    def _units_left(self) -> float:
        """Units that are neither trained nor on their way nor kept back."""
        if self.context.budget.units is None:
            return math.inf
        ahead = 0
        for number in self.trials.in_flight:
            trial = self.trials[number]
            ahead += max(0, (trial.target or 0) - trial.last)
        return self.context.budget.units - self.trials.units - ahead - self._kept()

    def deadline(self) -> float | None:
        """The second of the study at which training ends, or until the final phase has begun,
        the search; None without such a limit."""
        return self._end(self.context.budget.seconds, 1 / self.context.workers)

    def _gpu_seconds(self) -> float | None:
        """GPU-seconds that training may have taken at its end, or until the final phase has begun,
        at the search's; None without such a limit."""
        return self._end(self.context.budget.gpu_seconds, self.trials.gpus)

    def _end(self, total: float | None, share: float) -> float | None:
        """Where in a budget of time training ends, less what is kept for the final phase; `share`
        is what a second of training takes of the budget."""
        if total is None:
            return None
        end = total * (1 - CLOSING_SHARE * self._closing.needed)
        kept = self._kept()
        if not kept or not self.trials.units:
            return end
        seconds = self.trials.train_seconds / self.trials.units * share
        assert self.context.final is not None, "something is kept for it"
        return end - min(kept * seconds, self.context.final.share * total)

    def _gpu_spare(self, limit: float) -> float:
        """Seconds that one more segment may train for, by a limit in GPU-seconds: what those in
        flight are expected to take is taken already."""
        trials = self.trials
        if not trials.gpus:
            return math.inf
        flying = (trials[number] for number in trials.in_flight)
        ahead = sum(max(0, (t.target or 0) - t.last) * self._unit_seconds(t) for t in flying)
        return (limit - trials.gpu_seconds) / trials.gpus - ahead

    def overspent(self) -> bool:
        """Whether training has taken all the GPU-seconds that it may."""
        limit = self._gpu_seconds()
        return limit is not None and self.trials.gpu_seconds >= limit

    def _spare(self) -> float | None:
        """Seconds that one more segment may train for; None without a limit in time."""
        deadline, gpu_seconds = self.deadline(), self._gpu_seconds()
        limits = [] if deadline is None else [deadline - self.trials.at]
        limits += [] if gpu_seconds is None else [self._gpu_spare(gpu_seconds)]
        return min(limits, default=None)

    def _unit_seconds(self, trial: Trial | None) -> float:
        """The mean cost of a unit: of the trial, else of all trials; 0 while none is known."""
        if trial is not None and trial.seconds:
            return trial.seconds.total / len(trial.seconds)
        return self.trials.train_seconds / self._observations if self._observations else 0.0

    def _affordable(self, trial: Trial | None, spare: float) -> float:
        """Units that end within so many seconds, by the mean cost of a unit. Unlimited while no
        cost is known."""
        seconds = self._unit_seconds(trial)
        if seconds <= 0:
            return math.inf if spare > 0 else 0
        return spare if math.isinf(spare) else math.floor(spare / seconds)

    def _clipped(self, trial: Trial, to: int, left: float, spare: float | None) -> int:
        limit = min(to, trial.horizon, trial.last + max(0.0, left))
        if spare is not None:
            limit = min(limit, trial.frozen + self._affordable(trial, spare))
        return int(limit)

    # --- proposer and forecaster --------------------------------------------------------------

    def _propose(self, key: Key, count: int) -> list[Configuration]:
        """Up to `count` configurations that were never started, all different; fewer only
        where the space holds no more that can be found."""
        found = dict(islice(self._first.items(), count))
        if len(found) < count:
            for configuration in self._proposed(key, count - len(found)):
                text = identity(configuration)
                if text not in self._started:
                    found.setdefault(text, configuration)
        if len(found) < count:

            def fresh(wanted: int) -> list[Configuration]:
                space, generator = self.context.space, key.generator(_LOST)
                return unseen(space, generator, wanted, self._started, found)

            for configuration in self._avoidance.drawn(fresh, count - len(found), self.trials):
                found[identity(configuration)] = configuration
            for configuration in fresh(count - len(found)):  # all that is left is likely to fail
                found[identity(configuration)] = configuration
        return list(found.values())

    def _proposed(self, key: Key, count: int) -> list[Configuration]:
        """What the proposer suggests, less of what is likely to fail."""
        return self._avoidance.drawn(
            lambda wanted: self._proposer.propose(
                self.context, self._proposer_state, self.trials, key, wanted
            ),
            count,
            self.trials,
        )

    def _forecast(self, queries: Sequence[Query], objective: str | None = None) -> ForecastContract:
        informed = self._informed[objective or self.context.objective.name]
        return informed.forecast(list(queries))


def _informed(
    context: SearchContext, forecaster: Forecaster, trials: Trials
) -> dict[str, Informed]:
    """The forecaster's fold for each curve objective and each constrained curve, by its name."""
    return {
        o.name: Informed(_with_primary(context, o), forecaster, trials)
        for o in context.measured
        if o.kind == "curve"
    }


def _with_primary(context: SearchContext, objective: Objective) -> SearchContext:
    """The context in which a curve objective is the primary one. What earlier studies tell is of
    the study's own primary objective."""
    if objective == context.objective:
        return context
    others = (other for other in context.objectives if other != objective)
    return replace(context, objectives=(objective, *others), earlier=())

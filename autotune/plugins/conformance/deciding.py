"""What the parts that decide must and must not do: proposer, forecaster, policy.

They are folds. Whatever they remember follows from the events alone, and asking them changes
nothing; so a study is replayed, simulated and resumed from its record.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from autotune.plugins.conformance.comparing import (
    Fault,
    another_time,
    difference,
    other_generators,
    within_remit,
)
from autotune.plugins.conformance.simulation import CONTEXT, PlainForecast, Simulation
from autotune.plugins.search import (
    Decided,
    Event,
    Forecast,
    Forecaster,
    Key,
    Policy,
    Proposer,
    Query,
    SearchContext,
    Start,
    Stop,
    Thaw,
    Wait,
)
from autotune.plugins.trials import Trials
from autotune.space import Configuration, SpaceError

EVERY = 12
"""A proposer or forecaster is asked after every so many events."""

CLOSE = 0.25
"""The next value of a long smooth curve (range about 1) is forecast at least this well."""


# --- proposer -------------------------------------------------------------------------------


def check_proposals(plugin: type[Proposer], configuration: Mapping[str, Any]) -> None:
    """Before and during a study it proposes as many configurations as asked, all of them
    allowed; it follows from the events and the key alone, and asking changes nothing."""
    for proposer, state, trials, number in _asked(plugin(configuration), CONTEXT):
        count = 1 + number % 3
        key = Key(CONTEXT.seed, number)
        proposed = _twice(
            "propose",
            trials,
            partial(proposer.propose, CONTEXT, state, trials, key, count),
        )
        if len(proposed) != count:
            raise Fault(f"asked for {count} configurations, propose gives {len(proposed)}")
        for suggestion in proposed:
            _check_allowed(suggestion, f"after {number} events propose gives")


def check_proposer_is_a_fold(plugin: type[Proposer], configuration: Mapping[str, Any]) -> None:
    """Folded from scratch it proposes what it proposes when asked all along."""
    _check_fold(
        plugin(configuration),
        plugin(configuration),
        lambda p, state, trials, n: p.propose(CONTEXT, state, trials, Key(CONTEXT.seed, n), 2),
    )


# --- forecaster -----------------------------------------------------------------------------


def check_forecasts(plugin: type[Forecaster], configuration: Mapping[str, Any]) -> None:
    """Before and during a study its distributions are distributions; they follow from the
    events alone, and asking changes nothing."""
    for forecaster, state, trials, number in _asked(plugin(configuration), CONTEXT):
        queries = _queries(trials)
        numbers = _twice(
            "forecast",
            trials,
            partial(_forecast, forecaster, state, trials, queries),
        )
        _check_distributions(numbers, len(queries), number)


def check_orientation(plugin: type[Forecaster], configuration: Mapping[str, Any]) -> None:
    """Less is better, whatever the objective's direction: the next value of a long curve is
    forecast close to its last one, negated where the objective is maximised."""
    maximised = replace(CONTEXT.objectives[0], name="validation_score", direction="maximize")
    upward = replace(CONTEXT, objectives=(maximised,))
    for context in (CONTEXT, upward):
        *_, (forecaster, state, trials, _) = _asked(plugin(configuration), context)
        long = [n for n, t in trials.all.items() if 6 <= t.last < t.horizon and not t.failure]
        queries = [Query(trials[n].last + 1, trial=n) for n in long]
        medians = forecaster.forecast(context, state, trials, queries).quantile(0.5)
        for number, median in zip(long, medians, strict=True):
            last = float(trials.scores(number)[1][-1])
            if not abs(median - last) <= CLOSE:
                raise Fault(
                    f"with an objective to {context.objective.direction} a smooth curve stands at "
                    f"{last:.3f} (less is better), the next value is forecast at {median:.3f}"
                )


def check_forecaster_is_a_fold(plugin: type[Forecaster], configuration: Mapping[str, Any]) -> None:
    """Folded from scratch it forecasts what it forecasts when asked all along."""

    def ask(forecaster: Forecaster, state: Any, trials: Trials, number: int) -> Any:
        return _forecast(forecaster, state, trials, _queries(trials))

    _check_fold(plugin(configuration), plugin(configuration), ask)


def _queries(trials: Trials) -> list[Query]:
    """The next and the last unit of every trial that goes on, and two new configurations."""
    rng = np.random.default_rng(5)
    queries = [Query(CONTEXT.horizon, configuration=CONTEXT.space.sample(rng)) for _ in range(2)]
    for number, trial in trials.all.items():
        if trial.failure is None and trial.last < trial.horizon:
            steps = {trial.last + 1, trial.horizon}
            queries += [Query(step, trial=number) for step in sorted(steps)]
    return queries


def _forecast(
    forecaster: Forecaster, state: Any, trials: Trials, queries: Sequence[Query]
) -> dict[str, Any]:
    """What can be read off a forecast."""
    forecast = forecaster.forecast(CONTEXT, state, trials, queries)
    count = len(forecast)
    return {
        "count": count,
        "mean": np.asarray(forecast.mean()),
        "quantiles": [np.asarray(forecast.quantile(p)) for p in (0.1, 0.5, 0.9)],
        "below": [
            np.asarray(forecast.probability_below(np.asarray(forecast.quantile(p))))
            for p in (0.1, 0.5, 0.9)
        ],
        "at thresholds": [np.asarray(forecast.probability_below(t)) for t in (-9.0, 0.4, 99.0)],
        "log density": np.asarray(forecast.log_density(np.asarray(forecast.quantile(0.5)))),
    }


def _check_distributions(numbers: Mapping[str, Any], count: int, events: int) -> None:
    when = f"after {events} events"
    if numbers["count"] != count:
        raise Fault(f"{when} a forecast for {count} queries has length {numbers['count']}")
    rows = [numbers["mean"], numbers["log density"]]
    rows += [*numbers["quantiles"], *numbers["below"], *numbers["at thresholds"]]
    for row in rows:
        if row.shape != (count,):
            raise Fault(f"{when} a forecast gives shape {row.shape} for {count} queries")
        if not np.isfinite(row).all():
            raise Fault(f"{when} a forecast gives {row[~np.isfinite(row)][0]} somewhere")
    probabilities = np.array([*numbers["below"], *numbers["at thresholds"]])
    if probabilities.min() < 0 or probabilities.max() > 1:
        raise Fault(f"{when} probability_below leaves [0, 1]")
    low, middle, high = numbers["quantiles"]
    if not ((low <= middle) & (middle <= high)).all():
        raise Fault(f"{when} quantiles fall as the probability rises")
    below, between, above = numbers["at thresholds"]
    if not ((below <= between) & (between <= above)).all():
        raise Fault(f"{when} probability_below falls as the threshold rises")
    for probability, found in zip((0.1, 0.5, 0.9), numbers["below"], strict=True):
        worst = float(np.abs(found - probability).max())
        if worst > 0.05 and (high > low).all():
            raise Fault(
                f"{when} probability_below(quantile({probability})) is off by {worst:.2g}; the "
                "two must describe one distribution"
            )


# --- policy ---------------------------------------------------------------------------------


def check_decisions(plugin: type[Policy], configuration: Mapping[str, Any]) -> None:
    """With one worker and with three, through a failure and a loss, every decision can be
    carried out, and follows from events and key alone."""
    for workers in (1, 3):
        context = replace(CONTEXT, workers=workers)
        simulation = Simulation(context)
        policy = plugin(configuration)
        state = policy.initial(context)
        # Ends for certain: every decision allowed trains a unit, ends a segment, or stops.
        while True:
            decision = _decide(policy, context, state, simulation)
            _check_decision(decision, simulation.trials, context)
            if isinstance(decision, Stop):
                break
            events = (
                simulation.finish_one()
                if isinstance(decision, Wait)
                else simulation.carry_out(decision)
            )
            for event in events:
                simulation.trials.observe(event)
                state = policy.observe(context, state, event, simulation.trials)
        _check_replay(plugin(configuration), context, simulation.events)


def _decide(policy: Policy, context: SearchContext, state: Any, simulation: Simulation) -> Any:
    trials = simulation.trials
    key = Key(context.seed, trials.decisions)

    def propose(count: int) -> list[Configuration]:
        rng = key.generator(1)
        return [context.space.sample(rng) for _ in range(count)]

    def forecast(queries: Sequence[Query], objective: str | None = None) -> Forecast:
        named = [o for o in context.objectives if o.name == objective]
        return PlainForecast(trials.judged_by(*named or [trials.objective]), queries)

    return _twice(
        "decide", trials, lambda: policy.decide(context, state, propose, forecast, trials, key)
    )


def _check_decision(decision: Any, trials: Trials, context: SearchContext) -> None:
    if isinstance(decision, Start | Thaw) and not isinstance(decision.to, int):
        raise Fault(f"it trains to {decision.to!r}; expected a whole number of units")
    match decision:
        case Start():
            if decision.trial != len(trials):
                raise Fault(f"it starts trial {decision.trial}; the next one is {len(trials)}")
            if context.budget.trials is not None and len(trials) >= context.budget.trials:
                raise Fault(f"it starts another trial after all {context.budget.trials}")
            _check_allowed(decision.configuration, "it starts")
            if not 1 <= decision.horizon <= context.horizon or decision.to < 1:
                raise Fault(
                    f"it starts a trial to unit {decision.to} of a horizon of {decision.horizon}; "
                    f"the study's is {context.horizon}"
                )
        case Thaw():
            trial = trials.all.get(decision.trial)
            if trial is None or trial.status not in ("frozen", "new", "evicted"):
                status = "unknown" if trial is None else trial.status
                raise Fault(f"it thaws trial {decision.trial}, which is {status}")
            if decision.to <= trial.frozen:
                raise Fault(
                    f"it thaws trial {decision.trial} to unit {decision.to}, which stands at "
                    f"{trial.frozen}"
                )
        case Wait():
            if not trials.in_flight:
                raise Fault("it waits although nothing is in flight")
        case Stop():
            if not decision.reason.strip():
                raise Fault("it stops without a reason")
        case _:
            raise Fault(f"it decides {decision!r}; expected Start, Thaw, Wait or Stop")


def _check_replay(policy: Policy, context: SearchContext, events: Sequence[Event]) -> None:
    """A fresh policy that folds the same events decides the same."""
    simulation = Simulation(context)
    state = policy.initial(context)
    for event in events:
        if isinstance(event, Decided):
            decision = _decide(policy, context, state, simulation)
            if decision != event.decision:
                raise Fault(
                    f"replaying the events, decision {event.number} becomes {decision!r} instead "
                    f"of {event.decision!r}; it must follow from the events alone"
                )
        simulation.trials.observe(event)
        state = policy.observe(context, state, event, simulation.trials)


PROPOSER_CHECKS = (check_proposals, check_proposer_is_a_fold)
FORECASTER_CHECKS = (check_forecasts, check_orientation, check_forecaster_is_a_fold)
POLICY_CHECKS = (check_decisions,)


# --- shared ---------------------------------------------------------------------------------


def _asked(part: Any, context: SearchContext) -> Iterator[tuple[Any, Any, Trials, int]]:
    """(part, state, trials, events so far) at the start of a study, now and then, and at the
    end."""
    events = Simulation(context).history()
    trials = Trials(context.space, context.objectives, context.constraints)
    state = part.initial(context)
    for number, event in enumerate(events):
        if number % EVERY == 0:
            yield part, state, trials, number
        trials.observe(event)
        state = part.observe(state, event, trials)
    yield part, state, trials, len(events)


def _check_fold(asked: Any, quiet: Any, ask: Callable[[Any, Any, Trials, int], Any]) -> None:
    for part, state, trials, number in _asked(asked, CONTEXT):
        often = ask(part, state, trials, number)
    *_, (part, state, trials, number) = _asked(quiet, CONTEXT)
    where = difference(often, ask(part, state, trials, number))
    if where is not None:
        raise Fault(
            f"asked all along it ends up with another answer than folded from scratch ({where}); "
            "its state must follow from the events alone, and asking must not change it"
        )


def _twice(what: str, trials: Trials, ask: Callable[[], Any]) -> Any:
    """The answer, which must be the same at another time and with other global generators,
    and must leave the trials and the process alone."""
    before = _shown(trials)
    with within_remit(what):
        first = ask()
    with another_time(), other_generators():
        second = ask()
    if _shown(trials) != before:
        raise Fault(f"{what} changes the trials that it looks at")
    where = difference(_comparable(first), _comparable(second))
    if where is not None:
        raise Fault(
            f"{what} gives another answer at the second time of asking ({where}); its only source "
            "of randomness is the key, and it must look at no clock"
        )
    return first


def _comparable(answer: Any) -> Any:
    return answer if isinstance(answer, dict | list) else repr(answer)


def _shown(trials: Trials) -> str:
    return repr({name: value for name, value in vars(trials).items() if name != "space"})


def _check_allowed(configuration: Configuration, what: str) -> None:
    try:
        CONTEXT.space.validate(configuration)
    except SpaceError as error:
        raise Fault(f"{what} {configuration!r}, which the space does not allow: {error}") from error

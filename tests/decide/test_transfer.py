"""Transfer: earlier curves join the forecaster where they are related, and only there."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from simulator import Simulator
from spaces import TRAINING, context, curve, search

from autotune.decide.forecasters.parametric import Parametric
from autotune.decide.transfer import CHECKS, Informed, line_between
from autotune.plugins.search import (
    Budget,
    Decided,
    Earlier,
    EarlierTrial,
    Frozen,
    Key,
    Observed,
    Query,
    SearchContext,
    Start,
)
from autotune.plugins.trials import Trials
from autotune.space import Configuration


def other(configuration: Configuration, step: int) -> Mapping[str, float]:
    """Good and bad the other way round, on another scale."""
    value = curve(configuration, step)["validation_loss"]
    return {"validation_loss": 5.0 - value if math.isfinite(value) else value}


def earlier(how: Any, scale: float = 1.0, shift: float = 0.0, count: int = 60) -> Earlier:
    generator = np.random.default_rng(5)
    trials = []
    for _ in range(count):
        configuration = TRAINING.sample(generator)
        steps = (1, 2, 4, 10)
        values = [how(configuration, step)["validation_loss"] for step in steps]
        finite = [scale * v + shift for v in values if math.isfinite(v)]
        trials.append(
            EarlierTrial(
                configuration,
                10,
                steps[: len(finite)],
                tuple(finite),
                (1.0,) * len(finite),
                len(finite) < 4,
            )
        )
    return Earlier("before", tuple(trials))


def best(found: Earlier, count: int = 4) -> tuple[Configuration, ...]:
    ranked = sorted(found.trials, key=lambda t: min(t.values, default=math.inf))
    return tuple(trial.configuration for trial in ranked[:count])


def informed(found: SearchContext, trials: int, how: Any = curve) -> tuple[Informed, Trials]:
    """The fold of some random trials of two units each."""
    own = Trials(found.space, found.objectives)
    fold = Informed(found, Parametric(), own)
    generator = np.random.default_rng(1)
    for number in range(trials):
        configuration = found.space.sample(generator)
        events: list[Any] = [Decided(number, Start(number, configuration, 10, 2))]
        events += [Observed(number, step, how(configuration, step), 1.0) for step in (1, 2)]
        for event in [*events, Frozen(number, 2, f"{number}-2")]:
            own.observe(event)
            fold.observe(event)
    return fold, own


def test_a_related_study_joins_at_the_scale_that_the_pairs_tell() -> None:
    found = context(earlier=(earlier(curve, scale=3.0, shift=-1.0),))
    fold, _ = informed(found, CHECKS[0] - 1)
    assert fold.lines == (None,)
    fold, _ = informed(found, CHECKS[1])
    (line,) = fold.lines
    assert line is not None
    assert line.slope == pytest.approx(1 / 3, rel=0.4)


def test_it_improves_the_forecast_of_new_configurations() -> None:
    generator = np.random.default_rng(9)
    asked = [TRAINING.sample(generator) for _ in range(40)]
    asked = [c for c in asked if math.isfinite(curve(c, 10)["validation_loss"])]
    truth = [curve(c, 10)["validation_loss"] for c in asked]
    queries = [Query(10, configuration=c) for c in asked]
    errors = []
    for known in ((), (earlier(curve, scale=3.0, shift=-1.0),)):
        fold, _ = informed(context(earlier=known), CHECKS[1])
        errors.append(float(np.mean(np.abs(fold.forecast(queries).quantile(0.5) - truth))))
    assert errors[1] < 0.7 * errors[0]


@pytest.mark.parametrize("trials", CHECKS[:2])
def test_the_opposite_never_joins(trials: int) -> None:
    fold, _ = informed(context(earlier=(earlier(other),)), trials)
    assert fold.lines == (None,)


def test_unrelated_values_rarely_make_a_line() -> None:
    generator = np.random.default_rng(0)
    lines = [
        line_between(generator.standard_normal((2, 16)), generator.standard_normal((2, 16)))
        for _ in range(300)
    ]
    assert sum(line is not None for line in lines) / 300 < 0.1
    x = generator.standard_normal((2, 16))
    line = line_between(x, 2 * x + 1)
    assert line is not None
    assert (line.slope, line.offset) == pytest.approx((2.0, 1.0))


def test_without_an_earlier_study_the_forecaster_sees_the_studys_own_trials() -> None:
    fold, own = informed(context(), 10)
    assert fold._trials is own
    assert fold._history == []


def searched(found: SearchContext) -> tuple[Simulator, float]:
    simulator = Simulator(search(found, "freeze_thaw"), curve)
    simulator.run()
    assert simulator.search.trials.best is not None
    return simulator, simulator.search.trials.best[0]


def test_it_helps_where_related_and_does_not_ruin_where_not() -> None:
    """Means over seeds of the best loss after 40 units: the configurations to try first and the
    curves together."""
    related, opposite = earlier(curve, scale=3.0, shift=-1.0), earlier(other)
    cold, warm, misled = [], [], []
    for seed in range(4):
        budget = Budget(units=40)
        cold.append(searched(context(budget, seed=seed, workers=1))[1])
        for known, results in ((related, warm), (opposite, misled)):
            found = context(budget, seed=seed, workers=1, earlier=(known,), first=best(known))
            results.append(searched(found)[1])
    assert np.mean(warm) < np.mean(cold) - 0.05
    # Four of forty units go to the worst configurations there are.
    assert np.mean(misled) < np.mean(cold) + 0.25


def test_folding_the_events_anew_takes_the_same_decisions() -> None:
    known = earlier(curve, scale=3.0, shift=-1.0)
    found = context(Budget(units=60), workers=2, earlier=(known,), first=best(known))
    simulator, _ = searched(found)
    again = search(found, "freeze_thaw")
    for event in simulator.events:
        if isinstance(event, Decided):
            assert again.decide(Key(found.seed, event.number)) == event.decision
        again.observe(event)
    assert again._informed[found.objective.name].lines[0] is not None
    assert len(simulator.search.trials) > CHECKS[0]
    assert min(simulator.search.trials.all) == 0

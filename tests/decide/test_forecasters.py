from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from spaces import context

from autotune.decide.forecasters.combination import Combination
from autotune.decide.forecasters.deep_power_law import DeepPowerLaw
from autotune.decide.forecasters.gaussian_process import GaussianProcess
from autotune.decide.forecasters.history import POINTS, beginning, thinned
from autotune.decide.forecasters.last_value import LastValue
from autotune.decide.forecasters.quantiles import PROBABILITIES, averaged
from autotune.plugins import check
from autotune.plugins.base import PluginError
from autotune.plugins.search import (
    Decided,
    Failed,
    Forecast,
    Forecaster,
    Objective,
    Observed,
    Query,
    Start,
)
from autotune.plugins.trials import Trials
from autotune.space import Float, Space, SpaceError

PLANE = Space({"x": Float(0.0, 1.0, default=0.5), "y": Float(0.0, 1.0, default=0.5)})
LOSS = Objective("loss", "minimize", "curve")
ACCURACY = Objective("accuracy", "maximize", "curve", bounds=(0.0, 1.0))
RETURN = Objective("return", "maximize", "curve")
NEW = {"x": 0.5, "y": 0.5}
HORIZON = 40


def few(*names: str) -> Combination:
    """A combination of the named members only."""
    return Combination({name: name in names for name in Combination.space().parameters})


MADE = {
    "last_value": LastValue,
    "gaussian_process": GaussianProcess,
    "deep_power_law": DeepPowerLaw,
    "combination": lambda: few("last_value", "parametric"),
}
every = pytest.mark.parametrize("name", MADE)


class Watched:
    """A forecaster and what it has seen."""

    def __init__(self, forecaster: Forecaster, objective: Objective = LOSS) -> None:
        self.context = context(objectives=(objective,), space=PLANE, horizon=HORIZON)
        self.forecaster = forecaster
        self.state = forecaster.initial(self.context)
        self.trials = Trials(PLANE, (objective,))

    def tell(self, event: Any) -> None:
        self.trials.observe(event)
        self.state = self.forecaster.observe(self.state, event, self.trials)

    def start(self, x: float = 0.5, y: float = 0.5) -> int:
        number = len(self.trials)
        self.tell(Decided(number, Start(number, {"x": x, "y": y}, HORIZON, HORIZON)))
        return number

    def see(self, number: int, step: int, value: float) -> None:
        metric = self.context.objective.name
        self.tell(Observed(number, step, {metric: float(value)}, 1.0))

    def curve(self, values: Sequence[float], x: float = 0.5, y: float = 0.5) -> int:
        number = self.start(x, y)
        for step, value in enumerate(values, 1):
            self.see(number, step, value)
        return number

    def forecast(self, *queries: Query) -> Forecast:
        return self.forecaster.forecast(self.context, self.state, self.trials, queries)


def study(
    name: str, objective: Objective, low: float, high: float, lengths: Sequence[int]
) -> tuple[Watched, np.ndarray]:
    """Power laws from about `high` to an end that grows with x, from `low` on; and their truth."""
    generator = np.random.default_rng(4)
    watched = Watched(MADE[name](), objective)
    time = np.arange(1, HORIZON + 1) / HORIZON
    truth = []
    for length in lengths:
        x, y = generator.random(2)
        end = low + (high - low) * 0.6 * x
        values = end + (high - end) * (1 + 40 * time) ** -0.7
        values += 0.003 * (high - low) * generator.normal(size=HORIZON)
        truth.append(values)
        watched.curve(values[:length], x, y)
    return watched, np.array(truth)


def finite(forecast: Forecast, count: int, at: float = 1.0) -> None:
    rows = [
        forecast.mean(),
        forecast.probability_below(at),
        forecast.log_density(np.full(count, at)),
    ]
    rows += [forecast.quantile(p) for p in (0.05, 0.5, 0.95)]
    for row in rows:
        assert row.shape == (count,)
        assert np.isfinite(row).all()


@every
def test_nothing_then_one_observation_then_one_trial(name: str) -> None:
    watched = Watched(MADE[name]())
    new = Query(HORIZON, configuration=NEW)
    finite(watched.forecast(new), 1)
    number = watched.start()
    finite(watched.forecast(Query(3, trial=number), new), 2)
    for step, value in enumerate((2.3, 1.9, 1.7, 1.6), 1):
        watched.see(number, step, value)
        finite(
            watched.forecast(Query(step + 1, trial=number), Query(HORIZON, trial=number), new), 3
        )


LENGTHS = [40] * 4 + [6, 12, 20] * 5


@every
@pytest.mark.parametrize(
    ("objective", "low", "high"),
    [
        (LOSS, 0.2, 2.3),
        (LOSS, 1e-5, 3.0),
        (LOSS, -400.0, 1e4),
        (ACCURACY, 0.95, 0.1),
        (RETURN, 3000.0, -100.0),
    ],
)
def test_any_range_and_direction(name: str, objective: Objective, low: float, high: float) -> None:
    watched, truth = study(name, objective, low, high, LENGTHS)
    short = [number for number, length in enumerate(LENGTHS) if length < HORIZON]
    forecast = watched.forecast(*(Query(HORIZON, trial=number) for number in short))
    actual = objective.sign * truth[short, -1]
    assert np.isfinite(forecast.log_density(actual)).all()
    assert np.abs(forecast.quantile(0.5) - actual).mean() < 0.15 * abs(high - low)
    below = forecast.probability_below(actual)
    assert (below < 0.01).mean() <= 0.2
    assert (below > 0.99).mean() <= 0.2


@every
def test_quantiles_probabilities_and_densities_are_of_one_distribution(name: str) -> None:
    watched, _ = study(name, LOSS, 0.1, 2.0, [3, 10, 25, 40, 7])
    forecast = watched.forecast(
        *(Query(30, trial=n) for n in range(4)), Query(HORIZON, configuration=NEW)
    )
    assert len(forecast) == 5
    for probability in (0.05, 0.5, 0.95):
        quantile = forecast.quantile(probability)
        assert forecast.probability_below(quantile) == pytest.approx([probability] * 5, abs=1e-5)
    between = 0.3 * forecast.quantile(0.3) + 0.7 * forecast.quantile(0.5)
    step = 1e-6
    rise = forecast.probability_below(between + step) - forecast.probability_below(between - step)
    assert np.exp(forecast.log_density(between)) == pytest.approx(rise / (2 * step), rel=1e-2)


@pytest.mark.parametrize("name", ["last_value", "gaussian_process", "combination"])
def test_forecasts_of_a_bounded_metric_stay_within_its_bounds(name: str) -> None:
    watched, _ = study(name, ACCURACY, 0.99, 0.1, [40, 3, 12, 25, 1])
    forecast = watched.forecast(*(Query(HORIZON, trial=number) for number in range(5)))
    for row in (forecast.quantile(0.001), forecast.quantile(0.999), forecast.mean()):
        assert (row >= -1.0).all()
        assert (row <= 0.0).all()
    assert (forecast.probability_below(-1.0) == 0).all()
    assert (forecast.probability_below(1e-9) == 1).all()


@every
def test_a_run_that_diverged_is_evidence(name: str) -> None:
    watched, _ = study(name, LOSS, 0.2, 2.2, [40] * 6 + [10] * 6)
    bad = [watched.curve([2.1, math.nan, math.inf], x=0.02, y=0.97 + 0.01 * k) for k in range(3)]
    failed = watched.curve([2.1], x=0.02, y=0.95)
    watched.tell(Failed(failed, 2, "not_finite", "diverged"))
    queries = [Query(HORIZON, trial=number) for number in (*bad, failed)]
    forecast = watched.forecast(*queries, *(Query(HORIZON, trial=n) for n in range(6, 12)))
    finite(forecast, 10)
    middle = forecast.quantile(0.5)
    assert middle[:4].min() > middle[4:].max()


@every
def test_irregular_steps(name: str) -> None:
    watched = Watched(MADE[name]())
    for x in (0.1, 0.4, 0.7, 0.9):
        number = watched.start(x)
        for step in (1, 2, 5, 11, 30):
            watched.see(number, step, 0.3 + x + step**-0.5)
    short = watched.start(0.2)
    for step in (2, 7):
        watched.see(short, step, 0.5 + step**-0.5)
    middle = watched.forecast(Query(30, trial=short), Query(9, trial=short)).quantile(0.5)
    assert 0.4 < middle[0] < middle[1] + 0.02 < 1.0


@pytest.mark.parametrize("name", ["gaussian_process", "deep_power_law"])
def test_new_configurations_are_like_their_neighbours(name: str) -> None:
    watched, _ = study(name, LOSS, 0.2, 2.2, [40] * 24)
    queries = [Query(HORIZON, configuration={"x": x, "y": 0.5}) for x in (0.05, 0.95)]
    good, bad = watched.forecast(*queries).quantile(0.5)
    assert bad - good > 0.5


@every
def test_folding_from_scratch_equals_going_on_and_asking_changes_nothing(name: str) -> None:
    lengths = [3, 20, 12, 7, 2, 18]
    quiet, truth = study(name, LOSS, 0.2, 2.2, lengths)
    asked = Watched(MADE[name]())
    generator = np.random.default_rng(4)
    for length, values in zip(lengths, truth, strict=True):
        x, y = generator.random(2)
        generator.normal(size=HORIZON)
        asked.curve(values[:length], x, y)
        asked.forecast(Query(HORIZON, trial=0), Query(HORIZON, configuration=NEW))
    queries = [Query(HORIZON, trial=n) for n in range(6)] + [Query(5, configuration=NEW)]
    one, other = quiet.forecast(*queries), asked.forecast(*queries)
    for probability in (0.05, 0.5, 0.95):
        assert (one.quantile(probability) == other.quantile(probability)).all()


def test_a_unit_trained_again_replaces_what_followed() -> None:
    again, once = Watched(LastValue()), Watched(LastValue())
    for watched, values in ((again, (2.0, 1.0, 0.1)), (once, ())):
        number = watched.start()
        for step, value in enumerate(values, 1):
            watched.see(number, step, value)
        for step, value in ((1, 2.0), (2, 1.5)):
            watched.see(number, step, value)
    assert again.state.history.curves == once.state.history.curves


def test_history_is_bounded_by_rule() -> None:
    watched = Watched(LastValue())
    for number in range(30):
        watched.curve([2.0 - 0.01 * number, 1.0 + 0.01 * (number % 7)])
    chosen = watched.state.history.chosen(10)
    best = [number for number in range(30) if number % 7 == 0]
    assert len(chosen) == 10
    assert set(best) <= set(chosen)
    assert set(range(26, 30)) <= set(chosen)


@pytest.mark.parametrize("count", [1, POINTS, POINTS + 1, 50, 1000])
def test_thinned_curves_keep_both_ends_and_are_dense_at_the_last(count: int) -> None:
    places = thinned(count, POINTS)
    assert places == sorted(set(places))
    assert len(places) <= POINTS
    assert places[0] == 0
    assert places[-1] == count - 1
    gaps = np.diff(places)
    assert (np.diff(gaps) <= 1).all()


def test_the_first_scale_is_that_of_the_bounds() -> None:
    scale = beginning(ACCURACY).scale
    assert scale.normalise(np.array([-1.0, 0.0])) == pytest.approx([0.0, 1.0])


def test_averaged_quantiles_of_one_forecast_are_its_own() -> None:
    watched, _ = study("last_value", LOSS, 0.1, 2.0, [3, 10, 25, 40])
    forecast = watched.forecast(*(Query(HORIZON, trial=n) for n in range(3)))
    alone = averaged(watched.state.history.scale, [forecast], np.ones(1), None)
    for probability in PROBABILITIES[::4]:
        assert alone.quantile(probability) == pytest.approx(
            forecast.quantile(probability), rel=1e-3
        )


def test_the_combination_trusts_the_member_with_the_better_record() -> None:
    combined = few("last_value", "parametric")
    watched = Watched(combined)
    for round_ in range(1, 13):  # curves that stand still, which the last value foresees
        for number in range(4):
            if round_ == 1:
                watched.start(0.2 * number)
            watched.see(number, round_, 1.0 + 0.3 * number)
    weights = dict(zip(combined.names, watched.state.weights, strict=True))
    assert weights["last_value"] > 0.8
    assert sum(weights.values()) == pytest.approx(1.0)


def test_a_combination_without_members_is_refused() -> None:
    nobody = dict.fromkeys(Combination.space().parameters, False)
    with pytest.raises(PluginError, match="no members"):
        Combination(nobody)
    with pytest.raises(SpaceError):
        Combination.space().validate(nobody)


@pytest.mark.parametrize("plugin", [LastValue, GaussianProcess, DeepPowerLaw])
def test_forecasters_keep_the_contract(plugin: type[Forecaster]) -> None:
    assert check(plugin).ok

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from spaces import context

from autotune.decide.forecasters.parametric import CELLS, Parametric, State
from autotune.plugins.search import (
    Decided,
    Failed,
    Forecast,
    Objective,
    Observed,
    Query,
    SearchContext,
    Start,
)
from autotune.plugins.trials import Trials
from autotune.space import Float, Space

LINE = Space({"x": Float(0.0, 1.0, default=0.5), "y": Float(0.0, 1.0, default=0.5)})
SHAPES = {
    "power": lambda u: (1 + 40 * u) ** -0.7,
    "exponential": lambda u: np.exp(-6 * u),
    "logarithmic": lambda u: 1 - np.log1p(200 * u) / np.log(201),
    "Hill": lambda u: 1 / (1 + (u / 0.15) ** 2),
    "with a tail": lambda u: np.exp(-8 * u) + 0.25 * np.clip(u - 0.4, 0, None),
}


class Watched:
    """A forecaster and what it has seen."""

    def __init__(self, objective: Objective, horizon: int = 40) -> None:
        self.context: SearchContext = context(objectives=(objective,), space=LINE, horizon=horizon)
        self.forecaster = Parametric()
        self.state: State = self.forecaster.initial(self.context)
        self.trials = Trials(LINE, self.context.objectives)

    def tell(self, event: Any) -> None:
        self.trials.observe(event)
        self.state = self.forecaster.observe(self.state, event, self.trials)

    def curve(self, values: Any, x: float = 0.5, y: float = 0.5) -> int:
        number = len(self.trials)
        horizon = self.context.horizon
        self.tell(Decided(number, Start(number, {"x": x, "y": y}, horizon, horizon)))
        name = self.context.objective.name
        for step, value in enumerate(values, 1):
            self.tell(Observed(number, step, {name: float(value)}, 1.0))
        return number

    def forecast(self, *queries: Query) -> Forecast:
        return self.forecaster.forecast(self.context, self.state, self.trials, queries)


LOSS = Objective("loss", "minimize", "curve")
ACCURACY = Objective("accuracy", "maximize", "curve", bounds=(0.0, 1.0))
RETURN = Objective("return", "maximize", "curve")


def study(
    objective: Objective,
    shape: str,
    low: float,
    high: float,
    lengths: Any,
    horizon: int = 40,
    noise: float = 0.003,
) -> tuple[Watched, np.ndarray]:
    """A study whose curves go from about `high` to an end that grows with x, and their truth."""
    generator = np.random.default_rng(4)
    watched = Watched(objective, horizon)
    u = np.arange(1, horizon + 1) / horizon
    truth = []
    for length in lengths:
        x, y = generator.random(2)
        end = low + (high - low) * 0.6 * x
        falls = SHAPES[shape](u)
        values = end + (high - end) * falls + noise * (high - low) * generator.normal(size=horizon)
        values = np.clip(values, *objective.bounds) if objective.bounds else values
        truth.append(values)
        watched.curve(values[:length], x, y)
    return watched, np.array(truth)


@pytest.mark.parametrize("shape", SHAPES)
def test_ends_of_every_family_are_forecast_within_their_uncertainty(shape: str) -> None:
    lengths = [40] * 5 + [3, 5, 8, 12, 16, 20, 28] * 4
    watched, truth = study(LOSS, shape, 0.2, 2.3, lengths)
    short = [n for n, length in enumerate(lengths) if length < 40]
    forecast = watched.forecast(*(Query(40, trial=n) for n in short))
    actual = truth[short, -1]
    below = forecast.probability_below(actual)
    assert (below < 0.05).mean() <= 0.15
    assert (below > 0.95).mean() <= 0.15
    last = np.array([truth[n, lengths[n] - 1] for n in short])
    error = np.abs(forecast.quantile(0.5) - actual)
    assert error.mean() < 0.5 * np.abs(last - actual).mean()


@pytest.mark.parametrize(
    ("objective", "low", "high"),
    [
        (LOSS, 0.2, 2.3),
        (LOSS, 1e-5, 3.0),
        (LOSS, -400.0, 1e4),
        (ACCURACY, 0.97, 0.1),
        (ACCURACY, 1.0, 0.0),
        (RETURN, 3000.0, -100.0),
    ],
)
def test_any_range_and_direction(objective: Objective, low: float, high: float) -> None:
    lengths = [40] * 4 + [6, 12, 20] * 5
    watched, truth = study(objective, "power", low, high, lengths)
    short = [n for n, length in enumerate(lengths) if length < 40]
    forecast = watched.forecast(*(Query(40, trial=n) for n in short))
    actual = objective.sign * truth[short, -1]
    below = forecast.probability_below(actual)
    assert np.isfinite(below).all()
    assert (below < 0.02).mean() <= 0.2
    assert (below > 0.98).mean() <= 0.2
    middle = forecast.quantile(0.5)
    assert np.abs(middle - actual).mean() < 0.15 * abs(high - low)
    for row in (forecast.mean(), forecast.log_density(actual)):
        assert np.isfinite(row).all()


def test_quantiles_and_probabilities_are_one_distribution() -> None:
    watched, _ = study(LOSS, "power", 0.1, 2.0, [3, 10, 25, 40, 7])
    forecast = watched.forecast(
        *(Query(30, trial=n) for n in range(4)), Query(40, configuration={"x": 0.3, "y": 0.1})
    )
    assert len(forecast) == 5
    for probability in (0.05, 0.5, 0.95):
        quantile = forecast.quantile(probability)
        assert forecast.probability_below(quantile) == pytest.approx([probability] * 5, abs=1e-6)
        step = 1e-5
        rise = forecast.probability_below(quantile + step) - forecast.probability_below(
            quantile - step
        )
        density = np.exp(forecast.log_density(quantile))
        assert density == pytest.approx(rise / (2 * step), rel=1e-3)


def test_more_observations_narrow_the_forecast() -> None:
    watched = Watched(LOSS)
    u = np.arange(1, 41) / 40
    values = 0.3 + 1.7 * SHAPES["power"](u)
    for x in (0.1, 0.9, 0.4):
        watched.curve(values + x)
    widths = []
    for length in (1, 5, 20, 39):
        number = watched.curve(values[:length] + 0.2, x=0.6)
        forecast = watched.forecast(Query(40, trial=number))
        widths.append(float((forecast.quantile(0.9) - forecast.quantile(0.1))[0]))
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < 0.25 * widths[0]


def test_new_configurations_are_forecast_by_their_neighbours() -> None:
    lengths = [40] * 30
    watched, _ = study(LOSS, "exponential", 0.2, 2.2, lengths)
    steps = [Query(40, configuration={"x": x, "y": 0.5}) for x in (0.05, 0.95)]
    good, bad = watched.forecast(*steps).quantile(0.5)
    assert good == pytest.approx(0.26, abs=0.15)
    assert bad == pytest.approx(1.34, abs=0.15)


def test_a_neighbours_end_informs_a_short_curve() -> None:
    watched, truth = study(LOSS, "power", 0.2, 2.2, [40] * 30)
    one = watched.curve(truth[0][:1], x=0.05)
    two = watched.curve(truth[0][:1], x=0.95)
    forecast = watched.forecast(Query(40, trial=one), Query(40, trial=two))
    low, high = forecast.quantile(0.5)
    assert high - low > 0.5


def test_nothing_and_one_observation_are_enough() -> None:
    watched = Watched(LOSS)
    new = Query(40, configuration={"x": 0.5, "y": 0.5})
    assert np.isfinite(watched.forecast(new).quantile(0.5)).all()
    assert len(watched.forecast()) == 0
    number = watched.curve([2.3])
    forecast = watched.forecast(Query(2, trial=number), Query(40, trial=number), new)
    for row in (forecast.quantile(0.5), forecast.mean(), forecast.probability_below(2.0)):
        assert np.isfinite(row).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_left_out(bad: float) -> None:
    watched, truth = study(LOSS, "power", 0.2, 2.2, [20] * 6)
    number = watched.curve([*truth[0][:5], bad, bad])
    forecast = watched.forecast(Query(40, trial=number))
    assert np.isfinite(forecast.quantile(0.5)).all()
    only = watched.curve([bad])
    assert np.isfinite(watched.forecast(Query(40, trial=only)).quantile(0.5)).all()


def test_failures_teach_to_avoid_their_like() -> None:
    watched, truth = study(LOSS, "power", 0.2, 2.2, [40] * 12)
    query = Query(40, configuration={"x": 0.02, "y": 0.97})
    before = watched.forecast(query).quantile(0.5)[0]
    for y in (0.95, 0.98, 1.0):
        number = watched.curve([2.1], x=0.02, y=y)
        watched.tell(Failed(number, 2, "not_finite", "diverged"))
    for x in (0.3, 0.6, 0.9):  # enough for what all have in common to be learned again
        watched.curve(truth[0], x=x, y=0.2)
    after = watched.forecast(query).quantile(0.5)[0]
    assert after > before + 0.3


def test_a_diverged_curve_does_not_drown_the_others() -> None:
    lengths = [40] * 8 + [10] * 8
    clean, truth = study(LOSS, "power", 0.2, 2.2, lengths)
    watched, _ = study(LOSS, "power", 0.2, 2.2, lengths)
    watched.curve(2.2 * np.exp(np.arange(12) ** 1.5))
    queries = [Query(40, trial=n) for n in range(8, 16)]
    one, other = (w.forecast(*queries).quantile(0.5) for w in (clean, watched))
    assert np.abs(other - truth[8:, -1]).mean() < 0.1 + np.abs(one - truth[8:, -1]).mean()


def test_long_horizons_are_divided_into_cells() -> None:
    watched, truth = study(LOSS, "power", 0.2, 2.2, [1000, 1000, 300, 500], horizon=1000)
    assert watched.state.bank.values.shape[1] == CELLS
    forecast = watched.forecast(Query(1000, trial=2), Query(1000, trial=3))
    assert np.abs(forecast.quantile(0.5) - truth[2:, -1]).max() < 0.1


def test_folding_from_scratch_equals_going_on_and_forecasting_changes_nothing() -> None:
    lengths = [3, 40, 12, 7, 25, 2, 18, 33]
    one, _ = study(LOSS, "Hill", 0.2, 2.2, lengths)
    two = Watched(LOSS)
    generator = np.random.default_rng(4)
    u = np.arange(1, 41) / 40
    queries = [Query(40, configuration={"x": 0.3, "y": 0.2})]
    for length in lengths:
        x, y = generator.random(2)
        end = 0.2 + 2.0 * 0.6 * x
        noise = 0.003 * 2.0 * generator.normal(size=40)
        two.curve((end + (2.2 - end) * SHAPES["Hill"](u) + noise)[:length], x, y)
        two.forecast(*queries, Query(40, trial=0))
    queries += [Query(40, trial=n) for n in range(len(lengths))]
    first, second = one.forecast(*queries), two.forecast(*queries)
    for probability in (0.05, 0.5, 0.95):
        assert (first.quantile(probability) == second.quantile(probability)).all()

"""The curve network in a study: any space, any metric, any curve."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from autotune.pfn import scaling, slots
from autotune.pfn.forecaster import TRIALS, CurveNetworkForecaster, State
from autotune.pfn.spaces import SLOTS
from autotune.plugins import check
from autotune.plugins.search import (
    Budget,
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
from autotune.space import Categorical, Choice, Configuration, Float, Space

LOSS = Objective("value", "minimize", "curve")
ACCURACY = Objective("value", "maximize", "curve", bounds=(0.0, 1.0))
RETURN = Objective("value", "maximize", "curve")
LINE = Space({"x": Float(0.0, 1.0), "y": Float(0.0, 1.0)})


class Study:
    """The forecaster and what it has seen."""

    def __init__(self, objective: Objective = LOSS, space: Space = LINE, horizon: int = 40) -> None:
        self.context = SearchContext(space, Space({}), (objective,), horizon, Budget(units=1), 0)
        self.forecaster = CurveNetworkForecaster()
        self.state: State = self.forecaster.initial(self.context)
        self.trials = Trials(space, self.context.objectives)

    def tell(self, event: Any) -> None:
        self.trials.observe(event)
        self.state = self.forecaster.observe(self.state, event, self.trials)

    def curve(self, values: Any, configuration: Configuration | None = None) -> int:
        number = len(self.trials)
        configuration = configuration or {"x": 0.5, "y": 0.5}
        horizon = self.context.horizon
        self.tell(Decided(number, Start(number, configuration, horizon, horizon)))
        for step, value in enumerate(values, 1):
            self.tell(Observed(number, step, {"value": float(value)}, 1.0))
        return number

    def forecast(self, *queries: Query) -> Forecast:
        return self.forecaster.forecast(self.context, self.state, self.trials, queries)


def falling(end: float, horizon: int = 40, start: float = 2.3) -> np.ndarray:
    """A loss that falls towards its end."""
    share = np.arange(1, horizon + 1) / horizon
    return end + (start - end) * np.exp(-4.0 * share)


def test_the_contract_is_kept() -> None:
    report = check(CurveNetworkForecaster)
    assert report.ok, report.failures


@pytest.mark.parametrize(
    ("objective", "shown"),
    [
        (LOSS, lambda loss: loss),
        (LOSS, lambda loss: 1e-4 * loss),
        (ACCURACY, lambda loss: 1 - loss / 2.5),
        (RETURN, lambda loss: 5000 - 3000 * loss),
    ],
)
def test_smooth_curves_are_continued(objective: Objective, shown: Any) -> None:
    study = Study(objective)
    generator = np.random.default_rng(0)
    truth = []
    for index in range(24):
        x = float(generator.random())
        curve = shown(falling(0.3 + x))
        truth.append(curve)
        study.curve(curve[: 8 + index], {"x": x, "y": float(generator.random())})
    ends = np.array([objective.sign * curve[-1] for curve in truth])
    lasts = np.array([objective.sign * curve[7 + index] for index, curve in enumerate(truth)])
    forecast = study.forecast(*(Query(40, trial=number) for number in range(24)))
    error = np.abs(forecast.quantile(0.5) - ends)
    assert error.mean() < 0.35 * np.abs(lasts - ends).mean()
    inside = (forecast.quantile(0.01) <= ends) & (ends <= forecast.quantile(0.99))
    assert inside.mean() >= 0.9
    assert np.isfinite(forecast.log_density(ends)).all()


def test_new_configurations_are_told_apart_by_their_neighbours() -> None:
    study = Study()
    generator = np.random.default_rng(1)
    for _ in range(40):
        x, y = generator.random(2).tolist()
        study.curve(falling(0.2 + 1.5 * x)[:30], {"x": x, "y": y})
    good, bad = (Query(40, configuration={"x": x, "y": 0.5}) for x in (0.1, 0.9))
    ends = study.forecast(good, bad).quantile(0.5)
    assert ends[0] < 0.8 < ends[1]


def test_a_finished_curve_returns_its_value() -> None:
    study = Study()
    for end in (0.5, 0.9, 1.3):
        study.curve(falling(end), {"x": end / 2, "y": 0.1})
    forecast = study.forecast(*(Query(40, trial=number) for number in range(3)))
    ends = np.array([falling(end)[-1] for end in (0.5, 0.9, 1.3)])
    assert np.abs(forecast.mean() - ends).max() < 0.05
    spread = forecast.quantile(0.9) - forecast.quantile(0.1)
    assert spread.max() < 0.15


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_diverged_curve_is_evidence_not_a_gap(bad: float) -> None:
    def forecast(value: float, fail: bool) -> float:
        study = Study()
        for index in range(12):
            x = index / 11
            curve = falling(0.5)[:10].copy()
            if x > 0.5:
                curve[5:] = value
            study.curve(curve, {"x": x, "y": 0.5})
            if fail and x > 0.5:
                study.tell(Failed(len(study.trials) - 1, 10, "not_finite", "diverged"))
        query = Query(40, configuration={"x": 0.95, "y": 0.5})
        return float(study.forecast(query).probability_below(1.0)[0])

    assert forecast(bad, fail=True) < 0.5 * forecast(falling(0.5)[8], fail=False)


def test_nothing_one_observation_and_missing_units_are_enough() -> None:
    study = Study()
    asked = Query(40, configuration={"x": 0.2, "y": 0.2})
    assert np.isfinite(study.forecast(asked).mean()).all()
    assert len(study.forecast()) == 0
    study.curve([1.7])
    assert np.isfinite(study.forecast(asked, Query(40, trial=0)).log_density(np.ones(2))).all()
    number = len(study.trials)
    study.tell(Decided(number, Start(number, {"x": 0.3, "y": 0.2}, 40, 40)))
    for step in (3, 4, 9):
        study.tell(Observed(number, step, {"value": 1.5 - 0.05 * step}, 1.0))
    study.tell(Observed(number, 10, {"other": 3.0}, 1.0))
    assert np.isfinite(study.forecast(Query(40, trial=number)).quantile(0.5)).all()


def test_a_unit_trained_again_counts_once() -> None:
    once, twice = Study(), Study()
    for study in (once, twice):
        study.curve([1.0, 0.9, 0.8])
    twice.tell(Observed(0, 3, {"value": 0.8}, 1.0))
    query = Query(40, trial=0)
    assert once.forecast(query).mean() == pytest.approx(twice.forecast(query).mean(), abs=1e-12)


def test_probabilities_and_quantiles_are_one_distribution() -> None:
    study = Study(ACCURACY)
    for index in range(6):
        study.curve(1 - falling(0.5 + index / 10)[: 5 + index] / 2.5, {"x": index / 6, "y": 0.1})
    forecast = study.forecast(*(Query(40, trial=number) for number in range(6)))
    for probability in (0.05, 0.3, 0.5, 0.95):
        below = forecast.probability_below(forecast.quantile(probability))
        assert below == pytest.approx(np.full(6, probability), abs=1e-6)


def test_more_trials_than_it_looks_at() -> None:
    study = Study(horizon=4)
    for index in range(TRIALS + 40):
        study.curve([2.0 - (index % 10) / 10], {"x": index / (TRIALS + 40), "y": 0.5})
    newest = len(study.trials) - 1
    forecast = study.forecast(Query(4, trial=newest), Query(4, trial=0))
    assert np.isfinite(forecast.mean()).all()


def test_options_of_one_choice_share_slots() -> None:
    options = {
        f"method{index}": Space({f"a{index}": Float(0.0, 1.0), f"b{index}": Float(0.0, 1.0)})
        for index in range(30)
    }
    space = Space({"method": Choice(options), "rate": Float(0.0, 1.0)})
    plan = slots.layout(space)
    assert plan.groups == 4, "the choice, the rate, and two for the options' own"
    encoded, mask = space.encode({"method": {"name": "method7", "a7": 0.25, "b7": 0.75}, "rate": 0})
    (seen,) = slots.filled(plan, encoded[None], mask[None])
    assert seen[:4, 1].tolist() == [1.0] * 4
    assert sorted(seen[:4, 0].tolist()) == pytest.approx([0.0, 7 / 29, 0.25, 0.75])
    assert seen[:4, 2].sum() == 1.0
    assert (seen[4:] == 0).all()


def test_of_too_many_hyperparameters_the_important_ones_are_seen_and_the_user_is_told() -> None:
    names = [f"x{index:02}" for index in range(40)]
    space = Space({name: Float(0.0, 1.0) for name in names} | {"z": Categorical(("p", "q", "r"))})
    study = Study(space=space)
    (remark,) = study.forecaster.remarks(study.context)
    assert "41" in remark
    assert str(SLOTS) in remark
    generator = np.random.default_rng(3)
    ends = []
    for _ in range(60):
        configuration = space.sample(generator)
        ends.append(0.3 + configuration["x35"] + 0.5 * (configuration["z"] == "q"))
        study.curve(falling(ends[-1])[:25], configuration)
    encoded = np.stack([trial.encoded for trial in study.trials.all.values()])
    mask = np.stack([trial.mask for trial in study.trials.all.values()])
    kept = slots.important(study.state.plan, encoded, mask, -np.array(ends))
    assert len(kept) == SLOTS
    assert {35, 40} <= set(kept.tolist())
    low, high = space.default() | {"x35": 0.05}, space.default() | {"x35": 0.95}
    ahead = study.forecast(Query(40, configuration=low), Query(40, configuration=high)).mean()
    assert ahead[0] < ahead[1]


def test_a_loss_over_decades_is_taken_logarithmically() -> None:
    firsts, bests = np.array([2.0, 3.0, 2.5]), np.array([1e-4, 0.5, 1.0])
    scale = scaling.fitted(LOSS, firsts, bests)
    assert scale.origin == 0.0
    values = np.array([1e-4, 1e-2, 1.0])
    y = scale.normalise(values)
    assert (np.diff(y) < -0.2).all()
    assert scale.restore(y) == pytest.approx(values)
    step = 1e-6 * values
    slope = -(scale.normalise(values + step) - scale.normalise(values - step)) / (2 * step)
    assert np.log(slope) == pytest.approx(scale.log_slope(values), abs=1e-4)


def test_bounds_are_kept_unless_trials_start_near_the_ideal() -> None:
    wide = scaling.fitted(ACCURACY, np.array([-0.1, -0.3]), np.array([-0.8, -0.9]))
    assert wide.normalise(np.array([0.0, -1.0])).tolist() == [0.0, 1.0]
    near = scaling.fitted(ACCURACY, np.array([-0.95, -0.96]), np.array([-0.98, -0.99]))
    assert near.normalise(np.array([-1.0]))[0] == 1.0
    assert near.normalise(np.array([-0.95]))[0] < 0.5 < near.normalise(np.array([-0.99]))[0]
    assert near.normalise(np.array([math.nan, math.inf])).tolist() == [0.0, 0.0]


def test_bounds_that_the_values_contradict_are_none() -> None:
    per_cent = scaling.fitted(ACCURACY, np.array([-30.0, -40.0]), np.array([-80.0, -93.9]))
    y = per_cent.normalise(np.array([-40.0, -80.0, -93.9, -95.0]))
    assert (np.diff(y) > 0).all()
    assert 0 < y[0] < y[2] < 1

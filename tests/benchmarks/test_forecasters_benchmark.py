"""The comparison of forecasters: its contexts, its figures, its files."""

from __future__ import annotations

import math

import forecasters
import numpy as np
import pytest
from common import contexts, published
from common.contexts import SCALED, Drawn, draw, folded
from common.tables import Table

from autotune.decide.forecasters.last_value import LastValue
from autotune.plugins.search import FloatArray, Forecast


def table() -> Table:
    generator = np.random.default_rng(0)
    points = generator.random((120, 3))
    curves = generator.random((120, 20))
    return Table("made_up", "made", SCALED, points, np.ones((120, 3), bool), curves, curves)


def test_a_draw_is_the_same_every_time_and_holds_no_unit_twice() -> None:
    one, again, other = draw(table(), 0), draw(table(), 0), draw(table(), 1)
    assert (one.rows == again.rows).all()
    assert (one.rows[:50] != other.rows[:50]).any()
    assert len(one.rows) == contexts.LENGTH
    assert np.bincount(one.rows).max() <= 20


def test_curves_are_seen_from_their_start_and_asked_for_their_end() -> None:
    drawn = draw(table(), 0)
    sizes = []
    for size, seen in folded(drawn, LastValue(), (400, 1800)):
        sizes.append(size)
        assert sum(len(t.metrics) for t in seen.trials.all.values()) == size
        counts = np.bincount(drawn.rows[:size], minlength=120)
        for trial in seen.trials.all.values():
            row = seen.context.space.row(trial.configuration)  # type: ignore[attr-defined]
            steps, values = trial.curve("value")
            assert steps == list(range(1, counts[row] + 1))
            assert values == drawn.table.curves[row, : counts[row]].tolist()
        assert len(seen.queries) == min(len(seen.trials.all), contexts.LENGTH - size)
        for query, outcome in zip(seen.queries, seen.outcomes, strict=True):
            assert query.trial is not None
            assert query.step == 20
            configuration = seen.trials[query.trial].configuration
            row = seen.context.space.row(configuration)  # type: ignore[attr-defined]
            assert outcome == drawn.table.curves[row, -1]
    assert sizes == [400, 1800]


class Uniform(Forecast):
    """Of the negated metric, on [-1, 0]."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def probability_below(self, threshold: float | FloatArray) -> FloatArray:
        return np.clip(np.broadcast_to(threshold, self.count) + 1.0, 0.0, 1.0)

    def quantile(self, probability: float) -> FloatArray:
        return np.full(self.count, probability - 1.0)

    def mean(self) -> FloatArray:
        return np.full(self.count, -0.5)

    def log_density(self, value: FloatArray) -> FloatArray:
        return np.zeros(self.count)


def test_scores_of_a_known_forecast() -> None:
    (_, seen), *_ = folded(Drawn(table(), draw(table(), 0).rows, 0), LastValue(), (400,))
    outcomes = np.array([0.0, 0.0304, 0.0505, 0.5, 0.97, 1.0])
    seen.outcomes = outcomes
    scores = seen.scored(Uniform(len(outcomes)))
    assert scores.log_likelihood == pytest.approx(np.zeros(6), abs=1e-9)
    assert scores.squared_error == pytest.approx((outcomes - 0.5) ** 2)
    assert scores.below_5 == pytest.approx([1, 1, 0, 0, 0, 0])
    assert scores.above_95 == pytest.approx([0, 0, 0, 0, 1, 1], abs=1e-9)


def test_a_case_is_one_line_with_the_stated_keys() -> None:
    scores = contexts.Scores(*(np.array([1.0, 3.0]) for _ in range(4)))
    worse = contexts.Scores(*(np.array([-4.0, 0.0]) for _ in range(4)))
    case = forecasters._case("file", "name", 400, [(scores, 5.0), (scores, 7.0), (worse, 6.0)])
    assert list(forecasters.Case.__dataclass_fields__) == [
        "file",
        "forecaster",
        "observations",
        "log_likelihood_mean",
        "log_likelihood_median",
        "squared_error_mean",
        "squared_error_median",
        "below_5",
        "above_95",
        "milliseconds",
    ]
    assert case.log_likelihood_mean == pytest.approx(2 / 3)
    assert case.log_likelihood_median == 2.0
    assert case.milliseconds == 6.0


def test_published_figures_stand_beside_two_suites() -> None:
    assert published.of("taskset", 1000)["FT-PFN"].log_likelihood == 3.016
    assert published.of("lcbench_surrogate", 400)["DPL"].squared_error == 0.007
    assert published.of("arlbench", 1000) == {}
    assert math.isclose(published.of("taskset", 1800)["DyHPO"].seconds, 166.491)

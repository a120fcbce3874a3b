"""Segments, spending, standings and importance against what the demo study did."""

from __future__ import annotations

import math

import demo
import numpy as np
import pytest

from autotune.plugins.search import (
    Decided,
    Forecast,
    Forecaster,
    Frozen,
    Lost,
    Observed,
    Restarted,
    Start,
    Thaw,
)
from autotune.plugins.trials import Trials
from autotune.report.history import best_so_far, forecasts, segments, standings
from autotune.report.importance import ENOUGH_TRIALS, importance


def test_segments_cover_all_training(view):
    pieces = segments(view.events)
    training = [p for p in pieces if p.work in ("start", "thaw")]
    assert sum(p.work == "start" for p in training) == len(view.trials)
    assert sum(p.last - p.first for p in training) == view.trials.units
    assert sum(p.seconds for p in training) == pytest.approx(view.trials.train_seconds)
    assert sum(p.outcome == "failed" for p in training) == sum(
        t.status == "failed" for t in view.trials.all.values()
    )
    assert sum(p.work == "evaluate" for p in pieces) == view.trials.evaluations
    assert sum(p.work == "measure" for p in pieces) == 27
    assert all(p.began <= p.ended for p in pieces)
    for trial in view.trials.all.values():
        ends = [p.last for p in training if p.trial == trial.number]
        assert ends == sorted(ends)
        assert ends[-1] == trial.last


def test_a_segment_lost_and_one_in_flight():
    configuration = demo.SPACE.split()[0].default()
    pieces = segments(
        [
            Decided(0, Start(0, configuration, 5, 2), 1.0),
            Observed(0, 1, {"validation_loss": 1.0}, 0.5, 2.0),
            Lost(0, "worker died", None, 3.0),
            Decided(1, Start(1, configuration, 5, 2), 3.0),
            Restarted(4.0),
            Decided(2, Thaw(1, 2), 5.0),
            Observed(1, 1, {"validation_loss": 1.0}, 0.5, 6.0),
        ]
    )
    assert [(p.trial, p.work, p.outcome, p.began, p.ended) for p in pieces] == [
        (0, "start", "lost", 1.0, 3.0),
        (1, "start", "lost", 3.0, 4.0),
        (1, "thaw", "running", 5.0, 6.0),
    ]


def test_best_so_far_counts_repeated_units_once():
    configuration = demo.SPACE.split()[0].default()
    log = [
        Decided(0, Start(0, configuration, 5, 4)),
        Observed(0, 1, {"validation_loss": 0.9}, 0.1),
        Observed(0, 1, {"validation_loss": 0.9}, 0.1),
        Observed(0, 2, {"validation_loss": math.nan}, 0.1),
        Observed(0, 3, {"validation_loss": 0.5}, 0.1),
        Observed(0, 4, {"validation_loss": 0.7}, 0.1),
    ]
    trials = Trials(demo.SPACE.split()[0], demo.OBJECTIVES)
    for event in log:
        trials.observe(event)
    assert best_so_far(trials, log) == ([1, 3, 4], [0.9, 0.5, 0.5])


def test_standings_count_every_trial_once_a_choice(view):
    rows = standings(
        view.trials,
        [p.configuration for p in view.result.pareto],
        [p.configuration for p in view.result.points],
    )
    by_choice = {}
    for row in rows:
        by_choice.setdefault(row.choice, []).append(row)
    assert list(by_choice) == ["optimizer", "schedule", "adapter", "tta"]
    for choice in ("optimizer", "schedule", "adapter"):
        assert sum(row.trials for row in by_choice[choice]) == len(view.trials)
        assert sum(row.units for row in by_choice[choice]) == view.trials.units
        best = [row.best for row in by_choice[choice]]
        assert best == sorted(best)
    assert sum(row.trials for row in by_choice["tta"]) == len(view.result.points)
    for members in by_choice.values():
        assert sum(row.front for row in members) == len(view.result.pareto)


class Straight(Forecaster):
    """Expects the last value for ever, one unit of loss wide."""

    name = "straight"

    def initial(self, context):
        return {"events": 0}

    def observe(self, state, event, trials):
        state["events"] += 1
        return state

    def forecast(self, context, state, trials, queries):
        assert state["events"] > 0
        last = np.array([trials.scores(q.trial)[1][-1] for q in queries])

        class Known(Forecast):
            def __len__(self):
                return len(last)

            def probability_below(self, threshold):
                return (last < threshold).astype(float)

            def quantile(self, probability):
                return last + probability - 0.5

            def mean(self):
                return last

            def log_density(self, value):
                return -np.abs(value - last)

        return Known()


def test_forecasts_are_of_the_best_unfinished(view):
    bands = forecasts(view.context, view.events, Straight(), limit=5)
    assert len(bands) == 5
    unfinished = sorted(
        (min(t.curve("validation_loss")[1]), t.number)
        for t in view.trials.all.values()
        if t.status == "frozen"
    )
    assert [band.trial for band in bands] == [number for _, number in unfinished[:5]]
    for band in bands:
        trial = view.trials[band.trial]
        assert band.steps[0] == trial.last + 1
        assert band.steps[-1] == trial.horizon
        assert len(band.steps) <= 10
        value = trial.metrics[trial.last]["validation_loss"]
        assert band.low == pytest.approx([value - 0.4] * len(band.steps))
        assert band.high == pytest.approx([value + 0.4] * len(band.steps))


def quadratic(count: int) -> Trials:
    """Trials whose loss depends on adamw's learning rate and nothing else."""
    space = demo.SPACE.split()[0]
    trials = Trials(space, demo.OBJECTIVES)
    rng = np.random.default_rng(3)
    for number in range(count):
        configuration = space.sample(rng)
        optimizer = configuration["optimizer"]
        loss = 5.0
        if optimizer["name"] == "adamw":
            loss = (math.log10(optimizer["learning_rate"]) + 2.0) ** 2
        trials.observe(Decided(number, Start(number, configuration, 3, 1)))
        trials.observe(Observed(number, 1, {"validation_loss": loss}, 0.1))
        trials.observe(Frozen(number, 1, "c"))
    return trials


def test_importance_finds_what_matters_conditions_included():
    found = importance(quadratic(150))
    assert found.missing is None
    assert sum(share for _, share in found.shares) == pytest.approx(1.0)
    leading = [name for name, _ in found.shares[:2]]
    assert set(leading) == {"optimizer.learning_rate (adamw)", "optimizer"}
    assert "optimizer.learning_rate (sgd)" in dict(found.shares)


def test_importance_says_when_there_are_too_few_trials():
    found = importance(quadratic(ENOUGH_TRIALS - 1))
    assert found.shares == ()
    assert f"Only {ENOUGH_TRIALS - 1} trials" in found.missing

"""The stop by utility: when the search ends, what it says, and that it asks what it should."""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from simulator import Simulator, decisions
from spaces import context, curve, search

from autotune.decide.leaders import Leaders
from autotune.decide.utility import EVERY, EVIDENCE, PATIENCE, UtilityStop, expected_improvement
from autotune.plugins.search import (
    Budget,
    Decided,
    Doubt,
    FloatArray,
    Forecast,
    Frozen,
    Key,
    Objective,
    Start,
    Stop,
    Thaw,
    Utility,
)


class Normal(Forecast):
    def __init__(self, means: list[float], deviations: list[float]) -> None:
        self.normals = [NormalDist(m, d) for m, d in zip(means, deviations, strict=True)]

    def __len__(self) -> int:
        return len(self.normals)

    def probability_below(self, threshold: float | FloatArray) -> FloatArray:
        limits = np.broadcast_to(threshold, len(self))
        return np.array([n.cdf(t) for n, t in zip(self.normals, limits, strict=True)])

    def quantile(self, probability: float) -> FloatArray:
        return np.array([normal.inv_cdf(probability) for normal in self.normals])

    def mean(self) -> FloatArray:
        return np.array([normal.mean for normal in self.normals])

    def log_density(self, value: FloatArray) -> FloatArray:
        return np.log([n.pdf(v) for n, v in zip(self.normals, value, strict=True)])


def test_expected_improvement_is_that_of_the_closed_form() -> None:
    means, deviations, best = [0.3, 0.5, 0.9, 5.0], [0.1, 0.2, 0.1, 0.1], 0.5
    found = expected_improvement(Normal(means, deviations), best)
    for value, mean, deviation in zip(found, means, deviations, strict=True):
        z = (best - mean) / deviation
        exact = (best - mean) * NormalDist().cdf(z) + deviation * NormalDist().pdf(z)
        assert value == pytest.approx(exact, rel=0.03, abs=1e-5)


def simulated(
    utility: Utility | None, units: int = 150, seconds: float = 1.0, **changes: Any
) -> Simulator:
    found = context(Budget(units=units), utility=utility, workers=1, **changes)
    simulator = Simulator(search(found, "freeze_thaw"), curve, seconds=seconds)
    simulator.run()
    return simulator


def test_the_dearer_a_unit_the_sooner_the_search_stops_and_says_why() -> None:
    spent = []
    for utility in (
        Utility(improvement=0.01, units=1_000.0),
        Utility(improvement=0.01, units=0.6),
        Utility(percent=10.0, units=0.5),
    ):
        simulator = simulated(utility)
        spent.append(simulator.search.trials.units)
    assert spent[0] == 150
    assert spent[0] > spent[1] > spent[2] >= EVIDENCE
    assert simulator.reason is not None
    assert "no further training is expected to pay" in simulator.reason
    assert "improve validation_loss by" in simulator.reason
    assert "a unit; asked for are" in simulator.reason


def test_seconds_count_where_the_price_is_in_seconds() -> None:
    utility = Utility(improvement=0.01, seconds=0.4)
    quick, slow = simulated(utility, 60, seconds=0.001), simulated(utility, 60, seconds=1.0)
    assert quick.search.trials.units == 60
    assert slow.search.trials.units < 60
    assert slow.reason is not None
    assert "a second; asked for are" in slow.reason


def test_maximised_objectives_are_worth_the_same() -> None:
    more = Objective("accuracy", "maximize", "curve")

    def flipped(configuration: dict[str, Any], step: int) -> dict[str, float]:
        return {"accuracy": -curve(configuration, step)["validation_loss"]}

    utility = Utility(improvement=0.01, units=0.3)
    found = context(Budget(units=150), (more,), utility=utility, workers=1)
    simulator = Simulator(search(found, "freeze_thaw"), flipped)
    simulator.run()
    assert simulator.search.trials.units < 150
    assert simulator.reason is not None
    assert "improve accuracy by" in simulator.reason


def test_folding_the_events_anew_takes_the_same_decisions() -> None:
    found = context(Budget(units=150), utility=Utility(improvement=0.01, units=0.6), workers=3)
    simulator = Simulator(search(found, "freeze_thaw"), curve)
    simulator.run()
    assert simulator.search.trials.units < 150
    again = search(found, "freeze_thaw")
    for event in simulator.events:
        if isinstance(event, Decided):
            assert again.decide(Key(found.seed, event.number)) == event.decision
        again.observe(event)
    starts = [d for d in decisions(simulator.events) if isinstance(d, Start)]
    assert len(starts) >= EVIDENCE


def test_several_doubts_in_a_row_end_the_search_and_one_does_not() -> None:
    """Each at every fifth decision; one that is followed by training that is worth its cost is
    forgotten."""
    simulator = simulated(Utility(improvement=0.01, units=0.6))
    asked = [event for event in simulator.events if isinstance(event, Decided)]
    assert isinstance(asked[-1].decision, Stop)
    doubts = [event.number for event in asked if isinstance(event.decision, Doubt)]
    last = asked[-1].number
    assert doubts[-(PATIENCE - 1) :] == [last - 2 * EVERY, last - EVERY]
    leaders = Leaders()
    fold = UtilityStop(simulator.search.context, leaders)
    trials = simulator.search.trials
    for event in simulator.events:
        leaders.observe(event, trials)

    def hopeless(queries: Any) -> Normal:
        return Normal([1e3] * len(queries), [1e-6] * len(queries))

    def verdict(number: int) -> Doubt | Stop | None:
        return fold.verdict(trials, hopeless, Key(0, number), set())

    kinds = []
    for number in (100, 105, 110, 115, 120):
        given = verdict(number)
        assert given is not None
        kinds.append(type(given))
        if number == 105:  # some training was worth its cost after all
            fold.observe(Decided(number, Thaw(0, 2)), trials)
            fold.observe(Frozen(0, 2, "checkpoint"), trials)
        else:
            fold.observe(Decided(number, Doubt("none is")), trials)
    assert kinds == [Doubt, Doubt, Doubt, Doubt, Stop]
    assert verdict(121) is None
    # Nothing is asked before a segment that was cut short is resumed.
    fold.observe(Decided(125, Thaw(0, 2)), trials)
    assert isinstance(verdict(130), Doubt)
    for number in (130, 135):
        fold.observe(Decided(number, Doubt("none is")), trials)
    fold.observe(Frozen(0, 1, "checkpoint"), trials)
    fold.observe(Decided(140, Thaw(0, 2)), trials)
    assert isinstance(verdict(145), Stop)
    fold.observe(Frozen(0, 2, "checkpoint"), trials)
    fold.observe(Decided(145, Thaw(0, 3)), trials)
    assert isinstance(verdict(150), Doubt), "this one was asked for"

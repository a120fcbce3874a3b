"""Refined linear decay against the paper's algorithm 1 in plain loops."""

from __future__ import annotations

import math
import statistics
from typing import Any

import numpy as np
import pytest

from autotune.plugins import GradientNorms, PluginError, Progress, Signals
from autotune_plugins.schedules.linear_decay import LinearDecay, refined_factors

STEPS = 80


def plainly(norms: list[float], power: float, width: float) -> list[float]:
    """Median of a window (first norm repeated before the start, mirrored past the end), weights,
    weight times the sum of all later weights, scaled to a largest of 1."""
    steps, reach = len(norms), round(width * len(norms)) // 2
    smooth = []
    for t in range(steps):
        window = []
        for at in range(t - reach, t + reach + 1):
            if at < 0:
                window.append(norms[0])
            elif at >= steps:
                window.append(norms[2 * steps - 1 - at])
            else:
                window.append(norms[at])
        smooth.append(statistics.median(window))
    weights = [value**power for value in smooth]
    factors = [weights[t] * math.fsum(weights[t + 1 :]) for t in range(steps)]
    return [factor / max(factors) for factor in factors]


def norms_of_a_run(seed: int) -> list[float]:
    """Large at first, then falling with noise, rising at the end, as recorded runs have it."""
    rng = np.random.default_rng(seed)
    t = np.arange(STEPS) / STEPS
    curve = 5 * np.exp(-8 * t) + 1 + 2 * t**4
    return (curve * np.exp(0.3 * rng.standard_normal(STEPS))).tolist()


@pytest.mark.parametrize(("norm", "power"), [("l2", -2.0), ("l1", -1.0)])
@pytest.mark.parametrize("width", [0.01, 0.1, 0.5, 1.0])
def test_algorithm_1(norm: Any, power: float, width: float) -> None:
    norms = norms_of_a_run(seed=1)
    ours = refined_factors(norms, norm, width)
    assert ours.tolist() == pytest.approx(plainly(norms, power, width), rel=1e-10)
    assert ours.max() == 1.0
    assert ours[-1] == 0.0


def test_equal_norms_give_the_line() -> None:
    ours = refined_factors([3.0] * STEPS, "l2")
    line = [(STEPS - 1 - t) / (STEPS - 1) for t in range(STEPS)]
    assert ours.tolist() == pytest.approx(line, rel=1e-12, abs=1e-12)


def test_large_norms_at_first_give_a_warm_up() -> None:
    ours = refined_factors(norms_of_a_run(seed=2), "l2")
    assert ours[0] < 0.2
    assert 10 < ours.argmax() < STEPS // 2


def test_factors_stretch_over_another_horizon() -> None:
    """Twice as many samples: the same factors at the same shares, lines between them."""
    norms = norms_of_a_run(seed=3)
    record = GradientNorms([10 * t for t in range(STEPS)], 10 * STEPS, norms, norms)
    schedule = LinearDecay()
    schedule.refine(record, "l2", 0.1)
    factors = refined_factors(norms, "l2", 0.1)
    found = []
    for t in range(2 * STEPS + 3):
        at = Progress(10 * t, 20 * STEPS, 100, t, 10)
        found.append(schedule.control(at, Signals()).factor)
    assert found[: 2 * STEPS : 2] == pytest.approx(factors.tolist(), rel=1e-12, abs=1e-15)
    between = (factors[1:] + factors[:-1]) / 2
    assert found[1 : 2 * STEPS - 1 : 2] == pytest.approx(between.tolist(), rel=1e-12)
    assert found[2 * STEPS - 2 :] == [0.0] * 5
    fresh = LinearDecay()
    fresh.load_state_dict(schedule.state_dict())
    assert fresh.control(Progress(55, 800, 100, 5, 10), Signals()) == schedule.control(
        Progress(55, 800, 100, 5, 10), Signals()
    )


@pytest.mark.parametrize("norms", [[1.0], [], [1.0, 0.0, 1.0], [1.0, float("nan")]])
def test_norms_that_say_nothing_are_refused(norms: list[float]) -> None:
    with pytest.raises(PluginError, match="expected at least two, all finite and above 0"):
        refined_factors(norms, "l2")

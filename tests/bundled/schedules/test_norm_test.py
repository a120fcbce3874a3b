"""The batch size that each test asks for, against its formula."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from autotune.plugins import ModelInfo, Progress, Signals
from autotune_plugins.schedules.norm_test import NormTest

BATCH, STEPS = 8, 60


def signals_of(rows: np.ndarray) -> Signals:
    """As the loop takes them of these per-sample gradients, one a row."""
    mean = rows.mean(0)
    along = rows @ mean
    across = rows - np.outer(along, mean) / (mean @ mean)
    return Signals(
        gradient_norm=float(np.sqrt(mean @ mean)),
        measured_samples=len(rows),
        per_sample_gradient_variance=float(rows.var(0, ddof=1).sum()),
        inner_product_variance=float(along.var(ddof=1)),
        orthogonal_variance=float(across.var(0, ddof=1).sum()),
        coordinate_variance_ratio=float((rows.var(0, ddof=1) / mean**2).max()),
    )


def plainly(test: dict[str, Any], rows: np.ndarray) -> float:
    """The papers' batch sizes, from the gradients themselves."""
    mean = rows.mean(0)
    squared = float(mean @ mean)
    products = rows @ mean
    inner = products.var(ddof=1) / (test.get("theta", 1.0) ** 2 * squared**2)
    if test["name"] == "norm":
        return float(rows.var(0, ddof=1).sum() / (test["eta"] ** 2 * squared))
    if test["name"] == "coordinate_wise":
        return float(max(rows.var(0, ddof=1) / (test["eta"] ** 2 * mean**2)))
    if test["name"] == "inner_product":
        return float(inner)
    rest = np.stack([row - (row @ mean) / squared * mean for row in rows])
    return float(max(inner, rest.var(0, ddof=1).sum() / (test["nu"] ** 2 * squared)))


def at(step: int) -> Progress:
    return Progress(step * BATCH, STEPS * BATCH, 100, step, BATCH)


@pytest.mark.parametrize(
    "test",
    [
        {"name": "norm", "eta": 0.5},
        {"name": "coordinate_wise", "eta": 0.9},
        {"name": "inner_product", "theta": 0.15},
        {"name": "augmented", "theta": 0.9, "nu": 0.4},
        {"name": "augmented", "theta": 0.15, "nu": 5.84},
    ],
    ids=lambda test: "-".join(map(str, test.values())),
)
def test_sixty_steps_of_gradients_whose_mean_fades(test: dict[str, Any]) -> None:
    largest = 5000
    schedule = NormTest({"test": test, "interval": 1, "largest_batch_size": largest})
    rng = np.random.default_rng(0)
    expected, found, rows = BATCH, [], None
    for step in range(STEPS):
        signals = Signals() if rows is None else signals_of(rows)
        control = schedule.control(at(step), signals)
        if rows is not None:
            wanted = plainly(test, rows)
            assert schedule.wanted_batch_size(signals) == pytest.approx(wanted, rel=1e-10)
            expected = max(expected, math.ceil(min(wanted, largest)))
        assert control.batch_size == expected
        assert control.measured_samples == 128
        found.append(control.batch_size)
        mean = np.array([1.0, -2.0, 0.5, 1.5]) * 0.97**step
        rows = mean + 0.5 * rng.standard_normal((BATCH, 4))
    assert found[0] == BATCH
    assert len(set(found)) > 3, "it should have grown in several steps"


def test_never_above_the_cap_nor_smaller_than_before() -> None:
    schedule = NormTest({"interval": 1, "largest_batch_size": 64})
    sizes = []
    for variance in (0.0, 4.0, 1.0, 9e9, math.inf, math.nan, 0.1):
        signals = Signals(gradient_norm=2.0, per_sample_gradient_variance=variance)
        sizes.append(schedule.control(at(0), signals).batch_size)
    assert sizes == [8, 16, 16, 64, 64, 64, 64]
    already = NormTest({"largest_batch_size": 64})
    big = Progress(0, 4000, 1000, 0, 500)
    assert already.control(big, Signals()).batch_size == 500


def test_a_gradient_of_zero_calls_for_the_largest_batch_unless_nothing_differs() -> None:
    schedule = NormTest({"largest_batch_size": 64})
    noisy = Signals(gradient_norm=0.0, per_sample_gradient_variance=1.0)
    assert schedule.wanted_batch_size(noisy) == math.inf
    still = Signals(gradient_norm=0.0, per_sample_gradient_variance=0.0)
    assert schedule.wanted_batch_size(still) == 0.0


def test_measures_every_interval_only() -> None:
    schedule = NormTest({"interval": 5})
    measured = [schedule.control(at(step), Signals()).measured_samples for step in range(11)]
    assert measured == [128, 0, 0, 0, 0, 128, 0, 0, 0, 0, 128]


def test_a_short_last_batch_does_not_become_the_size() -> None:
    schedule = NormTest()
    schedule.control(at(0), Signals())
    short = Progress(96, 480, 100, 12, 4)
    assert schedule.control(short, Signals()).batch_size == BATCH


def test_refuses_batch_norm_with_its_reason() -> None:
    info = ModelInfo(pretrained=False, layer_types={"BatchNorm1d": 2}, parameter_shapes={})
    assert "gradient of each sample, which batch norm" in str(NormTest.supports(info))
    plain = ModelInfo(pretrained=False, layer_types={"Linear": 2}, parameter_shapes={})
    assert NormTest.supports(plain) is None

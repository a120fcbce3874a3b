"""Numbers, durations, decisions and configurations in words."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.plugins.search import Evaluate, Measure, Objective, Start, Stop, Thaw, Wait
from autotune.report import words

CONFIGURATION = {
    "architecture": {"width": 32, "block": {"name": "residual", "depth": 2}},
    "optimizer": {"name": "adamw", "learning_rate": 1e-3},
    "nesterov": True,
}


def test_leaves_and_choices():
    assert dict(words.leaves(CONFIGURATION)) == {
        "architecture.width": 32,
        "architecture.block": "residual",
        "architecture.block.depth": 2,
        "optimizer": "adamw",
        "optimizer.learning_rate": 1e-3,
        "nesterov": True,
    }
    assert words.choices(CONFIGURATION) == {
        "architecture.block": "residual",
        "optimizer": "adamw",
    }
    assert words.label(CONFIGURATION) == "adamw"
    assert dict(words.leaves({"name": "top"})) == {"name": "top"}


@pytest.mark.parametrize(
    ("decision", "text"),
    [
        (Start(3, CONFIGURATION, 20, 2), "start trial 3 to epoch 2: adamw"),
        (Start(3, {"width": 3}, 20, 2), "start trial 3 to epoch 2"),
        (Thaw(12, 8), "thaw trial 12 to epoch 8"),
        (Evaluate(1, 5, {"tta": {"name": "tent"}}), "evaluate trial 1 at epoch 5 with tent"),
        (Measure(1, 5, {}), "measure trial 1 at epoch 5"),
        (Stop("the budget is spent"), "stop: the budget is spent"),
        (Wait(), "wait"),
    ],
)
def test_decisions(decision, text):
    assert words.describe(decision) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.123456, "0.1235"),
        (12345, "12,345"),
        (math.nan, "NaN"),
        (-math.inf, "-∞"),
        (True, "yes"),
        (3.0, "3"),
        (1e-9, "1e-09"),
        (1e300, "1e+300"),
    ],
)
def test_numbers(value, text):
    assert words.number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.6, "1 h 00 min"),
        (7260, "2 h 01 min"),
        (None, "–"),
        (math.inf, "–"),
    ],
)
def test_durations(seconds, text):
    assert words.duration(seconds) == text


def test_units_are_said_once():
    latency = Objective("latency_ms", "minimize", "evaluation", unit="ms")
    assert words.title(latency) == "latency [ms]"
    assert words.quantity(1.25, latency) == "1.25 ms"
    assert words.title(Objective("validation_loss", "minimize", "curve")) == "validation loss"


@given(st.lists(st.floats()), st.integers(-2, 40))
def test_sparkline_never_fails_and_keeps_its_width(values, width):
    line = words.sparkline(values, width)
    assert len(line) == max(0, min(width, len(values)))
    assert set(line) <= set(words.BLOCKS + " ")


def test_sparkline_falls_with_its_values():
    assert words.sparkline([7, 6, 5, 4, 3, 2, 1, 0], 8) == words.BLOCKS[::-1]
    assert words.sparkline([1.0, math.nan, 0.0], 3) == "█ ▁"

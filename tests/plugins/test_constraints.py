"""Constraints: what they say, how far metrics are beyond them, and what is not known."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.plugins.constraints import Constraint, feasibility, violation
from autotune.plugins.search import constrained_metrics, known_objectives, misspelt_metric

NUMBER = st.floats(allow_nan=False, allow_infinity=False)


def test_they_are_read_as_written() -> None:
    assert Constraint.parse(" latency_ms<=5e0 ") == Constraint("latency_ms", "<=", 5.0)
    assert str(Constraint.parse("latency_ms<=5e0")) == "latency_ms <= 5"
    exact = Constraint.parse("parameters < 123456789.25")
    assert Constraint.parse(str(exact)) == exact


@pytest.mark.parametrize(
    "text", ["", "latency", "latency = 5", "latency <= fast", "a <= nan", "a < inf"]
)
def test_bad_ones_say_what_was_expected(text: str) -> None:
    with pytest.raises(ValueError, match="latency_ms <= 5"):
        Constraint.parse(text)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (("parameters", "==", 5), "compares by '=='; expected one of <=, >=, <, >"),
        (("parameters", "<=", math.nan), "bounded by nan; expected a finite number"),
        (("parameters", "<=", "5"), "bounded by '5'; expected a finite number"),
        (("", "<=", 5), "expected the name of a metric"),
    ],
)
def test_so_do_those_made_in_python(parts: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Constraint(*parts)


@given(st.sampled_from(["<=", ">=", "<", ">"]), NUMBER, NUMBER)
def test_the_excess_is_above_0_exactly_where_the_limit_is_broken(
    comparison: str, bound: float, value: float
) -> None:
    kept = {"<=": value <= bound, ">=": value >= bound, "<": value < bound, ">": value > bound}
    assert (Constraint("a", comparison, bound).excess(value) <= 0) == kept[comparison]


def test_a_violation_counts_in_shares_of_the_bound() -> None:
    limits = [Constraint.parse("latency_ms <= 5"), Constraint.parse("accuracy >= 0.8")]
    assert violation(limits, {"latency_ms": 6.0, "accuracy": 0.6}) == pytest.approx(0.2 + 0.25)
    assert violation(limits, {"latency_ms": 5.0, "accuracy": 0.8}) == 0.0
    assert violation(limits, {"accuracy": 0.6}) == pytest.approx(0.25)
    assert violation(limits, {}) == 0.0
    assert violation([Constraint.parse("drift <= 0")], {"drift": 2.0}) == 2.0
    assert violation(limits, {"latency_ms": math.inf}) == math.inf


def test_what_was_not_measured_is_neither_kept_nor_broken() -> None:
    limits = [Constraint.parse("latency_ms <= 5"), Constraint.parse("accuracy >= 0.8")]
    assert feasibility(limits, {"latency_ms": 5.0, "accuracy": 0.9}) is True
    assert feasibility(limits, {"latency_ms": 5.1}) is False
    assert feasibility(limits, {"accuracy": 0.9}) is None
    assert feasibility(limits, {"accuracy": 0.9, "latency_ms": math.nan}) is None
    assert feasibility([], {}) is True


def test_a_constrained_metric_has_the_definition_that_is_known_of_it() -> None:
    loss = known_objectives()["validation_loss"]
    texts = ["latency_ms <= 5", "validation_loss <= 1", "validation_accuracy < 1", "mine > 3"]
    latency, accuracy, mine = constrained_metrics((loss,), list(map(Constraint.parse, texts)))
    assert (latency.name, latency.kind, latency.alone) == ("latency_ms", "evaluation", True)
    assert (accuracy.direction, accuracy.kind) == ("minimize", "curve")
    assert (mine.name, mine.direction, mine.kind) == ("mine", "maximize", "curve")
    assert misspelt_metric("latency_m", (loss,)) == "latency_ms"
    assert misspelt_metric("training_loss", (loss,)) is None
    assert misspelt_metric("shifted_los", (loss,)) is None

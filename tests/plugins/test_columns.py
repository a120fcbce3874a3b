"""Columns look like the dictionaries in whose place they stand."""

from __future__ import annotations

import copy
import math
import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from autotune.plugins.columns import Metrics, Seconds

STEPS = st.integers(1, 12)
VALUES = st.floats(allow_nan=False)


@given(st.lists(st.tuples(STEPS, st.dictionaries(st.sampled_from("abc"), VALUES))))
def test_metrics_by_step(puts: list[tuple[int, dict[str, float]]]) -> None:
    metrics, plain = Metrics(), dict[int, dict[str, float]]()
    for step, values in puts:
        metrics.put(step, values)
        plain[step] = values
        assert metrics.last == max(plain)
    assert metrics == plain
    assert list(metrics) == sorted(plain)
    assert all((step in metrics) == (step in plain) for step in range(14))
    assert copy.deepcopy(metrics) == plain
    for name in "abc":
        steps = [step for step in sorted(plain) if name in plain[step]]
        assert metrics.curve(name) == (steps, [plain[step][name] for step in steps])


@given(st.lists(st.tuples(STEPS, st.floats(0, 1e6))))
def test_seconds_by_step(puts: list[tuple[int, float]]) -> None:
    seconds, plain = Seconds(), dict[int, float]()
    for step, value in puts:
        seconds.put(step, value)
        plain[step] = value
    assert seconds == plain
    assert math.isclose(seconds.total, sum(plain.values()), rel_tol=1e-9, abs_tol=1e-6)


def test_not_a_number_is_a_value() -> None:
    metrics = Metrics()
    metrics.put(2, {"a": math.nan})
    metrics.put(1, {"b": 1.0})
    assert list(metrics[2]) == ["a"]
    assert metrics.curve("a")[0] == [2]
    assert metrics.names == {"a", "b"}
    assert metrics.get(3) is None


def test_an_observation_takes_tens_of_bytes() -> None:
    tracemalloc.start()
    metrics, seconds = Metrics(), Seconds()
    before = tracemalloc.get_traced_memory()[0]
    for step in range(10_000):
        metrics.put(step, {"a": step / 3, "b": step / 7, "c": step / 11})
        seconds.put(step, step / 13)
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert taken / 10_000 < 80

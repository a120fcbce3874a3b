"""Pareto mathematics against brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.pareto import (
    hypervolume,
    knee,
    non_dominated,
    normalised,
    oriented,
)

# Few distinct values, so that ties, equal points and touching intervals are common.
VALUE = st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0, -1.0, math.inf, -math.inf, math.nan])
WIDTH = st.sampled_from([0.0, 0.125, 0.25, 1.0, math.inf, math.nan])


@st.composite
def tables(draw):
    objectives = draw(st.integers(1, 4))
    count = draw(st.integers(0, 12))
    row = st.lists(VALUE, min_size=objectives, max_size=objectives)
    values = draw(st.lists(row, min_size=count, max_size=count))
    widths = draw(
        st.lists(
            st.lists(WIDTH, min_size=objectives, max_size=objectives),
            min_size=count,
            max_size=count,
        )
    )
    signs = draw(st.lists(st.sampled_from([1.0, -1.0]), min_size=objectives, max_size=objectives))
    shape = (count, objectives)
    return np.array(values).reshape(shape), np.array(widths).reshape(shape), signs


def dominates(a, b, width_a, width_b, signs):
    """The definition, one pair and one objective at a time."""
    if any(math.isnan(x) for x in (*a, *b)):
        return False
    pairs = [(sign * x, sign * y) for x, y, sign in zip(a, b, signs, strict=True)]
    if any(x > y for x, y in pairs):
        return False
    noise = [
        (0.0 if math.isnan(x) else x, 0.0 if math.isnan(y) else y)
        for x, y in zip(width_a, width_b, strict=True)
    ]
    return any(x + i < y - j for (x, y), (i, j) in zip(pairs, noise, strict=True))


def front_by_pairs(values, widths, signs):
    values, widths = values.tolist(), widths.tolist()
    return [
        not any(math.isnan(x) for x in values[i])
        and not any(
            dominates(values[j], values[i], widths[j], widths[i], signs) for j in range(len(values))
        )
        for i in range(len(values))
    ]


@settings(max_examples=400, deadline=None)
@given(tables())
def test_front_equals_the_definition(table):
    values, widths, signs = table
    assert non_dominated(values, signs, widths).tolist() == front_by_pairs(values, widths, signs)


@settings(max_examples=200, deadline=None)
@given(tables())
def test_noise_only_adds_points_and_the_front_is_never_empty(table):
    values, widths, signs = table
    plain = non_dominated(values, signs)
    noisy = non_dominated(values, signs, widths)
    assert not (plain & ~noisy).any()
    if len(values) and not np.isnan(values).any(axis=1).all():
        assert plain.any()


@settings(max_examples=100, deadline=None)
@given(tables(), st.randoms(use_true_random=False))
def test_the_order_of_points_does_not_matter(table, random):
    values, widths, signs = table
    order = list(range(len(values)))
    random.shuffle(order)
    shuffled = non_dominated(values[order], signs, widths[order])
    assert shuffled.tolist() == non_dominated(values, signs, widths)[order].tolist()


def test_differences_within_the_spread_do_not_dominate():
    values = [[0.9, 5.0], [0.9, 5.2], [0.9, 6.0]]
    spread = [[0.0, 0.15], [0.0, 0.15], [0.0, 0.15]]
    assert non_dominated(values, [-1, 1], spread).tolist() == [True, True, False]
    assert non_dominated(values, [-1, 1], [0.0, 0.15]).tolist() == [True, True, False]
    assert non_dominated(values, [-1, 1]).tolist() == [True, False, False]


def test_blocks_give_the_same_front(monkeypatch):
    generator = np.random.default_rng(0)
    values, widths = generator.normal(size=(300, 3)), generator.uniform(0, 0.3, size=(300, 3))
    whole = non_dominated(values, None, widths)
    monkeypatch.setattr("autotune.pareto._BLOCK", 5_000)
    assert non_dominated(values, None, widths).tolist() == whole.tolist()
    assert 0 < whole.sum() < 300


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 3).flatmap(
        lambda m: st.lists(
            st.lists(st.integers(0, 5), min_size=m, max_size=m), min_size=1, max_size=7
        )
    )
)
def test_hypervolume_counts_cells(points):
    """On an integer grid the volume is the number of unit cells some point covers."""
    objectives = len(points[0])
    cells = sum(
        any(all(x <= c for x, c in zip(point, cell, strict=True)) for point in points)
        for cell in itertools.product(range(5), repeat=objectives)
    )
    reference = [5.0] * objectives
    assert hypervolume(points, reference) == pytest.approx(cells)
    assert hypervolume(
        -np.array(points, dtype=float), [-5.0] * objectives, [-1.0] * objectives
    ) == pytest.approx(cells)


def test_hypervolume_ignores_what_is_outside_or_missing():
    assert hypervolume([[2.0, 0.0], [math.nan, 0.0], [0.5, 0.5]], [1.0, 1.0]) == 0.25
    assert hypervolume(np.empty((0, 2)), [1.0, 1.0]) == 0.0
    with pytest.raises(ValueError, match="finite"):
        hypervolume([[0.0, 0.0]], [1.0, math.inf])


def test_knee_is_the_corner_of_the_front():
    values = [[0.0, 1.0], [0.1, 0.1], [1.0, 0.0], [0.9, 0.9]]
    assert knee(values) == 1
    assert knee([[v[0], -v[1]] for v in values], [1, -1]) == 1
    assert knee([[math.nan, 1.0]]) is None
    assert knee([[3.0, 4.0]]) == 0


@settings(max_examples=200, deadline=None)
@given(tables())
def test_knee_is_on_the_front(table):
    values, _, signs = table
    index = knee(values, signs)
    if index is None:
        front = values[non_dominated(values, signs)]
        assert not np.isfinite(front).all(axis=1).any()
    else:
        assert non_dominated(values, signs)[index]


def test_normalised_survives_the_widest_range():
    column = normalised(np.array([[-1.7e308], [1.7e308], [0.0]]))[:, 0]
    assert column == pytest.approx([0.0, 1.0, 0.5])


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="points, objectives"):
        oriented([1.0, 2.0])
    with pytest.raises(ValueError, match="signs"):
        oriented([[1.0, 2.0]], [1.0])

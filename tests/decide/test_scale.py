from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.decide.scale import fitted, ideal
from autotune.plugins.search import Objective

LOSS = Objective("loss", "minimize", "curve")
ACCURACY = Objective("accuracy", "maximize", "curve", bounds=(0.0, 1.0))
# To nine decimals: differences of 1e-300 are no metric's.
FLOATS = st.floats(-1e6, 1e6, allow_nan=False).map(lambda value: round(value, 9))
VALUES = st.lists(FLOATS, min_size=1, max_size=20)


def test_ideal() -> None:
    assert ideal(ACCURACY, -0.9) == -1.0
    assert ideal(LOSS, 0.1) == 0.0
    assert ideal(LOSS, -0.1) is None
    assert ideal(Objective("return", "maximize", "curve"), 5.0) is None


@pytest.mark.parametrize("objective", [LOSS, ACCURACY])
@given(firsts=VALUES, bests=VALUES)
@settings(max_examples=100, deadline=None)
def test_scales_rise_strictly_and_can_be_inverted(
    objective: Objective, firsts: list[float], bests: list[float]
) -> None:
    if objective.bounds:
        firsts, bests = ([-abs(v) / 1e6 for v in values] for values in (firsts, bests))
    bests = [min(value, *firsts) for value in bests]
    scale = fitted(objective, firsts, bests)
    values = np.unique([*firsts, *bests])
    z = scale.normalise(values)
    assert np.isfinite(z).all()
    assert (np.diff(z) >= 0).all()
    assert z[np.searchsorted(values, min(bests))] == pytest.approx(0.0, abs=1e-6)
    back = scale.restore(z)
    assert back == pytest.approx(values, rel=1e-6, abs=1e-6 * max(1, np.ptp(values)))


def test_the_best_is_0_and_starts_are_about_1() -> None:
    scale = fitted(LOSS, [2.3] * 10, list(np.linspace(1.9, 2.2, 10)))
    assert scale.normalise(np.array(1.9)) == pytest.approx(0.0)
    assert 0.9 < scale.normalise(np.array(2.3)) < 1.5
    assert scale.origin is None


def test_losses_over_decades_are_taken_logarithmically() -> None:
    scale = fitted(LOSS, [2.3] * 10, list(np.geomspace(1e-4, 1.0, 10)))
    assert scale.origin == 0.0
    z = scale.normalise(np.array([1e-4, 1e-3, 1e-2, 1e-1]))
    assert np.diff(z).min() > 0.4 * np.diff(z).max()


def test_what_is_far_worse_is_squeezed() -> None:
    scale = fitted(LOSS, [2.3] * 10, [1.0] * 9 + [1e30])
    assert scale.normalise(np.array(1e30)) < 20


def test_slope_is_the_derivative() -> None:
    for firsts, bests in (([2.3, 2.2], [1.0, 1.9]), ([2.0, 3.0], [1e-3, 0.5])):
        scale = fitted(LOSS, firsts, bests)
        values = np.array([0.05, 0.7, 1.5, 4.0, 90.0])
        step = 1e-6 * values
        slope = (scale.normalise(values + step) - scale.normalise(values - step)) / (2 * step)
        assert scale.log_slope(values) == pytest.approx(np.log(slope), rel=1e-4, abs=1e-4)

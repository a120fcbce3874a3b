from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import optimize
from spaces import TRAINING

from autotune.decide.forecasters import surface
from autotune.decide.forecasters.surface import Embedding, Ends, given, initial, learned

GENERATOR = np.random.default_rng(0)
POINTS = GENERATOR.random((60, 3))
VALUES = np.sin(4 * POINTS[:, 0]) / 2 + POINTS[:, 1] ** 2 / 2
VARIANCES = np.full(60, 0.001)
NOWHERE = np.zeros(60)
ENDS = Ends(POINTS, VALUES, VARIANCES, NOWHERE)
DIMENSION = [0, 1, 2]


def test_lengths_are_learned() -> None:
    kernel = learned(initial(3), DIMENSION, ENDS)
    assert kernel.lengths[0] < kernel.lengths[1] < kernel.lengths[2]
    found = given(kernel, DIMENSION, ENDS)
    fresh = np.random.default_rng(1).random((50, 3))
    mean, variance = found.elsewhere(fresh)
    truth = np.sin(4 * fresh[:, 0]) / 2 + fresh[:, 1] ** 2 / 2
    assert np.abs(mean - truth).mean() < 0.03
    assert (np.abs(mean - truth) < 3 * np.sqrt(variance)).mean() > 0.95


def test_the_gradient_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    caught: dict[str, Any] = {}

    def keep(function: Any, start: Any, **options: Any) -> Any:
        caught.update(function=function, start=start)
        return optimize.OptimizeResult(x=start)

    monkeypatch.setattr(surface, "minimize", keep)
    # Two features of one slot, as a category has.
    learned(initial(2), [0, 1, 1], Ends(POINTS, VALUES, VARIANCES, POINTS[:, 0]))
    function, start = caught["function"], caught["start"] + 0.1
    gradient = function(start)[1]
    steps = 1e-5 * np.eye(len(start))
    numeric = [(function(start + s)[0] - function(start - s)[0]) / 2e-5 for s in steps]
    assert gradient == pytest.approx(numeric, rel=1e-4, abs=1e-5)


def test_without_each_is_what_the_others_tell() -> None:
    distances = np.random.default_rng(2).random(60)
    ends = Ends(POINTS, VALUES + 0.3 * distances, VARIANCES, distances)
    kernel = learned(initial(3), DIMENSION, ends)
    means, variances = given(kernel, DIMENSION, ends).without_each()
    for row in (0, 17, 59):
        rest = np.arange(60) != row
        others = Ends(POINTS[rest], ends.values[rest], VARIANCES[rest], distances[rest])
        mean, variance = given(kernel, DIMENSION, others).elsewhere(POINTS[row : row + 1])
        assert means[row] == pytest.approx(mean[0], abs=1e-6)
        assert variances[row] == pytest.approx(variance[0], rel=1e-3)


def test_short_curves_rank_and_long_ones_say_where_the_level_is() -> None:
    """Fifty extrapolated ends that are all too high by 0.5, and four that were observed."""
    distances = np.ones(60)
    distances[:4] = 0.0
    ends = Ends(POINTS, VALUES + 0.5 * distances, np.full(60, 0.01), distances)
    found = given(learned(initial(3), DIMENSION, ends), DIMENSION, ends)
    fresh = np.random.default_rng(1).random((50, 3))
    truth = np.sin(4 * fresh[:, 0]) / 2 + fresh[:, 1] ** 2 / 2
    mean, _ = found.elsewhere(fresh)
    assert np.abs((mean - truth).mean()) < 0.1
    assert np.corrcoef(mean, truth)[0, 1] > 0.95


def test_embedding_keeps_categories_apart_and_inactive_parameters_out() -> None:
    embedding = Embedding(TRAINING)

    def point(**changes: Any) -> np.ndarray:
        encoded, mask = TRAINING.encode(TRAINING.complete(changes))
        return embedding(encoded[None], mask[None])[0]

    def distance(a: np.ndarray, b: np.ndarray) -> float:
        return float(((a - b) ** 2).sum())

    base = point(activation="relu")
    assert len(base) == len(embedding.dimension)
    one, two = point(activation="gelu"), point(activation="tanh")
    assert distance(base, one) == distance(base, two) == pytest.approx(1.0)
    assert distance(base, point()) == 0.0
    assert distance(base, point(optimizer={"name": "one", "learning_rate": 0.5})) > 0

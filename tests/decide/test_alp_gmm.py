"""ALP-GMM on the paper's kind of toy: cells that can be learned only next to learned ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from autotune.decide.proposers.alp_gmm import ALPGMM, _fitted
from autotune.decide.proposers.random import Random
from autotune.plugins.search import (
    Budget,
    Decided,
    Frozen,
    Key,
    Objective,
    Observed,
    SearchContext,
    Start,
)
from autotune.plugins.trials import Trials
from autotune.space import Float, Space

SPACE = Space({"x": Float(0.0, 1.0), "y": Float(0.0, 1.0)})
CONTEXT = SearchContext(
    SPACE, Space({}), (Objective("loss", "minimize", "curve"),), 1, Budget(trials=10_000), seed=0
)
CELLS = 6


class Study:
    """Feeds a proposer with one-unit trials."""

    def __init__(self, proposer: Any) -> None:
        self.proposer, self.trials = proposer, Trials(SPACE, CONTEXT.objectives)
        self.state = proposer.initial(CONTEXT)

    def tell(self, event: Any) -> None:
        self.trials.observe(event)
        self.state = self.proposer.observe(self.state, event, self.trials)

    def propose(self, count: int = 1) -> list[Any]:
        key = Key(0, self.trials.decisions)
        return self.proposer.propose(CONTEXT, self.state, self.trials, key, count)

    def evaluate(self, configuration: Any, reward: float) -> None:
        number = len(self.trials)
        self.tell(Decided(number, Start(number, configuration, 1, 1)))
        self.tell(Observed(number, 1, {"loss": -reward}, 1.0))
        self.tell(Frozen(number, 1, "checkpoint"))


def learned(proposer: Any, episodes: int) -> int:
    """Cells mastered. A cell is open if a neighbour is three quarters learned (the first always
    is), and every visit to an open cell teaches a little."""
    study, skill = Study(proposer), np.zeros((CELLS, CELLS))
    for _ in range(episodes):
        configuration = study.propose()[0]
        x, y = (min(int(configuration[name] * CELLS), CELLS - 1) for name in "xy")
        around = skill[max(x - 1, 0) : x + 2, max(y - 1, 0) : y + 2]
        if (x, y) == (0, 0) or around.max() >= 0.75:
            skill[x, y] = min(1.0, skill[x, y] + 0.1)
            study.evaluate(configuration, float(skill[x, y]))
        else:
            study.evaluate(configuration, 0.0)
    return int((skill >= 0.75).sum())


def test_it_masters_more_cells_than_random_draws() -> None:
    assert learned(ALPGMM(), 350) > 1.3 * learned(Random(), 350)


def test_progress_is_the_difference_from_the_nearest_earlier_reward() -> None:
    study = Study(ALPGMM())
    seen: list[tuple[np.ndarray, float]] = []
    expected = []
    generator = np.random.default_rng(3)
    for _ in range(24):
        configuration, reward = SPACE.sample(generator), float(generator.random())
        point = np.array([configuration["x"], configuration["y"]])
        if seen:
            distances = [float(np.linalg.norm(point - other)) for other, _ in seen]
            expected.append(abs(reward - seen[int(np.argmin(distances))][1]))
        seen.append((point, reward))
        study.evaluate(configuration, reward)
    assert [row[-1] for row in study.state.window] == pytest.approx(expected)
    assert study.state.mixture is None, "the first fit is after 25"
    study.evaluate(SPACE.default(), 0.5)
    assert study.state.mixture is not None


def test_a_mixture_is_drawn_from_in_proportion_to_progress() -> None:
    generator = np.random.default_rng(0)
    quiet = np.column_stack([generator.normal(0.2, 0.03, (60, 2)), np.full(60, 0.01)])
    lively = np.column_stack([generator.normal(0.8, 0.03, (60, 2)), np.full(60, 0.09)])
    quiet[:, 2] += generator.normal(0, 1e-3, 60)
    lively[:, 2] += generator.normal(0, 1e-3, 60)
    mixture = _fitted(np.vstack([quiet, lively]), 10, "bic")
    assert mixture is not None
    near = mixture.means[:, 0] > 0.5
    assert mixture.shares[near].sum() == pytest.approx(0.9, abs=0.02)


def test_rows_that_are_all_alike_leave_it_uniform() -> None:
    assert _fitted(np.zeros((30, 3)), 10, "aic") is None
    study = Study(ALPGMM({"random_ratio": 0.05}))
    for _ in range(30):
        study.evaluate(SPACE.default(), 1.0)
    assert len(study.propose(5)) == 5

"""What a replayed search pays, and what it is said to have found."""

from __future__ import annotations

import math

import numpy as np
import pytest
from common.tables import Table
from replayed.ledger import (
    Ledger,
    Limit,
    Scale,
    Spent,
    epoch_seconds,
    generator_seed,
    incumbents,
    regrets,
)
from replayed.ledger import test_regrets as regrets_on_test

from autotune.plugins.search import Objective

LOSSES = np.array(
    [
        [1.0, 0.8, 0.6, 0.5],
        [0.9, 0.7, math.nan, math.nan],
        [2.0, 0.9, 0.4, 0.1],
        [3.0, 3.0, 3.0, 3.0],
    ]
)
POINTS = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])


def table(minimise: bool = True, timed: bool = False, test: np.ndarray | None = None) -> Table:
    raw = LOSSES if minimise else -LOSSES
    return Table(
        "taskset_made_up",
        "taskset",
        Objective("value", "minimize" if minimise else "maximize", "curve"),
        POINTS,
        np.ones_like(POINTS, dtype=bool),
        np.nan_to_num(1 - LOSSES / 3),
        raw,
        seconds=np.cumsum(np.array([[1.0], [2.0], [4.0], [1.0]]) * np.ones(4), axis=1)
        if timed
        else None,
        test=test,
    )


def trained(ledger: Ledger, *rows: tuple[int, int]) -> None:
    for row, epochs in rows:
        training = ledger.begin(row)
        for _ in range(epochs):
            training.epoch()


@pytest.mark.parametrize("minimise", [True, False])
def test_less_is_better_whatever_the_direction(minimise: bool) -> None:
    ledger = Ledger(table(minimise), Limit(10))
    training = ledger.begin(0)
    assert [training.epoch() for _ in range(4)] == [1.0, 0.8, 0.6, 0.5]
    assert training.finished
    with pytest.raises(ValueError, match="finished at epoch 4"):
        training.epoch()


def test_a_rest_costs_nothing_and_a_new_beginning_costs_again() -> None:
    ledger = Ledger(table(), Limit(10))
    rested = ledger.begin(0)
    rested.epoch()
    trained(ledger, (2, 2))
    assert rested.epoch() == 0.8
    assert ledger.spent[-1] == 4
    trained(ledger, (0, 1))
    assert ledger.spent[-1] == 5
    assert ledger.steps == [1, 1, 2, 2, 1]


def test_a_diverged_run_costs_what_it_trained_and_finds_nothing() -> None:
    ledger = Ledger(table(), Limit(10))
    training = ledger.begin(1)
    values = [training.epoch() for _ in range(3)]
    assert values == [0.9, 0.7, math.inf]
    assert training.finished
    assert ledger.spent[-1] == 3
    assert incumbents(ledger, (1, 2, 3)) == {1: 0, 2: 1, 3: 1}


def test_the_budget_is_never_passed_in_epochs() -> None:
    ledger = Ledger(table(), Limit(3))
    with pytest.raises(Spent):
        trained(ledger, (0, 4))
    assert ledger.spent == [1, 2, 3]


def test_seconds_are_the_recorded_ones_and_a_late_epoch_does_not_count() -> None:
    timed = table(timed=True)
    assert [epoch_seconds(timed, 2, step) for step in (1, 2)] == [4.0, 4.0]
    ledger = Ledger(timed, Limit(4, "seconds"))  # the mean epoch takes 2 s: 8 s
    trained(ledger, (2, 1), (0, 3))
    assert ledger.spent == [4, 5, 6, 7]
    with pytest.raises(Spent):
        trained(ledger, (1, 1))
    assert regrets(ledger, (1, 4))[1] == 1.0, "2 s pay for nothing that was trained"
    assert regrets(ledger, (1, 4))[4] == pytest.approx((0.6 - 0.1) / (1.5 - 0.1))


def test_regret_runs_from_the_best_of_the_table_to_the_median_first_epoch() -> None:
    scale = Scale.of(LOSSES)
    assert (scale.best, scale.start) == (0.1, 1.5)
    assert scale.regret(0.1) == 0
    assert scale.regret(1.5) == scale.regret(40.0) == scale.regret(math.inf) == 1
    assert scale.regret(0.8) == pytest.approx(0.5)


def test_where_most_are_perfect_at_once_only_perfection_has_no_regret() -> None:
    scale = Scale.of(np.array([[0.0, 0.0], [0.0, 0.0], [1.0, 0.5]]))
    assert [scale.regret(value) for value in (0.0, 0.5)] == [0, 1]


def test_regret_is_of_the_best_seen_so_far() -> None:
    ledger = Ledger(table(), Limit(8))
    trained(ledger, (0, 4), (2, 2))
    found = regrets(ledger, (1, 4, 6, 8))
    assert found[1] == pytest.approx(0.9 / 1.4)
    assert found[4] == found[6] == found[8] == pytest.approx(0.4 / 1.4)


def test_test_regret_is_of_the_epoch_that_validation_chose() -> None:
    test = LOSSES + 1.0
    test[0, 3] = 1.25
    ledger = Ledger(table(test=test), Limit(8))
    trained(ledger, (0, 4))
    best, start = 1.1, 2.5
    assert regrets_on_test(ledger, (4,))[4] == pytest.approx((1.25 - best) / (start - best))
    assert regrets_on_test(Ledger(table(), Limit(8)), (4,)) == {}


def test_a_proposal_becomes_the_nearest_row_that_was_not_begun() -> None:
    ledger = Ledger(table(), Limit(8))
    found = []
    for _ in range(4):
        found.append(ledger.nearest_unused(np.array([0.1, 0.3])))
        ledger.begin(found[-1])
    assert found == [0, 1, 2, 3]
    with pytest.raises(Spent):
        ledger.nearest_unused(np.zeros(2))


def test_a_seed_draws_differently_on_every_table_and_equally_for_all_methods() -> None:
    assert generator_seed("a", 0) == generator_seed("a", 0)
    assert len({generator_seed(file, seed) for file in "abc" for seed in range(3)}) == 9

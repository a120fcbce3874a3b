"""The comparison of searches over several objectives: what is counted, and how it is driven."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import hypervolume
import numpy as np
import pytest
from common.tables import RowSpace, Table
from peers import front_methods
from replayed.cells import Task, searched
from replayed.front import missing, scaled
from replayed.ledger import Ledger, Limit

from autotune.plugins.search import Objective

TIME = Objective("time", "minimize", "static")


def made_up(rows: int = 30, units: int = 6) -> Table:
    """Curves that fall faster in rows that cost more; the first coordinate is a category."""
    generator = np.random.default_rng(0)
    points = np.column_stack([(generator.integers(0, 3, rows) + 0.5) / 3, generator.random(rows)])
    raw = 1.0 - points[:, 1:] * (1 - np.exp(-np.arange(1, units + 1) / 2))
    return Table(
        "lcbench_surrogate_made_up",
        "lcbench_surrogate",
        Objective("value", "minimize", "curve"),
        points,
        np.ones_like(points, dtype=bool),
        1 - raw,
        raw,
        options=(3, 0),
        static=((TIME, np.exp(points[:, 1] + generator.random(rows))),),
    )


def test_a_trial_counts_as_it_stands_at_its_last_epoch() -> None:
    table = made_up()
    ledger = Ledger(table, Limit(500))
    assert missing(ledger, (25,)) == {25: 1.0}, "nothing was trained"
    curves, static = scaled(table)
    row = int(np.maximum(curves[:, -1], static[:, 0]).argmin())
    training = ledger.begin(row)
    while not training.finished:
        training.epoch()
    once = missing(ledger, (25,))[25]
    assert 0.0 < once < 1.0
    worse = replace(table, raw=np.where(np.arange(table.units) == table.units - 1, 0.99, table.raw))
    again = Ledger(worse, Limit(500))
    training = again.begin(row)
    while not training.finished:
        training.epoch()
    assert missing(again, (25,))[25] > once, "the value before the last epoch does not count"


def test_nothing_is_missing_when_every_row_is_trained_to_its_best_epoch() -> None:
    table = made_up()
    ledger = Ledger(table, Limit(1000))
    for row in range(len(table)):
        training = ledger.begin(row)
        while not training.finished:
            training.epoch()
    assert missing(ledger, (25, 1000))[1000] == pytest.approx(0.0)
    assert missing(ledger, (25, 1000))[25] > 0.0


def test_another_category_is_far_whatever_its_number() -> None:
    table = made_up()
    point = np.array([0.5 / 3, 0.5])
    squared = table.distances(point)
    same = np.isclose(table.points[:, 0], point[0])
    assert squared[same] == pytest.approx((table.points[same, 1] - 0.5) ** 2)
    assert (squared[~same] >= 1.0).all()
    space = table.space()
    assert isinstance(space, RowSpace)
    for row in range(len(table)):
        encoded, mask = space.encode(space.configuration(row))
        assert mask.all()
        assert space.decode(encoded) == space.configuration(row)


@pytest.mark.parametrize("name", sorted(front_methods()))
def test_every_method_spends_its_budget_and_comes_out_the_same_again(name: str) -> None:
    task = Task("lcbench_surrogate_made_up", name, 3, Limit(50))
    method = front_methods()[name]
    cells = [
        searched(task, made_up(), method, missing, hypervolume._nothing).regret for _ in range(2)
    ]
    assert cells[0] == cells[1]
    assert 0.0 <= cells[0][50] <= cells[0][25] <= 1.0


def test_the_tables_that_the_method_was_chosen_on_are_reported_apart() -> None:
    files = ["peft_metamathqa", "lcbench_surrogate_1", hypervolume.TUNED_ON[0]]
    methods = list(front_methods().values())
    four, two, chosen = hypervolume.grids(files, methods, 2, False, False)
    assert (four.files, two.files) == (("peft_metamathqa",), ("lcbench_surrogate_1",))
    assert chosen.files == hypervolume.TUNED_ON[:1]


def test_without_tables_a_smoke_run_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["hypervolume.py", "--smoke", "--curves", str(tmp_path)]
    monkeypatch.setattr("sys.argv", arguments)
    hypervolume.main()
    assert "nothing to measure" in capsys.readouterr().out

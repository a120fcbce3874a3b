"""The comparison of searches: its statistics, its files, and autotune's own driver."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import search
from common.tables import Table
from peers import methods, optuna_study, own
from replayed.cells import Cell, Store, Task, searched
from replayed.ledger import Ledger, Limit
from replayed.summary import compared, text, weighted

import autotune
from autotune.decide import build_search
from autotune.execute.recorded_table import RecordedTable
from autotune.header import SEARCH_DEFAULTS
from autotune.plugins.discovery import Catalogue
from autotune.plugins.search import Event, Failed, Frozen, Objective

FILES = ("taskset_a", "taskset_b", "taskset_c", "deepobs_a")


def cell(method: str, file: str, seed: int, regret: float, version: str = "1") -> Cell:
    regrets = {25: regret, 50: regret / 2}
    return Cell(file, method, seed, "epochs", 50, version, regrets, {}, 50, 10, 0.1)


def cells(method: str, offset: float) -> list[Cell]:
    return [
        cell(method, file, seed, 0.1 * place + 0.01 * seed + offset)
        for place, file in enumerate(FILES)
        for seed in range(3)
    ]


def made_up(rows: int = 40, units: int = 9, diverged: slice = slice(-1, None)) -> Table:
    """Curves that fall towards the first coordinate; of some only the start is finite."""
    points = np.random.default_rng(0).random((rows, 2))
    raw = points[:, :1] + np.exp(-np.arange(1, units + 1) / 3)
    raw[diverged, 1:] = np.inf
    return Table(
        "taskset_made_up",
        "taskset",
        Objective("value", "minimize", "curve"),
        points,
        np.ones_like(points, dtype=bool),
        np.clip(1 - raw / 2, 0, 1),
        raw,
    )


def test_suites_count_alike_however_many_tables_they_have() -> None:
    values = np.array([[1.0], [2.0], [3.0], [10.0]])
    assert weighted(values, ["taskset"] * 3 + ["deepobs"]) == pytest.approx([6.0])


def test_means_ranks_and_paired_intervals() -> None:
    everything = [*cells("autotune", 0.0), *cells("one", 0.2), *cells("two", 0.2)]
    result = compared(everything, ["autotune", "one", "two"], FILES, range(3), (25, 50))
    expected = ((0.0 + 0.1 + 0.2) / 3 + 0.3) / 2 + 0.01
    assert result.means()["autotune"] == pytest.approx([expected, expected / 2])
    assert result.ranks()["autotune"] == pytest.approx([1, 1])
    assert result.ranks()["one"] == pytest.approx([2.5, 2.5]), "equals share their ranks"
    mean, low, high = result.against("autotune", "one")
    assert mean == pytest.approx([-0.2, -0.1])
    assert low == pytest.approx(mean), "a difference that is always the same has no spread"
    assert high == pytest.approx(mean)
    shares = next(line for line in text(result, "some").splitlines() if "best peer" in line)
    expected = result.means()["autotune"] / result.means()["one"]
    assert shares.split()[-2:] == [f"{value:.2f}" for value in expected]


def test_an_interval_holds_no_difference_where_there_is_none() -> None:
    rng = np.random.default_rng(0)
    noisy = [
        cell(method, file, seed, float(rng.random()))
        for method in ("autotune", "other")
        for file in FILES
        for seed in range(3)
    ]
    _, low, high = compared(noisy, ["autotune", "other"], FILES, range(3), (25,)).against(
        "autotune", "other"
    )
    assert low[0] < 0 < high[0]


def test_a_method_without_all_its_cells_is_named_and_not_compared() -> None:
    result = compared(
        [*cells("autotune", 0.0), *cells("one", 0.2)[:-1]],
        ["autotune", "one"],
        FILES,
        range(3),
        (25, 50),
    )
    assert list(result.values) == ["autotune"]
    assert "not compared: one has 11 of 12 searches" in text(result, "some")


def test_results_are_kept_resumed_and_replaced_by_those_of_a_newer_version(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    task = Task(FILES[0], "one", 0, Limit(50))
    store = Store(path)
    assert store.find(task, "1") is None
    store.add(cell("one", FILES[0], 0, 0.5))
    again = Store(path)
    assert again.find(task, "1") == cell("one", FILES[0], 0, 0.5)
    assert again.find(Task(FILES[0], "one", 0, Limit(25)), "1") is not None, "a longer one will do"
    assert again.find(Task(FILES[0], "one", 0, Limit(100)), "1") is None
    assert again.find(task, "2") is None
    again.add(cell("one", FILES[0], 0, 0.25, version="2"))
    again.tidy({"one": "2"})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [set(line) for line in lines] == [{"file", "method", "seed", "budget", "regret"}] * 2
    assert {line["budget"]: line["regret"] for line in lines} == {25: 0.25, 50: 0.125}


def test_a_torn_last_line_costs_one_search_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "results.jsonl"
    store = Store(path)
    store.add(cell("one", FILES[0], 0, 0.5))
    store.add(cell("one", FILES[1], 0, 0.5))
    beside = tmp_path / "results.cells.jsonl"
    beside.write_bytes(beside.read_bytes()[:-20])
    again = Store(path)
    assert "line 2: torn" in capsys.readouterr().err
    again.add(cell("one", FILES[2], 0, 0.5))
    found = [Store(path).find(Task(file, "one", 0, Limit(50)), "1") for file in FILES[:3]]
    assert [kept is not None for kept in found] == [True, False, True]


def test_slow_methods_are_searched_on_the_named_tables_only() -> None:
    every = methods().values()
    named, full, timed = search.grids(sorted(search.NAMED), list(every), 5, False, False)
    assert {m.name for m in named.methods if m.slow} >= {"neps_ifbo", "ray_tune_bohb"}
    assert not any(method.slow for method in full.methods)
    assert (named.epochs, full.epochs, len(named.seeds), len(full.seeds)) == (300, 1000, 3, 5)
    assert full.budgets == (25, 50, 100, 200, 300, 500, 1000)
    assert {search.suite_of(file) for file in timed.files} == {"lcbench_surrogate"}
    short = search.unknown_tasks([named, full], Store(None), {m.name: "1" for m in every})
    keys = [(task.file, task.method, task.seed) for task in short]
    assert len(keys) == len(set(keys)), "the longer search answers for the shorter one"


def test_a_folder_without_the_named_tables_has_two_of_each_suite_all_the_same() -> None:
    files = ["deepobs_a", "taskset_a", "taskset_b", "taskset_c", search.NAMED[0]]
    assert search.few_of(files) == ("deepobs_a", search.NAMED[0], "taskset_a")


@pytest.mark.parametrize("policy", [None, "random_search", "asha"])
def test_autotune_trains_rows_of_the_table_and_spends_all(policy: str | None) -> None:
    table, limit = made_up(), Limit(60)
    ledger, again = Ledger(table, limit), Ledger(table, limit)
    own.run(table, ledger, 3, policy)
    own.run(table, again, 3, policy)
    assert len(ledger.values) == 60
    assert (ledger.rows, ledger.values) == (again.rows, again.values)
    middle = np.full(table.points.shape[1], 0.5)
    assert ledger.rows[0] == table.distances(middle).argmin(), "the default comes first"
    if policy == "random_search":
        assert ledger.steps[:9] == list(range(1, 10))
    else:
        assert len(set(ledger.rows)) > 60 / 9, "some are left before their end"


@pytest.mark.parametrize("policy", ["freeze_thaw", "asha"])
def test_the_decisions_are_those_of_a_real_study(tmp_path: Path, policy: str) -> None:
    table = made_up(diverged=slice(None, None, 3))
    task = RecordedTable(table.points, ("x0", "x1"), (False, False), table.raw, metric="value")
    objective = Objective("value", "minimize", "curve")
    plan = {"policy": policy, "proposer": "random"}
    result = autotune.tune(
        task,
        task.space,
        [objective],
        {"epochs": 60},
        horizon=table.units,
        folder=tmp_path,
        executor="replay",
        workers=1,
        search=plan,
        seed=5,
        final=False,
        progress=False,
    )
    studied = result.view.events
    names = {part: {"name": name} for part, name in {**SEARCH_DEFAULTS, **plan}.items()}
    search = build_search(result.view.header.context(), names, Catalogue().get)
    ledger = Ledger(table, Limit(1000))
    driven = own.drive(search, table, ledger, 5, task.nearest)

    def comparable(events: list[Event]) -> list[Event]:
        plain = [replace(event, at=0.0) for event in events]
        return [
            replace(event, checkpoint="", seconds=0.0)
            if isinstance(event, Frozen)
            else replace(event, message="")
            if isinstance(event, Failed)
            else event
            for event in plain
        ]

    assert comparable(driven) == comparable(studied)
    assert any(isinstance(event, Failed) for event in driven)
    assert len(driven) > 100


def test_a_search_that_has_trained_everything_ends() -> None:
    table = made_up(rows=3, units=4)
    ledger = Ledger(table, Limit(1000))
    own.run(table, ledger, 0, "random_search")
    assert len(ledger.values) == 4 + 4 + 2, "the diverged run costs two epochs"


def test_optuna_learns_the_rows_it_was_given() -> None:
    table = made_up()
    study = optuna_study.optuna.create_study()
    ledger = Ledger(table, Limit(100))
    for _ in range(6):
        optuna_study.train(study, table, ledger)
    first = dict.fromkeys(ledger.rows)
    for trial, row in zip(study.trials, first, strict=True):
        assert list(trial.params.values()) == table.points[row].tolist()
        assert trial.state.is_finished()


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
@pytest.mark.parametrize("pruner", ["hyperband", "median"])
def test_optuna_searches_the_same_again(sampler: str, pruner: str) -> None:
    table = made_up()
    first, again, other = (Ledger(table, Limit(150)) for _ in range(3))
    optuna_study.run(table, first, 7, sampler, pruner)
    optuna_study.run(table, again, 7, sampler, pruner)
    optuna_study.run(table, other, 8, sampler, pruner)
    assert first.rows == again.rows != other.rows


def test_a_method_is_searched_into_a_cell() -> None:
    table = made_up()
    method = methods()["optuna_tpe_median"]
    found = searched(Task(table.name, method.name, 0, Limit(50)), table, method)
    assert found.trained == 50
    assert list(found.regret) == [25, 50]
    assert found.regret[25] >= found.regret[50] >= 0
    assert found.version == method.version()


def test_smoke_says_so_where_there_are_no_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["search.py", "--smoke", "--curves", str(tmp_path)])
    search.main()
    assert "nothing to measure" in capsys.readouterr().out


def test_a_report_searches_nothing_and_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Methods that are not installed stand there as they were last recorded; results of autotune
    as it was before do not."""
    json_file, folder = tmp_path / "search.jsonl", tmp_path / "curves"
    folder.mkdir()
    points = np.random.default_rng(0).random((4, 2))
    plain = {"X": points, "log": np.array([False, False]), "Y": np.ones((4, 9)), "metric": "loss"}
    for file in FILES:
        np.savez(folder / f"{file}.npz", **plain, fidelity=np.arange(1, 10), minimise=True)
    store = Store(json_file)
    for name in ("autotune", "syne_tune_cqr"):
        for known in cells(name, 0.0):
            store.add(replace(known, epochs=1000, regret=dict.fromkeys(search.BUDGETS, 0.125)))
    lines = json_file.read_bytes()
    lacking = lambda method: "peers" if "syne" in method.name else None  # noqa: E731
    monkeypatch.setattr("peers.Method.missing", lacking)
    arguments = ["--json", str(json_file), "--curves", str(folder), "--report", "--seeds", "3"]
    chosen = ["--methods", "autotune", "syne_tune_cqr"]
    monkeypatch.setattr("sys.argv", ["search.py", *arguments, *chosen])
    search.main()
    said = capsys.readouterr().out
    assert "syne_tune_cqr                     0.125" in said
    assert "not compared: autotune has 0 of 12 searches" in said
    assert json_file.read_bytes() == lines


def test_what_is_said_about_code_does_not_make_a_search_stale(tmp_path: Path) -> None:
    def digest(code: str) -> bytes:
        path = tmp_path / "module.py"
        path.write_text(code)
        return own.said(path)

    plain = digest("def f(x):\n    return x + 1\n")
    assert digest('"""Why."""\ndef f(x):\n    """One more."""\n    return x + 1  # so\n') == plain
    assert digest("def f(x):\n    return x + 2\n") != plain

"""Constraints in studies that run: who wins, what is told, and that all of it is in the record."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from studies import HERE, check_replay, space, tune
from torch import nn
from torch.nn import functional

import autotune
from autotune.cli import main
from autotune.header import StudyError
from autotune.keeping import Keeper
from autotune.plugins.constraints import Constraint
from autotune.plugins.search import (
    Decided,
    Event,
    Evicted,
    Finalists,
    Frozen,
    Measure,
    Observed,
    Start,
    known_objectives,
)
from autotune.plugins.trials import Trials
from autotune.report import print_summary
from autotune.space import Plugins, Space
from autotune.study_file import load
from autotune.train import Data, TorchTask

FAST = {"objectives": ["validation_loss"], "budget": {"epochs": 40}, "final": False}


@pytest.fixture(scope="module")
def free(tmp_path_factory: pytest.TempPathFactory) -> autotune.Result:
    """Without constraints; its winner's size is what others are not allowed."""
    return tune(tmp_path_factory.mktemp("free"), **FAST)


@pytest.fixture(scope="module")
def limited(free: autotune.Result, tmp_path_factory: pytest.TempPathFactory) -> autotune.Result:
    """Smaller and quicker than that winner; one limit is measured at the start, one at the end."""
    assert free.best is not None
    wide = free.best.metrics["parameters"]
    return tune(
        tmp_path_factory.mktemp("limited"),
        constraints=[f"parameters < {wide:g}", "latency_ms <= 1.3"],
        **{**FAST, "final": {"candidates": 2, "seeds": 1, "share": 0.6, "cooldown": 0}},
    )


def test_another_wins_where_the_winner_is_too_large(
    free: autotune.Result, limited: autotune.Result
) -> None:
    assert free.best is not None
    assert limited.best is not None
    wide = free.best.metrics["parameters"]
    assert limited.best.metrics["parameters"] < wide
    assert limited.best.metrics["latency_ms"] <= 1.3
    assert limited.best.feasible is True
    assert limited.unmet is None
    assert limited.pareto
    assert all(point.feasible for point in limited.pareto)
    barred = [trial for trial in limited.trials.all.values() if trial.barred]
    assert barred
    assert {trial.last for trial in barred} == {1}
    named = [
        d for e in limited.view.events if isinstance(d := getattr(e, "decision", 0), Finalists)
    ]
    assert named
    assert not {trial.number for trial in barred} & set(named[0].trials)


def test_what_is_no_objective_is_measured_all_the_same(limited: autotune.Result) -> None:
    decisions = [getattr(event, "decision", None) for event in limited.view.events]
    assert any(isinstance(decision, Measure) for decision in decisions)
    assert [o.name for o in limited.view.context.objectives] == ["validation_loss"]


def test_a_study_with_constraints_is_replayed(limited: autotune.Result) -> None:
    assert check_replay(limited.view) > 15


def test_they_are_in_the_header_and_hold_for_a_study_that_goes_on(
    limited: autotune.Result, tmp_path: Path
) -> None:
    limits = limited.view.header.constraints
    assert limits[1] == Constraint("latency_ms", "<=", 1.3)
    assert limited.view.context.constraints == limits
    described = load(limited.view.folder / "study.yaml")
    assert described.constraints == limits
    more = autotune.resume(limited.view.folder, budget={"epochs": 52}, progress=False)
    assert more.view.context.constraints == limits
    assert more.trials.units > 40
    assert more.best is not None
    assert more.best.feasible is True
    assert {trial.last for trial in more.trials.all.values() if trial.barred} == {1}
    assert check_replay(more.view) > 15


def test_everyone_is_told(limited: autotune.Result, capsys: pytest.CaptureFixture[str]) -> None:
    at = ["--study", str(limited.view.folder)]
    counts = limited.feasibility
    assert main(["status", *at]) == 0
    said = " ".join(capsys.readouterr().out.split())
    kept = sum(value is True for value in counts.values())
    assert "latency_ms <= 1.3: " in said
    assert f"{kept} trial{'s' if kept > 1 else ''} keep" in said
    assert f"{sum(value is False for value in counts.values())} violate any" in said
    assert main(["best", *at]) == 0
    assert "it keeps parameters < " in capsys.readouterr().out
    assert main(["pareto", *at]) == 0
    assert "latency" in capsys.readouterr().out
    assert main(["report", *at]) == 0
    capsys.readouterr()
    page = limited.report.read_text()
    assert "It keeps the constraints: parameters &lt; " in page
    assert "ended for breaking a constraint" in page


def test_where_nothing_keeps_them_the_least_violating_is_best_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = tune(tmp_path, constraints="parameters < 1", **{**FAST, "budget": {"trials": 8}})
    assert result.best is not None
    sizes = [trial.static["parameters"] for trial in result.trials.all.values()]
    assert result.best.metrics["parameters"] == min(sizes)
    assert result.best.feasible is False
    assert result.pareto == []
    assert result.unmet is not None
    assert "no trial keeps the constraints (parameters < 1)" in result.unmet
    assert f"but it is {min(sizes):g}" in result.unmet
    assert "not met" in repr(result)
    at = ["--study", str(result.view.folder)]
    for command, code in (("status", 0), ("best", 0), ("pareto", 1)):
        assert main([command, *at]) == code
        told = capsys.readouterr()
        assert "no trial keeps the constraints" in told.out + told.err
    print_summary(result.view)
    assert "no trial keeps" in capsys.readouterr().out
    assert main(["report", *at]) == 0
    assert "No trial keeps the constraints" in result.report.read_text()


def test_a_metric_of_the_task_s_own_may_be_limited(tmp_path: Path) -> None:
    result = tune(tmp_path, constraints=["noise <= 0"], **{**FAST, "budget": {"epochs": 20}})
    assert result.best is not None
    assert result.best.metrics["noise"] <= 0
    with pytest.raises(StudyError, match=r"'nois >= 0'.*did you mean 'noise'"):
        tune(tmp_path, constraints=["nois >= 0"], **FAST)


@pytest.mark.parametrize("policy", ["freeze_thaw", "asha"])
def test_a_metric_that_is_reported_seldom_is_not_known_in_between(
    tmp_path: Path, policy: str
) -> None:
    result = tune(
        tmp_path,
        f"{HERE / 'study_tasks.py'}:seldom",
        constraints=["error <= 0.5"],
        search={"policy": policy, "proposer": "random"},
        **{**FAST, "budget": {"epochs": 80}},
    )
    observed = [(s, m) for t in result.trials.all.values() for s, m in t.metrics.items()]
    assert all(("error" in metrics) == (step % 3 == 0) for step, metrics in observed)
    assert any(metrics.get("error", 0.0) > 0.5 for _, metrics in observed)
    assert result.best is not None
    assert result.best.feasible is True
    assert result.best.metrics["error"] <= 0.5
    assert result.pareto
    assert set(result.feasibility.values()) == {True, None}
    assert check_replay(result.view) > 15


def test_one_that_is_never_reported_is_told_once_a_trial_has_been_trained_to_its_end(
    tmp_path: Path,
) -> None:
    with pytest.raises(StudyError, match=r"'never >= 0': the task does not report 'never'"):
        tune(tmp_path, constraints=["never >= 0"], **FAST)
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    trained = [trial.last for trial in autotune.load(folder).trials.all.values()]
    assert max(trained) == 6


@pytest.mark.parametrize(("limits", "gone"), [((), (2, 1)), (("parameters <= 5",), (0, 1))])
def test_the_checkpoint_of_what_breaks_a_limit_goes_first(
    limits: tuple[str, ...], gone: tuple[int, int]
) -> None:
    """Though it has the best loss, and is on the front but for the constraint."""
    loss, size = (known_objectives()[name] for name in ("validation_loss", "parameters"))
    trials = Trials(space().split()[0], (loss, size), tuple(map(Constraint.parse, limits)))
    evicted = []

    def fold(event: Event, before: set[str]) -> None:
        trials.observe(event)
        keeper.observe(event, before)

    def evict(number: int, step: int) -> None:
        evicted.append((number, step))
        names = set(trials[number].checkpoints.values())
        fold(Evicted(number, step, "budget"), names)

    store = SimpleNamespace(delete=lambda name: True)
    keeper = Keeper(store, trials, 250, evict, lambda: None)  # type: ignore[arg-type]
    for number, (value, parameters) in enumerate([(0.1, 9.0), (0.5, 3.0), (0.6, 3.0)]):
        start = Start(number, {"learning_rate": 0.01 * (1 + number), "width": 4}, 6, 1)
        fold(Decided(number, start), set())
        fold(Observed(number, 1, {"validation_loss": value}, 1.0), set())
        fold(Frozen(number, 1, f"of {number}", {"parameters": parameters}, size=100), set())
    assert keeper.fits()
    assert evicted == [gone]


@pytest.mark.parametrize(
    ("constraint", "said"),
    [
        ("latency_s <= 5", "did you mean 'latency_ms'"),
        ("latency_ms = 5", "expected one like 'latency_ms <= 5'"),
        (7, "constraints: "),
    ],
)
def test_mistakes_are_told_before_anything_runs(constraint: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=said):
        tune(tmp_path, constraints=[constraint], **FAST)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("constraint", "streams", "said"),
    [
        ("shifted_acuracy >= .9", True, "did you mean 'shifted_accuracy'"),
        ("shifted_loss <= 1", False, "measured on a shifted stream, but the task has none"),
    ],
)
def test_metrics_of_a_shifted_stream_are_known_too(
    constraint: str, streams: bool, said: str, tmp_path: Path
) -> None:
    samples = torch.zeros(4, 2), torch.arange(4) % 2
    data = Data(train=samples, validation=samples, shifted={"far": samples} if streams else {})
    task = TorchTask(lambda architecture: nn.Linear(2, 2), data, functional.cross_entropy)
    only = Space({"optimizer": Plugins("optimizer", include=("sgd",))})
    with pytest.raises(StudyError, match=said):
        tune(tmp_path, task, space=only, constraints=[constraint], **FAST)


def test_what_is_no_list_is_told(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="constraints: are 5; expected a list of limits"):
        tune(tmp_path, constraints=5, **FAST)

"""A study behind a reusable hold-out: what is recorded, decided on, and when it ends."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from studies import check_replay
from torch import nn
from torch.nn import functional

import autotune
from autotune.asked import as_holdout
from autotune.execute.recorded_table import RecordedTable
from autotune.header import StudyError
from autotune.plugins.search import Holdout, Objective, Observed
from autotune.space import Float, Space
from autotune.train.task import RunContext, TaskError

ACCURACY = Objective("validation_accuracy", "maximize", "curve", bounds=(0.0, 1.0))


def table(training: bool = True) -> RecordedTable:
    generator = np.random.default_rng(0)
    rates = np.linspace(0.1, 1.0, 30)
    trained = 0.6 + 0.3 * (1 - np.exp(-np.arange(1, 7) / 2)) * rates[:, None]
    held = trained - 0.2 * rates[:, None] + 0.01 * generator.standard_normal((30, 6))
    return RecordedTable(
        rows=rates[:, None],
        names=("rate",),
        log=(False,),
        curves=held,
        metric="validation_accuracy",
        minimise=False,
        others={"training_accuracy": trained} if training else {},
    )


def run(folder: Path, task: Any, executor: str = "replay", **options: Any) -> autotune.Result:
    return autotune.tune(
        task,
        Space({"rate": Float(0.1, 1.0, default=0.2)}),
        [ACCURACY],
        {"epochs": 60},
        horizon=6,
        folder=folder,
        executor=executor,
        workers=1,
        search={"policy": "asha", "proposer": "random"},
        progress=False,
        **options,
    )


def observations(result: autotune.Result) -> list[Observed]:
    return [event for event in result.view.events if isinstance(event, Observed)]


def test_answers_are_recorded_and_decided_on(tmp_path: Path) -> None:
    result = run(tmp_path, table(), holdout={"threshold": 0.1, "noise": 0.002})
    assert result.view.header.holdout == Holdout(threshold=0.1, noise=0.002)
    seen = observations(result)
    assert result.trials.units == 60
    paid = [event for event in seen if event.paid]
    assert 0 < len(paid) < len(seen)
    for event in seen:
        told = event.metrics["validation_accuracy"]
        held = event.held_out["validation_accuracy"]
        if event.paid:
            assert told == pytest.approx(held, abs=0.02)
            assert told != held
        else:
            assert told == event.metrics["training_accuracy"]
    assert check_replay(result.view) > 10
    again = run(tmp_path / "again", table(), holdout={"threshold": 0.1, "noise": 0.002})
    assert [e.metrics for e in observations(again)] == [e.metrics for e in seen]


def test_the_search_ends_when_the_budget_is_spent(tmp_path: Path) -> None:
    holdout = {"threshold": 0.01, "noise": 0.001, "budget": 12}
    result = run(tmp_path, table(), holdout=holdout, final={"candidates": 2, "seeds": 2})
    seen = observations(result)
    assert sum(event.paid for event in seen) == 12
    assert result.trials.units < 60
    assert result.reason is not None
    assert "the hold-out has given the 12 answers that it may" in result.reason
    assert result.standings == []
    assert result.best is not None
    assert math.isfinite(result.best.metrics["validation_accuracy"])
    check_replay(result.view)


def test_a_task_without_the_training_side_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="does not report training_accuracy"):
        run(tmp_path, table(training=False), holdout={})
    assert autotune.load("study", tmp_path).trials.units == 0


def test_a_torch_task_measures_training_samples_too() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 4, generator=generator)
    targets = (inputs[:, 0] > 0).long()

    def task(**options: Any) -> autotune.TorchTask:
        return autotune.TorchTask(
            model=lambda architecture: nn.Sequential(nn.Linear(4, 2), nn.Dropout(0.5)),
            data=autotune.Data(
                train=(inputs[:40], targets[:40]), validation=(inputs[40:], targets[40:])
            ),
            loss=functional.cross_entropy,
            metrics={"share": lambda outputs, given: given.float().mean()},
            **options,
        )

    configuration = {"optimizer": {"name": "sgd", "learning_rate": 0.1}, "batch_size": 8}
    configuration["optimizer"] = _completed(configuration["optimizer"])
    runs = [task(training_metrics=on).open(configuration, RunContext(0, 4)) for on in (0, 1)]
    for _ in range(2):
        plain, both = (dict(one.train()) for one in runs)
        assert both["validation_loss"] == plain["validation_loss"], "training is not disturbed"
        assert {"training_accuracy", "training_share"} <= set(both)
        assert "training_accuracy" not in plain
        assert both["training_loss"] != plain["training_loss"]


def test_what_has_no_fixed_training_samples_is_refused() -> None:
    class Endless(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
        def __iter__(self) -> Any:
            yield torch.zeros(4), torch.zeros((), dtype=torch.long)

    held = (torch.zeros(4, 4), torch.zeros(4, dtype=torch.long))
    with pytest.raises(TaskError, match="iterable data set, which has no fixed ones"):
        autotune.TorchTask(
            model=lambda architecture: nn.Linear(4, 2),
            data=autotune.Data(train=Endless(), validation=held),
            loss=functional.cross_entropy,
            training_metrics=True,
        )


def _completed(optimizer: Any) -> dict[str, Any]:
    from autotune.plugins.discovery import get

    values = {key: value for key, value in optimizer.items() if key != "name"}
    return {"name": optimizer["name"], **get("optimizer", "sgd").space().complete(values)}


def test_ways_to_state_a_holdout() -> None:
    assert as_holdout(None) is None
    assert as_holdout({"budget": 5}) == Holdout(budget=5)
    for wrong in ({"tau": 1}, {"noise": 0}, {"budget": 1.5}, 3):
        with pytest.raises(StudyError, match="holdout: "):
            as_holdout(wrong)  # type: ignore[arg-type]

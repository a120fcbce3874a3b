"""What is wrong with a task or a command is said early, and failures are told in full."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from studies import ADDRESS, moods, space, tune
from study_text import write
from torch import nn
from torch.nn import functional

import autotune
from autotune.cli import main
from autotune.decide import Search
from autotune.execute.recorded_table import RecordedTable
from autotune.header import StudyError
from autotune.plugins.search import Key, Objective, Wait
from autotune.space import Float, Space
from autotune.study import Driver

LOSS = Objective("validation_loss", "minimize", "curve")


def replayed(folder: Path, **options: Any) -> autotune.Result:
    rates = np.linspace(0.1, 1.0, 12)
    table = RecordedTable(
        rows=rates[:, None],
        names=("rate",),
        log=(False,),
        curves=rates[:, None] * np.exp(-np.arange(1, 6) / 2),
        seconds=np.tile(1.0 + rates[:, None], (1, 5)),
    )
    asked: dict[str, Any] = {
        "objectives": [LOSS],
        "budget": {"epochs": 30},
        "search": {"policy": "asha", "proposer": "random"},
        "workers": 1,
        **options,
    }
    return autotune.tune(
        table,
        Space({"rate": Float(0.1, 1.0)}),
        horizon=5,
        folder=folder,
        executor="replay",
        progress=False,
        **asked,
    )


@pytest.mark.parametrize("kind", ["static", "curve"])
def test_an_objective_that_is_never_reported_ends_the_first_segment(
    tmp_path: Path, kind: Any
) -> None:
    missing = Objective("flops", "minimize", kind)
    with pytest.raises(StudyError, match=f"'flops' is of kind {kind}, but what the task reports"):
        replayed(tmp_path, objectives=[LOSS, missing])
    view = autotune.load("study", tmp_path)
    assert view.trials.units <= 5
    assert len(view.trials) == 1


def test_only_latency_is_measured_alone(tmp_path: Path) -> None:
    power = Objective("power", "minimize", "evaluation", alone=True)
    with pytest.raises(StudyError, match="'power' is measured alone"):
        replayed(tmp_path, objectives=[LOSS, power])


def torch_task() -> autotune.TorchTask:
    inputs, targets = torch.randn(8, 3), torch.zeros(8, dtype=torch.long)
    return autotune.TorchTask(
        model=lambda architecture: nn.Linear(3, 2),
        data=autotune.Data(train=(inputs, targets), validation=(inputs, targets)),
        loss=functional.cross_entropy,
    )


def test_a_space_without_an_optimizer_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="there is no optimizer in it"):
        tune(tmp_path, torch_task(), objectives=["validation_loss"])
    assert not list(tmp_path.iterdir())


def test_an_evaluation_objective_that_a_torch_task_cannot_measure_is_refused(
    tmp_path: Path,
) -> None:
    odd = Objective("robustness", "maximize", "evaluation")
    with pytest.raises(StudyError, match="'robustness' is of kind evaluation"):
        tune(
            tmp_path,
            torch_task(),
            objectives=["validation_loss", odd],
            space=Space({"optimizer": {"name": "adamw"}}),
        )


def test_tracebacks_of_failures_are_recorded_and_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tune(
        tmp_path,
        ADDRESS,
        space=space(mood=moods("raise")),
        objectives=["validation_loss"],
        budget={"epochs": 4},
        horizon=2,
        first=[{"mood": "raise"}],
        name="failing",
    )
    assert main(["status", "--failed", "--folder", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "trial 1 failed after epoch 0 (error): ValueError: the user's model is broken" in said
    assert 'raise ValueError("the user\'s model is broken")' in said
    assert "study_tasks.py" in said
    assert main(["status", "--failed", "--json", "--folder", str(tmp_path)]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain["failures"][0]["trial"] == 1
    assert "Traceback" in plain["failures"][0]["traceback"]


def test_an_option_before_the_file_does_not_swallow_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = str(tmp_path / "none.yaml")
    for option in (["--budget", "epochs=3", "trials=4"], ["--final", "off"]):
        assert main(["run", *option, missing]) == 2
        assert "there is no such file" in capsys.readouterr().err
    assert main(["run", "--budget", "epochs=3"]) == 2
    assert "which study file?" in capsys.readouterr().err
    assert main(["run", str(write(tmp_path)), "--final", "seeds"]) == 2
    assert "--final: got 'seeds'" in capsys.readouterr().err
    assert main(["run", str(write(tmp_path)), "--utility", "percent=1"]) == 2
    assert "utility: is {'percent': 1}" in capsys.readouterr().err


def test_who_waits_is_asked_again_only_after_an_event(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing may be started any more, but two trials still train; the loop polls meanwhile."""
    events, polls = [0], [0]
    asked_at: list[int] = []
    decide, receive = Search.decide, Driver._receive

    def counting(search: Search, key: Key) -> Any:
        decision = decide(search, key)
        if isinstance(decision, Wait):
            asked_at.append(events[0])
        return decision

    def idle(driver: Driver) -> None:
        polls[0] += 1
        if polls[0] % 3 == 0:  # two polls of three bring nothing
            receive(driver)

    def count(trials: object, event: object) -> None:
        events[0] += 1

    monkeypatch.setattr(Search, "decide", counting)
    monkeypatch.setattr(Driver, "_receive", idle)
    replayed(
        tmp_path,
        workers=3,
        budget={"trials": 3},
        search={"policy": "random_search", "proposer": "random"},
        listeners=[count],
    )
    assert len(asked_at) > 1
    assert len(asked_at) == len(set(asked_at))

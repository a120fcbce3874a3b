"""Pretrained weights are made once a study, by whoever comes first."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import train_tasks
from torch import Tensor
from train_tasks import SmallNet, configuration, pretrain, small_task

from autotune.train import RunContext, TaskError

SCRIPT = """
import sys, time
sys.path.insert(0, {tests!r})
from pathlib import Path
import torch
from train_tasks import configuration, pretrain, small_task
from autotune.train import RunContext

def slow(architecture):
    with open({log!r}, "a") as file:
        file.write("made\\n")
    time.sleep(2.0)
    return pretrain(architecture)

torch.rand(int(sys.argv[1]))  # the weights must not depend on what ran before
run = small_task(pretrained=slow).open(configuration(), RunContext(0, 4, folder=Path({folder!r})))
print(run.freeze()["model"]["pretrained"])
"""


def test_made_once_by_processes_that_start_together(tmp_path: Path) -> None:
    log = tmp_path / "log"
    script = SCRIPT.format(
        tests=str(Path(train_tasks.__file__).parent), log=str(log), folder=str(tmp_path / "study")
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(number)], stdout=subprocess.PIPE, text=True
        )
        for number in range(2)
    ]
    digests = {process.communicate(timeout=120)[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0, 0]
    assert log.read_text() == "made\n"
    assert len(digests) == 1
    here = small_task().open(configuration(), RunContext(0, 4)).freeze()["model"]["pretrained"]
    assert digests == {here}
    kept = list((tmp_path / "study" / "pretrained").glob("*.safetensors"))
    assert len(kept) == 1


def test_each_architecture_has_its_own(tmp_path: Path) -> None:
    calls = []

    def counted(architecture: Any) -> Any:
        calls.append(architecture["width"])
        return pretrain(architecture)

    for folder in (tmp_path, None):
        calls.clear()
        task = small_task(pretrained=counted)
        for width in (4, 4, 5, 5):
            task.open(configuration(architecture={"width": width}), RunContext(0, 4, folder=folder))
        assert calls == [4, 5]
    again = small_task(pretrained=counted)
    calls.clear()
    again.open(configuration(architecture={"width": 5}), RunContext(0, 4, folder=tmp_path))
    assert calls == []


def test_a_failed_attempt_leaves_nothing_behind(tmp_path: Path) -> None:
    def failing(architecture: Any) -> Any:
        raise RuntimeError("no network")

    with pytest.raises(RuntimeError, match="no network"):
        small_task(pretrained=failing).open(configuration(), RunContext(0, 4, folder=tmp_path))
    assert not list(tmp_path.glob("**/*.safetensors"))
    small_task().open(configuration(), RunContext(0, 4, folder=tmp_path))
    assert len(list(tmp_path.glob("**/*.safetensors"))) == 1


def test_the_run_starts_from_them() -> None:
    weights = pretrained_by_the_engine()
    run = small_task().open(configuration(), RunContext(5, 4))
    assert torch.equal(run._model.middle.weight, weights["middle.weight"])
    other = small_task().open(configuration(), RunContext(6, 4))
    assert not torch.equal(run._model.head.weight, other._model.head.weight)


def pretrained_by_the_engine() -> dict[str, Tensor]:
    run = small_task().open(configuration(), RunContext(0, 4))
    return dict(run._pretrained.tensors)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: {**w, "nose.weight": torch.zeros(1)},
            r"'nose\.weight', which the model does not",
        ),
        (lambda w: {**w, "middle.weight": torch.zeros(1)}, r"'middle\.weight' of shape \[1\]"),
        (lambda w: {"middle.weight": w["middle.weight"]}, "returned no 'body"),
        (lambda w: SmallNet(), "returned SmallNet; expected a state_dict"),
        (lambda w: {**w, "middle.weight": 3}, r"returned int under 'middle\.weight'"),
    ],
)
def test_weights_that_do_not_fit_are_named(change: Any, message: str) -> None:
    task = small_task(pretrained=lambda architecture: change(pretrain(architecture)))
    with pytest.raises(TaskError, match=message):
        task.open(configuration(), RunContext(0, 4))


def test_an_unknown_head_is_named() -> None:
    with pytest.raises(TaskError, match="no part 'heads'; did you mean 'head'"):
        small_task(head=("heads",)).open(configuration(), RunContext(0, 4))

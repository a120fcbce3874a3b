"""Budgets in GPU-seconds in studies that run. Ray hands out GPUs that it is told of, whether they
are there or not."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from studies import check_replay, tune

import autotune
from autotune.api import studies
from autotune.cli import main
from autotune.header import StudyError
from autotune.plugins import PluginError
from autotune.plugins.search import Budget, Equipped, Frozen
from autotune.space import Float, Space
from autotune.study_file import load


def test_workers_without_any_are_told(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"gpu_seconds .* on device cpu those of executor local"):
        tune(tmp_path, budget={"gpu_seconds": 5})
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="device auto finds a GPU")
def test_workers_that_find_none_are_told_when_they_are_up(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"gpu_seconds .* executor local hold none .device auto"):
        tune(tmp_path, budget={"gpu_seconds": 5}, device="auto")
    assert not studies(tmp_path)


def test_what_ray_gives_its_workers_is_spent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("QUICK_SECONDS", "0.03")
    ray.init(
        address="local",
        num_cpus=1,
        num_gpus=2,
        include_dashboard=False,
        logging_level=logging.ERROR,
        log_to_driver=False,
    )
    try:
        result = tune(
            tmp_path,
            objectives=["validation_loss"],
            space=Space({"learning_rate": Float(1e-4, 1.0, log=True, default=0.01)}),
            budget={"gpu_seconds": 1},
            workers=1,
            executor={"name": "ray", "num_gpus": 0.5, "num_cpus": 0.5},
            final=False,
        )
        again = autotune.resume(
            result.folder,
            budget={"gpu_seconds": 2},
            executor={"name": "ray", "num_gpus": 1.0},
            progress=False,
        )
    finally:
        ray.shutdown()
    assert result.reason == "the 1 GPU-seconds of the budget are spent"
    held = [event.gpus for event in again.view.events if isinstance(event, Equipped)]
    assert held == [0.5, 1.0]
    whole = sum(e.seconds for e in result.view.events if isinstance(e, Frozen))
    assert result.trials.gpu_seconds == pytest.approx(0.5 * whole)
    assert 0.6 < result.trials.gpu_seconds < 1.5
    assert result.trials.gpu_seconds + 0.3 < again.trials.gpu_seconds < 3.0
    assert check_replay(again.view) > 2
    assert load(result.folder / "study.yaml").budget == Budget(gpu_seconds=1.0)
    assert main(["status", "--study", str(result.folder)]) == 0
    assert "of 2 gpu_seconds" in capsys.readouterr().out

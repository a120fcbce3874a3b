"""The second pass: a study's winner, trained again under the schedule its norms suggest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import autotune
from autotune.space import Float, Plugins, Space
from autotune.train import TaskError

GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(60, 5, generator=GENERATOR)
TARGETS = (INPUTS[:, 0] + INPUTS[:, 1].square() > 0.5).long()
HORIZON = 6


def build(architecture: Any) -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2))


def studied(folder: Path, record: bool) -> autotune.Result:
    task = autotune.TorchTask(
        model=build,
        data=autotune.Data((INPUTS[:40], TARGETS[:40]), (INPUTS[40:], TARGETS[40:])),
        loss=functional.cross_entropy,
    )
    space = Space(
        {
            "optimizer": Plugins("optimizer", include=("sgd",)),
            "schedule": Plugins("schedule", include=("constant",)),
            "batch_size": 8,
            "record_gradient_norms": record,
            "unused": Float(0.0, 1.0),
        }
    )
    return autotune.tune(
        task,
        space,
        objectives=["validation_loss"],
        budget={"trials": 2},
        horizon=HORIZON,
        name="refined",
        folder=folder,
        search={"policy": "random_search", "proposer": "random"},
        workers=1,
        progress=False,
    )


def test_the_winner_is_refined_and_retrained(tmp_path: Path) -> None:
    result = studied(tmp_path, record=True)
    events = len(result.view.events)
    refined = autotune.refine(result, "l2", filter_width=0.3)
    assert refined.configuration["schedule"]["name"] == "linear_decay"
    assert refined.configuration["optimizer"] == result.best.training["optimizer"]
    assert list(refined.metrics) == list(range(1, HORIZON + 1))
    values = [metrics["validation_loss"] for metrics in refined.metrics.values()]
    assert refined.after == min(values)
    assert refined.before == result.best.metrics["validation_loss"]
    assert refined.better == (refined.after < refined.before)
    with torch.no_grad():
        loss = functional.cross_entropy(refined.model(INPUTS[40:]), TARGETS[40:]).item()
    assert loss == pytest.approx(values[-1], rel=1e-6)
    again = autotune.refine(result, "l2", filter_width=0.3)
    assert again.metrics == refined.metrics
    twice = autotune.refine(result, "l2", filter_width=0.3, rounds=2)
    assert twice.metrics != refined.metrics
    assert len(autotune.load(result.folder).events) == events


def test_a_winner_without_norms_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="record_gradient_norms: the run recorded"):
        autotune.refine(studied(tmp_path, record=False), "l2")

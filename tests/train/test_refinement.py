"""A schedule refined from the gradient norms that a finished run recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_freeze_thaw import same
from train_tasks import configuration, small_task

from autotune.plugins import PluginError
from autotune.train import RunContext, TaskError
from autotune.train.gradient_norms import recorded_norms
from autotune.train.torch_run import FILTER_WIDTH
from autotune_plugins.schedules.linear_decay import refined_factors

LINE = {"name": "linear_decay", "warmup_fraction": 0.0, "final_factor": 0.0}
HORIZON = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("study")


def opened(folder: Path, schedule: dict[str, Any] | None = LINE, **further: Any) -> Any:
    chosen = configuration(**{"accumulation_steps": 1, "record_gradient_norms": True, **further})
    chosen["schedule"] = schedule
    return small_task().open(chosen, RunContext(seed=3, horizon=HORIZON, folder=folder))


def finished(folder: Path, **further: Any) -> tuple[Any, list[tuple[float, float]]]:
    """A run at its horizon, and the norms of its gradients as a plain loop sees them: before
    clipping, which `further` turns off here."""
    run, norms = opened(folder, gradient_clip_norm=None, **further), []
    step = run._stepper.optimizer.step

    def watched(*arguments: Any) -> Any:
        whole = torch.cat([p.grad.flatten() for p in run._model.parameters() if p.grad is not None])
        norms.append((whole.norm().item(), whole.abs().sum().item()))
        return step(*arguments)

    run._stepper.optimizer.step = watched
    for _ in range(HORIZON):
        run.train()
    return run, norms


@pytest.mark.parametrize("accumulation", [1, 2])
def test_norms_are_recorded_at_every_step(folder: Path, accumulation: int) -> None:
    run, norms = finished(folder, accumulation_steps=accumulation)
    recorded = recorded_norms(run.freeze())
    assert len(norms) == HORIZON // accumulation
    assert list(recorded.l2) == pytest.approx([l2 for l2, _ in norms], rel=1e-5)
    assert list(recorded.l1) == pytest.approx([l1 for _, l1 in norms], rel=1e-5)
    assert recorded.seen == 84
    starts = [0, 8, 16, 24, 32, 40, 42, 50, 58, 66, 74, 82]
    assert recorded.samples == starts[::accumulation]


def test_clipping_does_not_hide_the_norms(folder: Path) -> None:
    run = opened(folder, gradient_clip_norm=1e-3)
    run.train()
    assert recorded_norms(run.freeze()).l2[0] > 0.1


SGD = {"name": "sgd", "learning_rate": 0.05}


@pytest.mark.parametrize(("norm", "further"), [("l1", {}), ("l2", {"optimizer": SGD})])
def test_the_refined_run_follows_the_recorded_norms(folder: Path, norm: Any, further: Any) -> None:
    """At every step, frozen and thawed in between without the first run; by the norm that goes
    with the optimizer."""
    state = finished(folder, **further)[0].freeze()
    recorded = recorded_norms(state)
    straight = opened(folder, **further)
    straight.refine(state)
    expected = refined_factors(getattr(recorded, norm), norm, FILTER_WIDTH)
    frozen = straight.freeze()
    rates = []
    for _ in range(HORIZON):
        run = opened(folder, **further)
        run.thaw(frozen)
        assert run.train() == straight.train()
        frozen = run.freeze()
        assert same(frozen, straight.freeze())
        (group, *_) = run._stepper.optimizer.param_groups
        rates.append(group["lr"] / group["initial_lr"])
    assert rates == pytest.approx(expected.tolist(), rel=1e-10, abs=1e-12)
    assert max(rates) == pytest.approx(1.0)
    again = opened(folder, **further)
    again.refine(frozen)  # a second round, from the refined run


def test_what_cannot_be_refined_says_so(folder: Path) -> None:
    state = finished(folder)[0].freeze()
    silent = opened(folder, record_gradient_norms=False)
    silent.train()
    with pytest.raises(TaskError, match="record_gradient_norms: the run recorded none"):
        opened(folder).refine(silent.freeze())
    with pytest.raises(PluginError, match="'cosine' cannot be refined from gradient norms"):
        opened(folder, {"name": "cosine"}).refine(state)
    with pytest.raises(TaskError, match="schedule: none in the configuration"):
        opened(folder, None).refine(state)
    begun = opened(folder)
    begun.train()
    with pytest.raises(TaskError, match="the run stands at step 1; expected 0"):
        begun.refine(state)
    with pytest.raises(TaskError, match="record_gradient_norms: 'yes' in the configuration"):
        opened(folder, record_gradient_norms="yes")

"""Torch's schedulers, and ones written like them, as schedules."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.optim import lr_scheduler

import autotune
from autotune.execute.store import CheckpointStore
from autotune.plugins import PluginError, Progress, Signals, TorchSchedule
from autotune.plugins.conformance import check
from autotune.plugins.search import Frozen
from autotune.space import Choice, Plugins, Space
from autotune.train.torch_task import installed_plugin

STEPS, BATCH, EPOCH = 60, 10, 120

Make = Callable[[torch.optim.Optimizer, int], Any]


def wrapped(make: Make, **further: Any) -> TorchSchedule:
    """A plugin in one line around `make`."""
    body = {
        "name": "wrapped",
        "summary": "",
        "reference": "",
        "scheduler": lambda self, optimizer, horizon: make(optimizer, horizon),
    }
    return type("Wrapped", (TorchSchedule,), {**body, **further})()


def at(samples: int, batch_size: int = BATCH) -> Progress:
    return Progress(samples, STEPS * BATCH, EPOCH, samples // BATCH, batch_size)


def alone(make: Make, steps: int, horizon: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
    scheduler, rates = make(optimizer, horizon), []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


class Mine(lr_scheduler.LRScheduler):
    """A user's own: falls as one over the root."""

    def get_lr(self) -> list[float]:
        return [base / (1 + self.last_epoch) ** 0.5 for base in self.base_lrs]


MAKERS: dict[str, Make] = {
    "cosine": lambda o, h: lr_scheduler.CosineAnnealingLR(o, T_max=h, eta_min=0.1),
    "one cycle": lambda o, h: lr_scheduler.OneCycleLR(o, max_lr=1.0, total_steps=h),
    "restarts": lambda o, h: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=7, T_mult=2),
    "lambda": lambda o, h: lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
    "sequence": lambda o, h: lr_scheduler.SequentialLR(
        o,
        [lr_scheduler.LinearLR(o, 0.1, total_iters=5), lr_scheduler.ExponentialLR(o, 0.9)],
        milestones=[5],
    ),
    "own": lambda o, h: Mine(o),
}


@pytest.mark.parametrize("name", MAKERS)
def test_sixty_steps_are_torchs_and_survive_a_freeze_at_each(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "The epoch parameter")  # SequentialLR's own doing
        expected = alone(MAKERS[name], STEPS, STEPS)
        schedule = wrapped(MAKERS[name])
        found = []
        for step in range(STEPS):
            found.append(schedule.control(at(step * BATCH), Signals()).factor)
            state = schedule.state_dict()
            schedule = wrapped(MAKERS[name])
            schedule.load_state_dict(state)
    assert found == expected


def test_counts_epochs_where_told_to() -> None:
    schedule = wrapped(lambda o, h: lr_scheduler.StepLR(o, step_size=2), per="epoch")
    found = [schedule.control(at(samples), Signals()).factor for samples in range(0, 600, 60)]
    assert found == pytest.approx([1.0] * 4 + [0.1] * 4 + [0.01] * 2)


def test_counts_samples_when_the_batch_grows() -> None:
    """The unit stays the first step's size, so a step of three units takes three."""
    schedule = wrapped(MAKERS["cosine"])
    expected = alone(MAKERS["cosine"], STEPS, STEPS)
    schedule.control(at(0), Signals())
    for samples in (10, 40, 70, 300):
        factor = schedule.control(at(samples, batch_size=30), Signals()).factor
        assert factor == expected[samples // BATCH]


def test_stops_at_the_horizon_only_if_bound() -> None:
    cycle = wrapped(MAKERS["one cycle"])
    last = cycle.control(at(STEPS * BATCH), Signals()).factor
    assert cycle.control(at(5 * STEPS * BATCH), Signals()).factor == last
    assert cycle.bound_from() == 0.0
    free = wrapped(MAKERS["own"], bound_from=lambda self: None)
    assert free.control(at(5 * STEPS * BATCH), Signals()).factor == (5 * STEPS + 1) ** -0.5


def test_a_scheduler_that_wants_a_metric_is_refused() -> None:
    schedule = wrapped(lambda o, h: lr_scheduler.ReduceLROnPlateau(o))
    with pytest.raises(PluginError, match="'wrapped' made a ReduceLROnPlateau; expected a torch"):
        schedule.control(at(0), Signals())


def test_one_made_of_a_function_keeps_the_contract() -> None:
    report = check(TorchSchedule.of("stairs", lambda o, h: lr_scheduler.StepLR(o, 2), per="epoch"))
    assert report.ok, report.failures


def test_a_study_from_python_searches_among_schedulers_of_torch(tmp_path: Path) -> None:
    """Frozen, thawed and, where they depend on the horizon, told apart."""
    own = {
        made.name: made
        for made in (
            TorchSchedule.of(
                "stairs", lambda o, h: lr_scheduler.StepLR(o, 2), per="epoch", bound=False
            ),
            TorchSchedule.of("annealed", lambda o, h: lr_scheduler.CosineAnnealingLR(o, h)),
        )
    }
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(40, 5, generator=generator)
    split = (inputs, (inputs[:, 0] > 0).long())
    result = autotune.tune(
        autotune.TorchTask(
            model=lambda architecture: nn.Linear(5, 2),
            data=autotune.Data(split, split),
            loss=functional.cross_entropy,
            get_plugin=lambda kind, name: own.get(name) or installed_plugin(kind, name),
        ),
        Space(
            {
                "optimizer": Plugins("optimizer", include=("sgd",)),
                "schedule": Choice({name: {} for name in own}),
                "batch_size": 8,
            }
        ),
        objectives=["validation_loss"],
        budget={"epochs": 24},
        horizon=6,
        folder=tmp_path,
        search={"policy": "asha", "proposer": "random"},
        workers=1,
        final=False,
        progress=False,
    )
    trials = result.trials.all
    bounds = {t.configuration["schedule"]["name"]: t.bound_from for t in trials.values()}
    assert bounds == {"stairs": None, "annealed": 0.0}
    store = CheckpointStore(result.folder / "checkpoints")
    frozen = [event for event in result.view.events if isinstance(event, Frozen)]
    assert max(event.step for event in frozen) > 1
    for event in frozen:
        if not store.intact(event.checkpoint):
            continue
        (group, *_) = store.load(event.checkpoint)["state"]["optimizer"]["param_groups"]
        taken = 5 * event.step - 1  # steps before the last
        if trials[event.trial].configuration["schedule"]["name"] == "stairs":
            expected = 0.1 ** (taken // 5 // 2)
        else:
            expected = (1 + torch.cos(torch.tensor(torch.pi * taken / 30)).item()) / 2
        assert group["lr"] / group["initial_lr"] == pytest.approx(expected, rel=1e-5)

"""Per-sample gradients: what they are, whom they reach, and where there are none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from test_freeze_thaw import same
from torch import Tensor, nn
from torch.nn import functional
from train_tasks import SmallNet, images, jitter, small_data

from autotune.plugins import (
    Control,
    ModelInfo,
    Optimizer,
    PluginError,
    Schedule,
    Signals,
    no_per_sample_gradients,
)
from autotune.train import Data, RunContext, TaskError, TorchTask
from autotune.train.data import order
from autotune.train.torch_task import installed_plugin

NEED = frozenset({"per_sample_gradients"})
SIZE, ACCUMULATION = 6, 2


class Net(nn.Module):
    """Convolution, group norm, dropout; no sample meets another."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 4, 3)
        self.norm = nn.GroupNorm(2, 4)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(64, 3)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        return self.head(self.dropout(self.norm(self.convolution(inputs)).tanh().flatten(1)))


class Watching(Schedule):
    """Keeps the signals, and the weights and the step they will be of."""

    name, summary, reference = "watching", "", ""
    needs = NEED
    limits: tuple[int | None, ...] = (None,)
    seen: list[tuple[Signals, list[Tensor]]]
    model: nn.Module

    def control(self, progress: Any, signals: Signals) -> Control:
        weights = [p.detach().clone() for p in self.model.parameters()]
        self.seen.append((signals, weights))
        return Control(measured_samples=self.limits[progress.steps % len(self.limits)])


def task_with(plugins: Mapping[str, type], model: nn.Module, **further: Any) -> TorchTask:
    def get_plugin(kind: str, name: str) -> Any:
        return plugins.get(name) or installed_plugin(kind, name)

    inputs, targets = images(42, 0)
    held = images(12, 1)
    arguments: dict[str, Any] = {
        "model": lambda architecture: model,
        "data": Data((inputs.double(), targets), (held[0].double(), held[1])),
        "loss": functional.cross_entropy,
        "get_plugin": get_plugin,
    }
    return TorchTask(**{**arguments, **further})


CHOSEN = {
    "batch_size": SIZE,
    "accumulation_steps": ACCUMULATION,
    "gradient_clip_norm": 0.05,
    "optimizer": {"name": "sgd", "learning_rate": 0.05},
    "schedule": {"name": "watching"},
}


def watched(limits: tuple[int | None, ...] = (None,)) -> list[tuple[Signals, list[Tensor]]]:
    """The signals of two epochs of a float64 run, with the weights before each step."""
    model = Net().double()
    plugin = type("W", (Watching,), {"model": model, "seen": [], "limits": limits})
    run = task_with({"watching": plugin}, model).open(CHOSEN, RunContext(seed=5, horizon=4))
    run.train(), run.train()
    return plugin.seen


def by_hand(weights: list[Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
    """Gradients, one row a sample, by one backward pass each."""
    model = Net().double()
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), weights, strict=True):
            parameter.copy_(value)
    rows = []
    for one in range(len(inputs)):
        loss = functional.cross_entropy(model(inputs[one : one + 1]), targets[one : one + 1])
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
    return torch.stack(rows)


@pytest.mark.parametrize("limit", [None, 5, 8])
def test_spread_is_that_of_gradients_taken_one_by_one(limit: int | None) -> None:
    seen = watched((limit,))
    inputs, targets = images(42, 0)
    per_epoch = [12, 12, 12, 6]
    assert len(seen) == 8
    assert seen[0][0] == Signals()
    for step in range(7):
        epoch, place = divmod(step, 4)
        start = sum(per_epoch[:place])
        indices = torch.from_numpy(order(5, epoch, 42))[start : start + per_epoch[place]]
        rows = by_hand(seen[step][1], inputs[indices].double(), targets[indices])
        mean, measured = rows.mean(0), rows[:limit]
        along = measured @ mean
        across = measured - torch.outer(along, mean) / mean.square().sum()
        variances = measured.var(0, correction=1)
        signals = seen[step + 1][0]
        assert signals.measured_samples == len(measured)
        found = {
            signals.gradient_norm: mean.norm(),
            signals.per_sample_gradient_variance: variances.sum(),
            signals.inner_product_variance: along.var(correction=1),
            signals.orthogonal_variance: across.var(0, correction=1).sum(),
            signals.coordinate_variance_ratio: (variances / mean.square()).max(),
        }
        for ours, theirs in found.items():
            assert ours == pytest.approx(theirs.item(), rel=1e-9)


def test_steps_that_are_not_wanted_are_not_measured() -> None:
    signals = [signals for signals, _ in watched((4, 0, 0))]
    measured = [one.measured_samples for one in signals]
    assert measured == [None, 4, None, None, 4, None, None, 4]
    assert all(one == Signals() for one in signals if one.measured_samples is None)


def test_measuring_leaves_the_training_alone() -> None:
    def weights(limit: int) -> list[Tensor]:
        torch.manual_seed(0)
        return watched((limit,))[-1][1]

    for one, two in zip(weights(0), weights(6), strict=True):
        assert torch.equal(one, two)


class PerSample(torch.optim.SGD):
    """Clips each sample's gradient to norm 0.1 before it takes their mean."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        parameters = self.param_groups[0]["params"]
        rows = torch.cat([p.grad_sample.flatten(1) for p in parameters], 1)
        self.errors.append(
            (rows.mean(0) - torch.cat([p.grad.flatten() for p in parameters])).abs().max().item()
        )
        factors = (0.1 / rows.norm(dim=1)).clamp(max=1.0)
        for p in parameters:
            p.grad.copy_(torch.einsum("s,s...->...", factors, p.grad_sample) / len(factors))
        super().step()


class Clipped(Optimizer):
    name, summary, reference = "clipped", "", ""
    needs = NEED

    def build(self, named_parameters: Any) -> torch.optim.Optimizer:
        optimizer = PerSample([p for _, p in named_parameters], lr=0.05, momentum=0.9)
        optimizer.errors = []
        return optimizer


def test_an_optimizer_finds_them_at_its_parameters() -> None:
    chosen = {"batch_size": 6, "accumulation_steps": 2, "optimizer": {"name": "clipped"}}
    run = task_with({"clipped": Clipped}, Net().double()).open(chosen, RunContext(0, 2))
    run.train()
    errors = run._stepper.optimizer.errors
    assert len(errors) == 4
    assert max(errors) < 1e-12
    assert all(p.grad_sample is None for p in run._model.parameters())


@pytest.mark.parametrize("choice", ["norm_test", "clipped", "bfloat16"])
def test_frozen_at_every_batch_nothing_changes(choice: str, tmp_path: Path) -> None:
    """With dropout, augmentation and accumulation; half the freezes fall within a step."""
    grown = {"name": "norm_test", "interval": 1, "largest_batch_size": 24}
    chosen = {
        "batch_size": 4,
        "accumulation_steps": 2,
        "optimizer": {"name": "clipped" if choice == "clipped" else "adamw"},
        "schedule": {"name": "constant"} if choice == "clipped" else grown,
        "mixed_precision": "bfloat16" if choice == "bfloat16" else "off",
    }
    data = small_data(augment=jitter)
    task = TorchTask(
        model=lambda architecture: Net(dropout=0.3),
        data=data,
        loss=functional.cross_entropy,
        unit="step",
        get_plugin=lambda kind, name: (
            Clipped if name == "clipped" else installed_plugin(kind, name)
        ),
    )
    context = RunContext(seed=3, horizon=14, folder=tmp_path)
    straight = task.open(chosen, context)
    state, sizes = None, []
    for _ in range(14):
        expected = straight.train()
        run = task.open(chosen, context)
        if state is not None:
            run.thaw(state)
        assert run.train() == expected
        state = run.freeze()
        assert same(state, straight.freeze())
        sizes.append(straight._stepper._batch_size)
    if choice != "clipped":
        assert sizes[0] == 4
        assert sizes[-1] == 12, "the noise of 8 samples should have called for more"


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(36, 3)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return self.linear((first + second).flatten(1))


@pytest.mark.parametrize("form", [tuple, dict])
def test_inputs_may_have_structure(form: type) -> None:
    inputs, targets = images(12, 0)
    parts = (inputs, inputs.flip(0)) if form is tuple else {"first": inputs, "second": inputs}
    model = TwoInputs()
    plugin = type("W", (Watching,), {"model": model, "seen": []})
    task = task_with({"watching": plugin}, model, data=Data((parts, targets), (parts, targets)))
    task.open(CHOSEN, RunContext(0, 2)).train()
    assert all(signals.per_sample_gradient_variance > 0 for signals, _ in plugin.seen[1:])


def test_batch_norm_is_refused_beforehand_and_in_words() -> None:
    info = ModelInfo(pretrained=False, layer_types={"BatchNorm2d": 1}, parameter_shapes={})
    assert "batch norm" in str(no_per_sample_gradients(info))
    plain = ModelInfo(pretrained=False, layer_types={"LayerNorm": 1}, parameter_shapes={})
    assert no_per_sample_gradients(plain) is None
    model = SmallNet().double()
    plugin = type("W", (Watching,), {"model": model, "seen": []})
    run = task_with({"watching": plugin}, model).open(CHOSEN, RunContext(0, 2))
    with pytest.raises(
        PluginError, match=r"of this model; .*no batch norm.*torch says: Batch norm"
    ):
        run.train()


def test_float16_is_refused() -> None:
    chosen = {**CHOSEN, "schedule": {"name": "norm_test"}, "mixed_precision": "float16"}
    with pytest.raises(TaskError, match="the schedule 'norm_test' looks at the gradient of each"):
        task_with({}, Net()).open(chosen, RunContext(0, 2))

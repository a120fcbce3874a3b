"""The loop computes what a plain loop would, and hands plugins what they ask for."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from train_tasks import (
    Closure,
    GrowingBatch,
    SmallNet,
    configuration,
    images,
    small_data,
    small_task,
)

from autotune.plugins import Adapter, Control, Optimizer, PluginError, Progress, Schedule
from autotune.train import Data, NotFinite, RunContext, TaskError, TorchTask
from autotune.train.data import order
from autotune.train.torch_task import installed_plugin


def doubles(split: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return split[0].double(), split[1]


PLAIN = Data(doubles(images(40, 0)), doubles(images(30, 1)))


def task_with(plugin: type | None = None, **further: Any) -> TorchTask:
    """A float64 task without dropout; `plugin` is found under the name ``own``."""

    def get_plugin(kind: str, name: str) -> Any:
        return plugin if name == "own" else installed_plugin(kind, name)

    def build(architecture: Mapping[str, Any]) -> nn.Module:
        model = SmallNet().double()
        model.dropout.p = 0.0
        return model

    arguments = {"model": build, "data": PLAIN, "loss": functional.cross_entropy}
    return TorchTask(**{**arguments, "get_plugin": get_plugin, **further})


def test_losses_equal_a_plain_loop() -> None:
    """AdamW under a cosine, against torch's own two and a loop written out."""
    epochs, size, rate = 5, 8, 0.01
    chosen = {
        "batch_size": size,
        "optimizer": {"name": "adamw", "learning_rate": rate, "weight_decay": 0.0},
        "schedule": {"name": "cosine", "warmup_fraction": 0.0, "final_factor": 0.0},
    }
    run = task_with().open(chosen, RunContext(seed=11, horizon=epochs))

    model = copy.deepcopy(run._model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0, fused=True)
    steps = epochs * 40 // size
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: (1 + math.cos(math.pi * step / steps)) / 2
    )
    inputs, targets = doubles(images(40, 0))
    held_out = doubles(images(30, 1))
    for epoch in range(epochs):
        total = 0.0
        for indices in torch.from_numpy(order(11, epoch, 40)).split(size):
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(inputs[indices]), targets[indices])
            loss.backward()
            optimizer.step()
            scheduler.step()
            total += loss.item() * len(indices)
        model.eval()
        with torch.no_grad():
            outputs = model(held_out[0])
        model.train()
        metrics = run.train()
        assert metrics["training_loss"] == pytest.approx(total / 40, rel=1e-12)
        expected = functional.cross_entropy(outputs, held_out[1]).item()
        assert metrics["validation_loss"] == pytest.approx(expected, rel=1e-12)
        right = (outputs.argmax(1) == held_out[1]).double().mean().item()
        assert metrics["validation_accuracy"] == pytest.approx(right)


def test_accumulated_batches_equal_one_batch() -> None:
    """Without batch norm, 4 forward passes of 4 samples are one of 16; also where the epoch
    ends within a step (40 = 2 * 16 + 8)."""

    def build(architecture: Mapping[str, Any]) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Tanh(), nn.Linear(8, 3)).double()

    def curve(**further: Any) -> list[float]:
        chosen = {"optimizer": {"name": "sgd", "learning_rate": 0.1}, **further}
        run = task_with(model=build).open(chosen, RunContext(0, 4))
        return [run.train()["validation_loss"] for _ in range(3)]

    whole = curve(batch_size=16)
    assert curve(batch_size=4, accumulation_steps=4) == pytest.approx(whole, rel=1e-12)
    assert curve(batch_size=8, accumulation_steps=2) == pytest.approx(whole, rel=1e-12)
    assert curve(batch_size=8) != pytest.approx(whole, rel=1e-6)


def test_gradients_are_clipped() -> None:
    seen = []

    class Watching(Adapter):
        name, summary, reference = "own", "", ""

        def apply(self, model: nn.Module, context: Any) -> nn.Module:
            self.watched = list(model.parameters())
            return model

        def after_step(self, progress: Progress) -> None:
            norms = [p.grad.norm() for p in self.watched if p.grad is not None]
            seen.append(torch.stack(norms).norm().item())

    chosen = {"optimizer": {"name": "sgd"}, "adapter": {"name": "own"}, "batch_size": 8}
    task_with(Watching).open({**chosen, "gradient_clip_norm": 0.01}, RunContext(0, 2)).train()
    assert len(seen) == 5
    assert all(norm == pytest.approx(0.01, rel=1e-3) for norm in seen)
    seen.clear()
    task_with(Watching).open(chosen, RunContext(0, 2)).train()
    assert max(seen) > 0.1


def test_schedules_see_progress_in_samples() -> None:
    seen: list[tuple[Progress, float | None]] = []

    class Watching(Schedule):
        name, summary, reference = "own", "", ""
        needs = frozenset({"gradient_norm"})

        def control(self, progress: Progress, signals: Any) -> Control:
            seen.append((progress, signals.gradient_norm))
            return Control(factor=0.5, group_factors={"late": 0.1})

    chosen = {
        "batch_size": 8,
        "accumulation_steps": 2,
        "optimizer": {"name": "sgd", "learning_rate": 0.2},
        "schedule": {"name": "own"},
    }
    run = task_with(Watching).open(chosen, RunContext(0, horizon=4))
    run.train(), run.train()
    first = [progress for progress, _ in seen[:3]]
    assert [progress.samples for progress in first] == [0, 16, 32]
    assert [progress.batch_size for progress in first] == [16, 16, 8]
    assert [progress.steps for progress, _ in seen] == [0, 1, 2, 3, 4, 5]
    assert {progress.horizon_samples for progress, _ in seen} == {160}
    assert seen[3][0].epochs == 1.0
    assert seen[0][1] is None
    assert all(norm is not None and norm > 0 for _, norm in seen[1:])
    assert {group["lr"] for group in run._stepper.optimizer.param_groups} == {0.1}


def test_the_horizon_in_steps_counts_short_batches() -> None:
    task = task_with(unit="step", batches_per_unit=3)
    chosen = {"batch_size": 16, "optimizer": {"name": "sgd"}}  # 16, 16, 8 samples an epoch
    run = task.open(chosen, RunContext(0, horizon=3))
    assert run._stepper._progress.horizon_samples == 120
    run.train()
    assert (run._feed.epoch, run._feed.batch, run.step) == (1, 0, 1)


def test_a_schedule_may_govern_the_batch_size() -> None:
    run = small_task(unit="epoch").open(
        configuration(schedule={"name": "growing"}, accumulation_steps=1), RunContext(0, 4)
    )
    sizes: list[int] = []
    original = run._feed.next

    def watched(size: int) -> Any:
        batch = original(size)
        sizes.append(batch.samples if batch else 0)
        return batch

    run._feed.next = watched  # type: ignore[method-assign]
    run.train()
    run.train()
    assert sizes[:4] == [8, 8, 8, 8]
    assert sizes[4:] == [10, 16, 16, 10]  # 42 samples an epoch, none left alone
    assert isinstance(run._stepper.parts.schedule, GrowingBatch)


def test_optimizers_get_the_loss_they_ask_for() -> None:
    given: list[float] = []

    class Polyak(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            given.append(closure())
            assert all(p.grad is not None for p in self.param_groups[0]["params"])
            return super().step()

    class WithLoss(Optimizer):
        name, summary, reference = "own", "", ""
        needs = frozenset({"loss"})

        def build(self, named_parameters: Any) -> torch.optim.Optimizer:
            return Polyak([p for _, p in named_parameters], lr=0.01)

    chosen = {"batch_size": 10, "accumulation_steps": 2, "optimizer": {"name": "own"}}
    metrics = task_with(WithLoss).open(chosen, RunContext(0, 2)).train()
    assert len(given) == 2
    assert all(isinstance(loss, float) for loss in given)
    assert sum(given) / 2 == pytest.approx(metrics["training_loss"], rel=1e-12)


def test_a_closure_evaluates_the_whole_step_again() -> None:
    losses: list[float] = []

    class Twice(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            assert all(p.grad is None for p in self.param_groups[0]["params"])
            losses.extend([float(closure()), float(closure())])
            return super().step()

    class TwoLooks(Optimizer):
        name, summary, reference = "own", "", ""
        needs = frozenset({"closure"})

        def build(self, named_parameters: Any) -> torch.optim.Optimizer:
            return Twice([p for _, p in named_parameters], lr=0.0)

    chosen = {"batch_size": 10, "accumulation_steps": 2, "optimizer": {"name": "own"}}
    metrics = task_with(TwoLooks).open(chosen, RunContext(0, 2)).train()
    assert losses[0] == losses[1]
    assert losses[2] == losses[3]
    assert (losses[0] + losses[2]) / 2 == pytest.approx(metrics["training_loss"], rel=1e-12)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_second_order_graphs_outlive_backward(accumulation: int) -> None:
    class Curvature(torch.optim.SGD):
        """Scales by the diagonal of a Hutchinson estimate."""

        @torch.enable_grad()
        def step(self, closure: Any = None) -> Any:
            parameters = self.param_groups[0]["params"]
            gradients = [p.grad for p in parameters]
            signs = [torch.ones_like(p) for p in parameters]
            products = torch.autograd.grad(gradients, parameters, signs)
            assert any(product.abs().sum() > 0 for product in products)
            with torch.no_grad():
                for p, product in zip(parameters, products, strict=True):
                    p.sub_(0.01 * p.grad / (1 + product.abs()))

    class SecondOrder(Optimizer):
        name, summary, reference = "own", "", ""
        needs = frozenset({"second_order"})

        def build(self, named_parameters: Any) -> torch.optim.Optimizer:
            return Curvature([p for _, p in named_parameters], lr=0.1)

    chosen = {
        "batch_size": 10,
        "accumulation_steps": accumulation,
        "optimizer": {"name": "own"},
    }
    task = task_with(SecondOrder, unit="step")
    run = task.open(chosen, RunContext(0, 5))
    curve = [run.train()["validation_loss"] for _ in range(5)]
    assert curve[-1] < curve[0]
    assert all(parameter.grad is None for parameter in run._model.parameters())
    halfway = task.open(chosen, RunContext(0, 5))
    for _ in range(3):
        halfway.train()
    thawed = task.open(chosen, RunContext(0, 5))
    thawed.thaw(halfway.freeze())
    assert [thawed.train()["validation_loss"] for _ in range(2)] == curve[3:]


def test_needs_that_are_not_supplied_are_refused() -> None:
    class Greedy(Optimizer):
        name, summary, reference = "own", "", ""
        needs = frozenset({"more_data"})

    with pytest.raises(PluginError, match="needs more_data"):
        task_with(Greedy).open({"optimizer": {"name": "own"}}, RunContext(0, 2))
    with pytest.raises(TaskError, match="mixed_precision: the optimizer 'closure'"):
        task_with(Closure).open(
            {"optimizer": {"name": "own"}, "mixed_precision": "float16"}, RunContext(0, 2)
        )


def test_adapters_are_called_around_each_step_and_add_their_loss() -> None:
    calls: list[str] = []

    class Watching(Adapter):
        name, summary, reference = "own", "", ""

        def apply(self, model: nn.Module, context: Any) -> nn.Module:
            batch = next(iter(context.calibration))
            assert batch.shape[1:] == (1, 6, 6)
            assert context.head == ("head",)
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(context.in_head(name))
            self.weight = model.head.weight
            return model

        def after_backward(self, progress: Progress) -> None:
            assert self.weight.grad is not None
            calls.append("backward")

        def after_step(self, progress: Progress) -> None:
            calls.append("step")

        def extra_loss(self) -> Tensor:
            calls.append("extra")
            return 100 * self.weight.square().sum()

    chosen = {"batch_size": 20, "optimizer": {"name": "sgd", "learning_rate": 1e-3}}
    task = task_with(Watching, head=("head",))
    run = task.open({**chosen, "adapter": {"name": "own"}}, RunContext(0, 2))
    before = run._model.head.weight.norm().item()
    run.train()
    assert calls == ["extra", "backward", "step"] * 2
    assert run._model.head.weight.norm().item() < 0.8 * before
    assert run.static() == {
        "parameters": sum(p.numel() for p in run._model.parameters()),
        "trainable_parameters": 12 * 3 + 3,
    }


def test_the_average_of_weights_is_what_is_judged() -> None:
    chosen = {"batch_size": 20, "optimizer": {"name": "sgd", "learning_rate": 0.05}}
    run = task_with().open({**chosen, "weight_average_decay": 0.99}, RunContext(0, 3))
    weights = [run._model.head.weight.detach().clone()]
    original = run._stepper.optimizer.step

    def watched(*arguments: Any) -> Any:
        result = original(*arguments)
        weights.append(run._model.head.weight.detach().clone())
        return result

    run._stepper.optimizer.step = watched  # type: ignore[method-assign]
    metrics = [run.train(), run.train()][-1]
    expected = weights[0]
    for step, weight in enumerate(weights[1:], start=1):
        decay = min(0.99, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight
    model = run.model()
    assert torch.allclose(model.head.weight, expected, rtol=1e-12)
    assert torch.equal(run._model.head.weight, weights[-1])
    inputs, targets = PLAIN.validation.inputs, PLAIN.validation.targets
    with torch.no_grad():
        loss = functional.cross_entropy(model(inputs), targets).item()
    assert metrics["validation_loss"] == pytest.approx(loss, rel=1e-12)


def test_schedule_free_optimizers_are_switched() -> None:
    class Switching(torch.optim.SGD):
        def eval(self) -> None:
            with torch.no_grad():
                for parameter in self.param_groups[0]["params"]:
                    parameter.mul_(1 / 3)

        def train(self) -> None:
            with torch.no_grad():
                for parameter in self.param_groups[0]["params"]:
                    parameter.mul_(3)  # not the exact inverse

    class Free(Optimizer):
        name, summary, reference = "own", "", ""

        def build(self, named_parameters: Any) -> torch.optim.Optimizer:
            return Switching([p for _, p in named_parameters], lr=0.1)

    run = task_with(Free).open({"optimizer": {"name": "own"}}, RunContext(0, 2))
    before = run._model.head.weight.detach().clone()
    model = run.model()
    assert torch.equal(run._model.head.weight, before)
    assert torch.equal(model.head.weight, before * (1 / 3))


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_computes_in_it_and_still_learns(precision: str) -> None:
    seen = set()

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.add(outputs.dtype)
        return functional.cross_entropy(outputs.float(), targets)

    task = small_task(loss=loss, unit="epoch", data=small_data(augment=None), pretrained=None)
    run = task.open(configuration(mixed_precision=precision), RunContext(0, 8))
    curve = [run.train()["validation_loss"] for _ in range(8)]
    assert seen == {getattr(torch, precision)}
    assert curve[-1] < 0.8 * curve[0]
    assert {p.dtype for p in run._model.parameters()} == {torch.float32}


def test_a_loss_that_is_not_finite_ends_the_run() -> None:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        value = functional.cross_entropy(outputs, targets)
        return value * math.inf if value.requires_grad and next(countdown) == 0 else value

    countdown = iter(range(3, -10, -1))
    run = task_with(loss=loss).open(
        {"batch_size": 8, "optimizer": {"name": "sgd"}}, RunContext(0, 2)
    )
    with pytest.raises(NotFinite, match="training loss is inf in epoch 1, after about 3"):
        run.train()

    def broken_later(outputs: Tensor, targets: Tensor) -> Tensor:
        value = functional.cross_entropy(outputs, targets)
        return value if value.requires_grad else value * math.nan

    run = task_with(loss=broken_later).open({"optimizer": {"name": "sgd"}}, RunContext(0, 2))
    with pytest.raises(NotFinite, match="validation loss is nan after epoch 1"):
        run.train()


def test_a_diverging_run_is_noticed() -> None:
    chosen = {"optimizer": {"name": "sgd", "learning_rate": 1e30}, "batch_size": 8}
    run = task_with().open(chosen, RunContext(0, 20))
    with pytest.raises(NotFinite):
        list(iter(run.train, None))


def test_same_seed_same_run_and_another_seed_another() -> None:
    def curve(seed: int) -> list[Any]:
        run = small_task(pretrained=None).open(configuration(), RunContext(seed, 4))
        return [run.train() for _ in range(3)]

    assert curve(1) == curve(1)
    assert curve(1) != curve(2)

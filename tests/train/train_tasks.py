"""Small tasks that have everything a checkpoint must hold: batch norm, dropout, augmentation that
draws from every global generator, and plugins with state. Importable from another process."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from autotune.plugins import Adapter, Control, Optimizer, Plugin, Schedule
from autotune.space import Float, Space
from autotune.train import Data, TorchTask
from autotune.train.torch_task import installed_plugin


class SmallNet(nn.Module):
    def __init__(self, width: int = 6, classes: int = 3) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten()
        )
        self.middle = nn.Linear(width * 16, 12)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(12, classes)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        return self.head(self.dropout(self.middle(self.body(images)).relu()))


def images(samples: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, 3, (samples,), generator=generator)
    noise = torch.randn(samples, 1, 6, 6, generator=generator)
    return noise + targets[:, None, None, None] - 1.0, targets


def jitter(inputs: Tensor, uniforms: Tensor, configuration: Mapping[str, Any]) -> Tensor:
    """Draws from all generators, which a run must therefore freeze."""
    noise = torch.randn(inputs.shape) * np.random.rand() * random.random()  # noqa: NPY002
    return inputs * (0.5 + uniforms[:, 0, None, None, None]) + 0.1 * noise


class GrowingBatch(Schedule):
    """Doubles the batch size from the fourth step on, and looks at the gradient's norm."""

    name, summary, reference = "growing", "Doubles the batch.", "none"
    needs = frozenset({"gradient_norm"})

    def __init__(self, configuration: Mapping[str, Any] | None = None) -> None:
        super().__init__(configuration)
        self.norms: list[float] = []

    def control(self, progress: Any, signals: Any) -> Control:
        if signals.gradient_norm is not None:
            self.norms.append(signals.gradient_norm)
        factor = 1 / (1 + sum(self.norms[-3:]))
        return Control(factor=factor, batch_size=16 if progress.steps >= 3 else 8)

    def state_dict(self) -> dict[str, Any]:
        return {"norms": self.norms}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.norms = list(state["norms"])


class SharpnessAware(torch.optim.SGD):
    """A two-step rule that evaluates the loss twice."""

    def step(self, closure: Any = None) -> Any:
        loss = closure()
        parameters = [p for group in self.param_groups for p in group["params"]]
        with torch.no_grad():
            pushes = [0.05 * p.grad / (p.grad.norm() + 1e-12) for p in parameters]
            for parameter, push in zip(parameters, pushes, strict=True):
                parameter.add_(push)
            closure()
            for parameter, push in zip(parameters, pushes, strict=True):
                parameter.sub_(push)
        super().step()
        return loss


class Closure(Optimizer):
    name, summary, reference = "closure", "Evaluates the loss twice.", "none"
    needs = frozenset({"closure"})

    @classmethod
    def space(cls) -> Space:
        return Space({"learning_rate": Float(1e-3, 1.0, log=True, default=0.05)})

    def build(self, named_parameters: Any) -> torch.optim.Optimizer:
        parameters = [parameter for _, parameter in named_parameters]
        return SharpnessAware(parameters, lr=self.configuration["learning_rate"], momentum=0.9)


class Counting(Adapter):
    """Counts its steps, and puts batch norm into eval mode after the second."""

    name, summary, reference = "counting", "Counts.", "none"
    steps = 0

    def apply(self, model: nn.Module, context: Any) -> nn.Module:
        self.norm, self.weight = model.body[1], model.middle.weight
        return model

    def after_step(self, progress: Any) -> None:
        self.steps += 1
        if self.steps == 2:
            self.norm.eval()
            self.norm.bias.requires_grad_(False)

    def extra_loss(self) -> Tensor:
        return 0.01 * self.steps * self.weight.square().sum()

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.steps = state["steps"]


OWN = {
    ("schedule", "growing"): GrowingBatch,
    ("optimizer", "closure"): Closure,
    ("adapter", "counting"): Counting,
}


def get_plugin(kind: str, name: str) -> type[Plugin]:
    return OWN.get((kind, name)) or installed_plugin(kind, name)


def pretrain(architecture: Mapping[str, Any]) -> dict[str, Tensor]:
    model = SmallNet(**architecture)
    inputs, targets = images(60, 7)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(5):
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    weights = model.state_dict()
    return {name: value for name, value in weights.items() if not name.startswith("head")}


def small_data(**further: Any) -> Data:
    arguments: dict[str, Any] = {
        "train": images(42, 0),
        "validation": images(30, 1),
        "test": images(30, 2),
        "shifted": {"far": (images(50, 3)[0] * 2, images(50, 3)[1])},
        "shifted_test": {"far": (images(50, 4)[0] * 2, images(50, 4)[1])},
        "stream_batch_size": 8,
        "augment": jitter,
        "augment_draws": 1,
    }
    return Data(**{**arguments, **further})


def build(architecture: Mapping[str, Any]) -> nn.Module:
    return SmallNet(**architecture)


def small_task(**further: Any) -> TorchTask:
    arguments: dict[str, Any] = {
        "model": build,
        "data": small_data(),
        "loss": functional.cross_entropy,
        "pretrained": pretrain,
        "head": ("head",),
        "unit": "step",
        "get_plugin": get_plugin,
    }
    return TorchTask(**{**arguments, **further})


def configuration(**further: Any) -> dict[str, Any]:
    return {
        "architecture": {"width": 4},
        "batch_size": 8,
        "accumulation_steps": 2,
        "gradient_clip_norm": 1.0,
        "weight_average_decay": 0.9,
        "optimizer": {"name": "adamw", "learning_rate": 0.01},
        "schedule": {"name": "cosine"},
        **further,
    }

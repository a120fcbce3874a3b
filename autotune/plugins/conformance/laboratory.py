"""Small models and data that plugins are tried on, and plain companions to try them with.

The models hold what tends to go wrong when a run is frozen: batch norm (buffers), dropout (a
random generator), a parameter without gradient, several kinds of layers; the data are augmented.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from autotune.plugins.base import ModelInfo, Plugin
from autotune.plugins.training import (
    Adapter,
    AdapterContext,
    Control,
    Optimizer,
    Progress,
    Schedule,
    Signals,
)
from autotune.train import Data, TorchTask

CLASSES = 3
HEAD = ("classifier",)


class Images(nn.Module):
    """Convolution, batch norm, dropout, linear layers, and a learned scale (a parameter
    without dimensions); logits of shape (batch, CLASSES) for images (batch, 2, 6, 6)."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.hidden = nn.Linear(16, 12)
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.dropout = nn.Dropout(0.25)
        self.classifier = nn.Linear(12, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        features = functional.relu(self.norm(self.convolution(images)))
        pooled = functional.adaptive_avg_pool2d(features, 2).flatten(1)
        return self.classifier(self.dropout(self.scale * functional.relu(self.hidden(pooled))))


class Tokens(nn.Module):
    """Embedding, attention, layer norm, linear layers; logits of shape (batch, CLASSES) for
    token indices (batch, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.hidden = nn.Linear(8, 12)
        self.dropout = nn.Dropout(0.25)
        self.classifier = nn.Linear(12, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits."""
        embedded = self.embedding(tokens)
        attended, _ = self.attention(embedded, embedded, embedded, need_weights=False)
        pooled = self.norm(embedded + attended).mean(dim=1)
        return self.classifier(self.dropout(functional.relu(self.hidden(pooled))))


@dataclass(frozen=True)
class Bench:
    """One model with data to try plugins on.

    Args:
        name: of the bench, e.g. ``images``.
        model: makes the model, freshly initialised from torch's global generator.
        inputs: makes that many random inputs from a generator, given their labels.
    """

    name: str
    model: Callable[[], nn.Module]
    inputs: Callable[[Tensor, torch.Generator], Tensor]

    def examples(self, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """Inputs that tell something about their labels, and the labels (count,)."""
        generator = torch.Generator().manual_seed(seed)
        labels = torch.arange(count) % CLASSES
        return self.inputs(labels, generator), labels

    def info(self) -> ModelInfo:
        """What `Plugin.supports` is told: pretrained, a classifier, with a shifted stream."""
        model = self.model()
        layers = [type(module).__name__ for module in model.modules()]
        return ModelInfo(
            pretrained=True,
            layer_types={name: layers.count(name) for name in layers},
            parameter_shapes={name: tuple(p.shape) for name, p in model.named_parameters()},
            head=HEAD,
        )


def _images(labels: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(len(labels), 2, 6, 6, generator=generator)
    return 0.5 * noise + (labels.float() - 1)[:, None, None, None]


def _tokens(labels: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 4, (len(labels), 5), generator=generator) + 3 * labels[:, None]


BENCHES = (Bench("images", Images, _images), Bench("tokens", Tokens, _tokens))


@cache
def pretrained(name: str) -> dict[str, Tensor]:
    """Weights of a bench's model after a little training; its head is left out."""
    bench = next(bench for bench in BENCHES if bench.name == name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = bench.model()
        inputs, labels = bench.examples(24, seed=1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(10):
            optimizer.zero_grad()
            functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
    return {n: t for n, t in model.state_dict().items() if not n.startswith(HEAD)}


def trained_model(bench: Bench, seed: int = 0) -> nn.Module:
    """The bench's model with its pretrained weights, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = bench.model()
    model.load_state_dict(pretrained(bench.name), strict=False)
    return model.eval()


def augment(inputs: Tensor, uniforms: Tensor, configuration: Mapping[str, Any]) -> Tensor:
    """Images get noise of their own; of tokens one is replaced."""
    if inputs.is_floating_point():
        return inputs + 0.2 * (uniforms[:, :1, None, None] - 0.5)
    changed = inputs.clone()
    place = (uniforms[:, :1] * inputs.shape[1]).long()
    return changed.scatter(1, place, (uniforms[:, 1:2] * 11).long())


def task(bench: Bench, plugin: type[Plugin]) -> TorchTask:
    """Counts in batches, so that it can be frozen at every one, in the middle of accumulating
    gradients. It finds the plugin under check, installed or not, and its companions."""
    known = {**COMPANIONS, plugin.kind: plugin}
    return TorchTask(
        model=lambda architecture: bench.model(),
        data=Data(
            train=bench.examples(26, seed=2),
            validation=bench.examples(12, seed=3),
            test=bench.examples(6, seed=4),
            shifted={"noisy": bench.examples(12, seed=5)},
            augment=augment,
            augment_draws=2,
        ),
        loss=functional.cross_entropy,
        pretrained=lambda architecture: pretrained(bench.name),
        head=HEAD,
        unit="step",
        get_plugin=lambda kind, name: known[kind],
    )


class PlainDescent(Optimizer):
    """Stochastic gradient descent with momentum."""

    name: ClassVar[str] = "conformance-descent"
    summary: ClassVar[str] = "Companion of the conformance check."
    reference: ClassVar[str] = "Polyak 1964"

    def build(self, named_parameters: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """Momentum 0.9, rate 0.05."""
        return torch.optim.SGD([p for _, p in named_parameters], lr=0.05, momentum=0.9)


class PlainRate(Schedule):
    """The base rate throughout."""

    name: ClassVar[str] = "conformance-rate"
    summary: ClassVar[str] = "Companion of the conformance check."
    reference: ClassVar[str] = "none"

    def control(self, progress: Progress, signals: Signals) -> Control:
        """Factor one."""
        return Control()


class PlainTraining(Adapter):
    """Every parameter is trained."""

    name: ClassVar[str] = "conformance-training"
    summary: ClassVar[str] = "Companion of the conformance check."
    reference: ClassVar[str] = "none"
    trains_base: ClassVar[bool] = True

    def apply(self, model: nn.Module, context: AdapterContext) -> nn.Module:
        """The model as it is."""
        return model.requires_grad_(True)


COMPANIONS: dict[str, type[Plugin]] = {
    plugin.kind: plugin for plugin in (PlainDescent, PlainRate, PlainTraining)
}


def trial(plugin: type[Plugin], configuration: Mapping[str, Any], bench: Bench) -> dict[str, Any]:
    """A training configuration with the plugin under check at its place."""
    chosen: dict[str, Any] = {kind: {"name": p.name} for kind, p in COMPANIONS.items()}
    chosen[plugin.kind] = {"name": plugin.name, **configuration}
    # The architecture tells the benches' pretrained weights apart in their common folder.
    architecture = {"bench": bench.name}
    return {**chosen, "architecture": architecture, "batch_size": 4, "accumulation_steps": 2}

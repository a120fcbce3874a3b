"""A small network and the weights that the training loop takes it through."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from autotune.train import Data, RunContext, TorchTask
from references.problems import Weights

SAMPLES = 24
SEED = 3
NAMES = ("input", "hidden", "output")


class Network(nn.Module):
    """Three layers with biases in float64, of as many hidden units as the architecture says."""

    def __init__(self, architecture: Mapping[str, Any]) -> None:
        super().__init__()
        width = architecture["width"]
        self.input = nn.Linear(7, width).double()
        self.hidden = nn.Linear(width, width).double()
        self.output = nn.Linear(width, 4).double()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.output(torch.tanh(self.hidden(torch.tanh(self.input(inputs)))))


def samples() -> tuple[Tensor, Tensor]:
    """All inputs and targets; each batch is all of them."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(SAMPLES, 7, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(4, (SAMPLES,), generator=generator)


def trained(configuration: Mapping[str, Any], steps: int) -> Iterator[Weights]:
    """The weights of the training loop before the first step and after each."""
    task = TorchTask(
        model=Network,
        data=Data(samples(), samples()),
        loss=functional.cross_entropy,
        unit="step",
    )
    run = task.open(configuration, RunContext(seed=SEED, horizon=steps))
    for step in range(steps + 1):
        if step:
            run.train()
        yield {name: p.detach().clone() for name, p in run.model().named_parameters()}


def leaves(weights: Weights) -> dict[str, nn.Parameter]:
    """Trainable copies."""
    return {name: nn.Parameter(weight.clone()) for name, weight in weights.items()}


def logits(weights: Mapping[str, Tensor], inputs: Tensor, multiplier: float = 1.0) -> Tensor:
    """What the network makes of the inputs, its last layer's product multiplied."""
    values = inputs
    for name in NAMES[:-1]:
        values = torch.tanh(values @ weights[f"{name}.weight"].T + weights[f"{name}.bias"])
    return multiplier * values @ weights["output.weight"].T + weights["output.bias"]

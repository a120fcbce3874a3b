"""Training at a batch size for which the rate is not meant, with torch's SGD at a scaled rate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn import functional

from references.problems import Weights
from references.record import Pairs
from references.scalings.training import SAMPLES, leaves, logits, samples, trained

SGD: dict[str, Any] = {
    "name": "sgd",
    "learning_rate": 0.05,
    "momentum": 0.9,
    "nesterov": False,
    "weight_decay": 0.0,
}


def stepped(start: Weights, rate: float, steps: int) -> Iterator[Weights]:
    parameters = leaves(start)
    optimizer = torch.optim.SGD(parameters.values(), lr=rate, momentum=SGD["momentum"])
    inputs, targets = samples()
    for step in range(steps + 1):
        if step:
            optimizer.zero_grad()
            functional.cross_entropy(logits(parameters, inputs), targets).backward()
            optimizer.step()
        yield {name: p.detach().clone() for name, p in parameters.items()}


def followed_at(rule: str, factor: Callable[[float], float]) -> Pairs:
    """Batches of all samples, whole and accumulated, for a rate meant for fewer or for more."""

    def pairs(steps: int) -> Iterator[tuple[str, list[Weights], list[Weights], Weights]]:
        for reference in (6, 24, 48):
            for accumulated in (1, 2):
                configuration = {
                    "optimizer": SGD,
                    "batch_size": SAMPLES // accumulated,
                    "accumulation_steps": accumulated,
                    "architecture": {"width": 9},
                    "learning_rate_scaling": rule,
                    "reference_batch_size": reference,
                }
                batches = list(trained(configuration, steps * accumulated))
                ours = batches[::accumulated]
                rate = SGD["learning_rate"] * factor(SAMPLES / reference)
                label = f"meant for {reference}, {accumulated} batches a step"
                yield label, ours, list(stepped(ours[0], rate, steps)), ours[0]

    return pairs

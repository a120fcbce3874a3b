"""Rates that carry over between widths, from table 8 of Tensor Programs V.

Written by someone who had not seen the training loop's code for it, nor what stood here before.
The table's form has a multiplier on the output; the loop has that of table 3, without one. Both
are the same function after every step, their output weights differ by the multiplier.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from references.problems import Weights
from references.record import Scaling
from references.scalings.training import leaves, logits, samples, trained

BASE = 6
"""The width for which rates are meant."""

SGD: dict[str, Any] = {
    "name": "sgd",
    "learning_rate": 0.1,
    "momentum": 0.9,
    "nesterov": False,
    "weight_decay": 0.01,
}
ADAMW: dict[str, Any] = {
    "name": "adamw",
    "learning_rate": 0.01,
    "beta1": 0.9,
    "beta2": 0.99,
    "epsilon": 1e-30,  # which no table scales
    "weight_decay": 0.1,
}


def widths(name: str, ratio: float) -> tuple[float, float]:
    """By how much the fan-in and the fan-out of a layer exceed those of the base model."""
    return {"input": (1.0, ratio), "hidden": (ratio, ratio), "output": (ratio, 1.0)}[name]


def initial(standard: Weights, ratio: float) -> Weights:
    """The weights that muP starts with, of those that torch's layers start with.

    Torch gives weights and biases a variance of 1 / fan_in. The table asks for that of the
    weights of the input and the hidden layers, and for a variance without the width for biases
    and the output layer's weights.
    """
    result = {}
    for path, weight in standard.items():
        layer, kind = path.split(".")
        fan_in, _ = widths(layer, ratio)
        constant = kind == "bias" or layer == "output"
        result[path] = weight * fan_in**0.5 if constant else weight.clone()
    return result


def sgd_rate(path: str, ratio: float) -> float:
    """Row SGD LR: fan_out for input weights and biases, fan_in for the output layer's weights,
    and fan_out / fan_in, which is 1 where both widen alike, for hidden weights."""
    layer, kind = path.split(".")
    fan_in, fan_out = widths(layer, ratio)
    if kind == "bias" or layer == "input":
        return fan_out
    return fan_in if layer == "output" else fan_out / fan_in


def adam_rate(path: str, ratio: float) -> float:
    """Row Adam LR: 1 / fan_in for hidden weights, 1 for all others."""
    return 1.0 / widths("hidden", ratio)[0] if path == "hidden.weight" else 1.0


def groups(
    parameters: Mapping[str, nn.Parameter],
    chosen: Mapping[str, Any],
    factor: Callable[[str], float],
) -> list[dict[str, Any]]:
    """A group a parameter. What a step takes off the weight, rate times decay, stays as it is at
    the base width."""
    return [
        {
            "params": [parameter],
            "lr": chosen["learning_rate"] * factor(path),
            "weight_decay": chosen["weight_decay"] / factor(path) if parameter.ndim > 1 else 0.0,
        }
        for path, parameter in parameters.items()
    ]


def stepped(
    start: Weights, chosen: Mapping[str, Any], ratio: float, steps: int
) -> Iterator[Weights]:
    """The weights under torch's optimizers, the logits divided by the width's ratio; those of the
    output layer as they act."""
    parameters = leaves(start)
    optimizer: torch.optim.Optimizer
    if chosen["name"] == "sgd":
        grouped = groups(parameters, chosen, lambda path: sgd_rate(path, ratio))
        optimizer = torch.optim.SGD(grouped, momentum=chosen["momentum"])
    else:
        grouped = groups(parameters, chosen, lambda path: adam_rate(path, ratio))
        betas = (chosen["beta1"], chosen["beta2"])
        optimizer = torch.optim.AdamW(grouped, betas=betas, eps=chosen["epsilon"])
    inputs, targets = samples()
    for step in range(steps + 1):
        if step:
            optimizer.zero_grad()
            outputs: Tensor = logits(parameters, inputs, multiplier=1.0 / ratio)
            functional.cross_entropy(outputs, targets).backward()
            optimizer.step()
        found = {name: p.detach().clone() for name, p in parameters.items()}
        found["output.weight"] /= ratio
        yield found


def pairs(steps: int) -> Iterator[tuple[str, list[Weights], list[Weights], Weights]]:
    """Two optimizers at, above and below the base width. Distances are measured from the weights
    of the standard parametrisation, so that the start counts too."""
    for chosen in (SGD, ADAMW):
        for width in (BASE, 24, 3):
            ratio = width / BASE
            plain = {"optimizer": chosen, "architecture": {"width": width}}
            standard = next(iter(trained(plain, 1)))
            carried = {**plain, "reference_architecture": {"width": BASE}}
            ours = list(trained(carried, steps))
            theirs = list(stepped(initial(standard, ratio), chosen, ratio, steps))
            yield f"{chosen['name']}, width {width} for {BASE}", ours, theirs, standard


REFERENCE = Scaling(
    source="Yang et al. 2022 (arXiv 2203.03466), table 8; Microsoft's mup 1.0.0 begins with and "
    "takes these steps",
    pairs=pairs,
    differences="Decay is not in the table: as in mup, what a step takes off a weight does not "
    "depend on its width.",
)

"""muP in the other of the paper's forms: with a multiplier on the output (table 8), as Microsoft's
`mup` has it (1.0.0 takes the same steps). The training loop has the form without (table 3): the
two are the same function at every step, their output weights differ by the multiplier."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn import functional

from references.problems import Weights
from references.record import Scaling
from references.scalings.training import leaves, logits, samples, trained

BASE = 8
SGD = {"name": "sgd", "learning_rate": 0.2, "momentum": 0.9, "nesterov": False, "weight_decay": 0.0}
ADAMW = {"name": "adamw", "learning_rate": 0.01, "beta1": 0.9, "beta2": 0.99, "epsilon": 1e-30}
OPTIMIZERS: tuple[dict[str, Any], ...] = (
    SGD,
    {**SGD, "weight_decay": 0.03},
    {**ADAMW, "weight_decay": 0.0},
    {**ADAMW, "weight_decay": 0.1},
)


def optimizer_of(
    h: dict[str, Any], parameters: dict[str, torch.nn.Parameter], wider: float
) -> torch.optim.Optimizer:
    """Table 8's rates; the decay by a step, rate times decay, is the same at every width."""
    adam = h["name"] == "adamw"
    hidden = 1 / wider if adam else 1.0
    others = 1.0 if adam else wider
    groups = []
    for name, parameter in parameters.items():
        factor = hidden if name == "hidden.weight" else 1.0 if name == "output.bias" else others
        decay = h["weight_decay"] / factor if name.endswith("weight") else 0.0
        groups.append(
            {"params": [parameter], "lr": h["learning_rate"] * factor, "weight_decay": decay}
        )
    if adam:
        return torch.optim.AdamW(groups, betas=(h["beta1"], h["beta2"]), eps=h["epsilon"])
    return torch.optim.SGD(groups, momentum=h["momentum"])


def followed(h: dict[str, Any], plain: Weights, wider: float, steps: int) -> Iterator[Weights]:
    """The weights in the loop's form, from those that a plain model of the width begins with:
    the output's begin with a spread that does not depend on the width's growth."""
    start = dict(plain)
    start["output.weight"] = start["output.weight"] * wider**0.5
    parameters = leaves(start)
    optimizer = optimizer_of(h, parameters, wider)
    inputs, targets = samples()
    for step in range(steps + 1):
        if step:
            optimizer.zero_grad()
            functional.cross_entropy(logits(parameters, inputs, 1 / wider), targets).backward()
            optimizer.step()
        found = {name: p.detach().clone() for name, p in parameters.items()}
        found["output.weight"] /= wider
        yield found


def pairs(steps: int) -> Iterator[tuple[str, list[Weights], list[Weights], Weights]]:
    for h in OPTIMIZERS:
        for width in (BASE, 4 * BASE, 12 * BASE):
            configuration = {
                "optimizer": h,
                "batch_size": 64,
                "architecture": {"width": width},
            }
            (plain,) = trained(configuration, 0)
            ours = list(
                trained({**configuration, "reference_architecture": {"width": BASE}}, steps)
            )
            theirs = list(followed(h, plain, width / BASE, steps))
            yield f"{h['name']}, decay {h['weight_decay']}, width {width}", ours, theirs, plain


REFERENCE = Scaling(
    source="Yang et al. 2022 (arXiv 2203.03466), table 8",
    pairs=pairs,
    differences="Decay is not in the tables; as in mup, what a step decays does not depend on "
    "width. The paper and mup begin biases with a spread that does not depend on width; here "
    "they begin as torch begins them.",
)

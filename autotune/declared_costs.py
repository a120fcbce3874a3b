"""What units of a study are declared to cost, before any was timed.

Of an optimizer that does more than forward and backward passes ask for (products with matrices,
decompositions, further gradients) the plugin declares the arithmetic of a step; here it becomes a
unit's cost relative to one of passes alone. It is a first guess: a processor does the same
arithmetic at very different speeds, and measured seconds overrule it (`autotune.decide.cost`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from autotune.plugins import ModelInfo, Optimizer, StepCost
from autotune.plugins.discovery import Catalogue
from autotune.space import Choice, Space

BATCH = 32
"""Samples a forward pass where the space does not say (as `TorchTask`)."""


def declared_costs(
    space: Space, info: ModelInfo, catalogue: Catalogue
) -> dict[str, dict[str, float]]:
    """By each choice of optimizers and its options, a unit's cost as a multiple of its forward
    and backward passes: at the default hyperparameters, batch and architecture."""
    default = space.default()
    samples = default.get("batch_size", BATCH) * default.get("accumulation_steps", 1)
    return {
        key: {
            name: relative_cost(_step_cost(catalogue, name, options, info), info, samples)
            for name, options in entry.options.items()
        }
        for key, entry in space.parameters.items()
        if isinstance(entry, Choice) and entry.kind == "optimizer"
    }


def relative_cost(cost: StepCost, info: ModelInfo, samples: float) -> float:
    """A step's work over that of one forward and backward pass of so many samples, of which the
    backward one counts twice; each weight is used at least once a sample."""
    weights = sum(math.prod(shape) for shape in info.parameter_shapes.values())
    forward = max(info.forward_flops, 2.0 * weights, 1.0)
    return cost.passes + cost.flops / (3.0 * forward * samples)


def _step_cost(catalogue: Catalogue, name: str, options: Space, info: ModelInfo) -> StepCost:
    plugin: Any = catalogue.get("optimizer", name)
    assert issubclass(plugin, Optimizer), "the catalogue checks a plugin's base class"
    shapes: Mapping[str, tuple[int, ...]] = info.parameter_shapes
    try:
        return plugin(options.default()).step_cost(shapes)
    except Exception:  # of any kind: a guess that a third party's plugin owes is no reason to stop
        return StepCost()

"""One local move of one parameter, for searches that go from neighbour to neighbour."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from autotune.space.choices import Choice
from autotune.space.codec import Branch, Configuration, Leaf, Node
from autotune.space.errors import MISSING
from autotune.space.parameters import Categorical, Integer, same


def moved_place(parameter: Any, place: float, rng: np.random.Generator) -> float:
    """Another place of a parameter, near for numbers; `place` if the draw did not move it."""
    size = parameter.size
    if isinstance(parameter, Categorical | Choice):
        others = [i for i in range(size) if i != min(int(place * size), size - 1)]
        return (int(rng.choice(others)) + 0.5) / size
    step = 0.2 * float(rng.standard_normal())
    near = min(1.0, max(0.0, place + step))
    value, moved = parameter.decode(place), parameter.decode(near)
    if moved == value and size < 1000:
        # The step was shorter than the distance between values.
        index = min(int(place * size), size - 1) + (1 if step > 0 else -1)
        if isinstance(parameter, Integer):
            moved = value + (parameter.step or 1) * (1 if step > 0 else -1)
            moved = value if parameter.canonical(moved) is MISSING else moved
        elif 0 <= index < size:
            return (index + 0.5) / size
    return place if moved == value else parameter.encode(moved)


def keep_unmoved(
    nodes: Iterable[Node],
    moved: Configuration,
    unmoved: Mapping[str, Any],
    original: Mapping[str, Any],
) -> None:
    """Put the original's own values into `moved` where it equals `unmoved`, which is the original
    encoded and decoded: that changes the last digits of a number that a person wrote, and would
    make another configuration of it."""
    for node in nodes:
        key = node.key
        if isinstance(node, Leaf):
            if same(moved[key], unmoved[key]):
                moved[key] = original[key]
        elif not isinstance(node, Branch):
            keep_unmoved(node.nodes, moved[key], unmoved[key], original[key])
        elif (name := moved[key]["name"]) == unmoved[key]["name"]:
            keep_unmoved(node.options[name], moved[key], unmoved[key], original[key])

"""Fits a study's search space into the network's slots."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autotune.pfn.spaces import SLOTS
from autotune.plugins.search import FloatArray
from autotune.space import Categorical, Choice, Space
from autotune.space import Slot as Dimension


@dataclass(frozen=True)
class Layout:
    """Which dimension of the space goes into which slot.

    Dimensions of different options of one choice are never active together, and share a slot.

    Args:
        group: of each dimension, shape (dimensions,).
        levels: of each dimension, the number of its categories, 0 if it is a number.
        groups: how many there are; more than `SLOTS` are chosen from by importance.
    """

    group: np.ndarray
    levels: np.ndarray
    groups: int


def layout(space: Space) -> Layout:
    """The layout of a resolved space."""
    members: list[list[Dimension]] = []
    group = []
    for dimension in space.slots:
        place = next(
            (
                index
                for index, others in enumerate(members)
                if all(_exclusive(dimension, other) for other in others)
            ),
            len(members),
        )
        if place == len(members):
            members.append([])
        members[place].append(dimension)
        group.append(place)
    levels = [
        int(slot.parameter.size) if isinstance(slot.parameter, Categorical | Choice) else 0
        for slot in space.slots
    ]
    return Layout(np.array(group, dtype=np.intp), np.array(levels, dtype=np.intp), len(members))


def _exclusive(one: Dimension, other: Dimension) -> bool:
    options = dict(one.conditions)
    return any(options.get(path, option) != option for path, option in other.conditions)


def filled(
    plan: Layout, encoded: FloatArray, mask: np.ndarray, kept: np.ndarray | None = None
) -> np.ndarray:
    """What the network sees of configurations.

    Args:
        encoded, mask: as the space encodes them, (configurations, dimensions).
        kept: the groups that have a slot, ascending, at most `SLOTS`; the first ones, if None.

    Returns:
        Value, activity and whether it is categorical, (configurations, SLOTS, 3), float32.
    """
    seen = np.zeros((len(encoded), SLOTS, 3), dtype=np.float32)
    slot = np.full(plan.groups, -1)
    chosen = np.arange(min(plan.groups, SLOTS)) if kept is None else kept
    slot[chosen] = np.arange(len(chosen))
    for dimension, group in enumerate(plan.group):
        place = slot[group]
        if place < 0:
            continue
        active = mask[:, dimension]
        value, levels = encoded[:, dimension], int(plan.levels[dimension])
        if levels:
            value = np.minimum((value * levels).astype(int), levels - 1) / max(levels - 1, 1)
            seen[active, place, 2] = 1.0
        seen[active, place, 0] = value[active]
        seen[active, place, 1] = 1.0
    return seen


def important(
    plan: Layout, encoded: FloatArray, mask: np.ndarray, scores: FloatArray
) -> np.ndarray:
    """The `SLOTS` groups that explain most of the scores, ascending.

    A group's importance is the share of the variance of the scores' ranks that lies between
    four equal bins of its values (categories: between them); inactive ones are a bin of their
    own. Of equals, and while there are fewer than eight scores, the earlier ones are kept.

    Args:
        scores: one a configuration, (configurations,), finite.
    """
    if plan.groups <= SLOTS or len(scores) < 8:
        return np.arange(min(plan.groups, SLOTS))
    ranks = np.argsort(np.argsort(scores, kind="stable"), kind="stable").astype(float)
    explained = np.zeros(plan.groups)
    for group in range(plan.groups):
        label = np.zeros(len(scores))
        for dimension in np.flatnonzero(plan.group == group):
            bins = int(plan.levels[dimension]) or 4
            code = np.minimum((encoded[:, dimension] * bins).astype(int), bins - 1)
            label = np.where(mask[:, dimension], 1 + dimension * 1000 + code, label)
        names, index = np.unique(label, return_inverse=True)
        count = np.bincount(index)
        means = np.bincount(index, ranks) / count
        # Less what as many bins would explain by chance.
        between = float((count * (means - ranks.mean()) ** 2).sum())
        explained[group] = between - (len(names) - 1) * ranks.var()
    return np.sort(np.argsort(-explained, kind="stable")[:SLOTS])

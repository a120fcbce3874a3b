"""Ranks candidates by fronts over several objectives."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from autotune.pareto import non_dominated
from autotune.plugins.search import Objective

ENOUGH = 200
"""Fronts are peeled until so many are ranked: nobody looks further, and the peeling of thousands
costs seconds. The rest follow by the primary objective."""


def ranked(
    rows: Sequence[Mapping[str, float]],
    objectives: Sequence[Objective],
    primary: Objective,
    violations: Sequence[float] = (),
) -> list[int]:
    """Indices of `rows` (metrics by name), most promising first: by non-dominated fronts, within
    a front by the primary objective.

    Args:
        violations: of the constraints, by row; none where there are no constraints. What violates
            any comes after all others, the least violating first.

    An objective that no row has is not looked at; in one that some have, the others, and those
    where it is NaN, count as worst.
    """
    if any(violations):
        kept = [index for index, much in enumerate(violations) if much == 0]
        inner = ranked([rows[index] for index in kept], objectives, primary)
        beyond = [index for index, much in enumerate(violations) if much > 0]
        beyond.sort(key=lambda i: (violations[i], _score(rows[i], primary), i))
        return [*(kept[index] for index in inner), *beyond]
    names = [o for o in objectives if any(o.name in row for row in rows)]
    if not rows or not names:
        return list(range(len(rows)))
    if len(names) == 1:
        return sorted(range(len(rows)), key=lambda i: (_score(rows[i], names[0]), i))
    scores = np.array([[_score(row, o) for o in names] for row in rows])
    best_first = sorted(range(len(rows)), key=lambda i: (_score(rows[i], primary), i))
    order: list[int] = []
    left = list(best_first)
    while left and len(order) < ENOUGH:
        on_front = non_dominated(scores[left])
        order += [i for i, good in zip(left, on_front, strict=True) if good]
        left = [i for i, good in zip(left, on_front, strict=True) if not good]
    return order + left


def _score(row: Mapping[str, float], objective: Objective) -> float:
    value = objective.sign * row.get(objective.name, math.nan)
    return math.inf if math.isnan(value) else value

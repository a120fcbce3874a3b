"""A rung that ranks by several objectives: by non-dominated fronts, and within a front by how much
a trial adds to those before it.

Ranking thousands of trials anew for every decision would cost seconds. Only the best 1/`reduction`
ever matter, so only their fronts are kept, and a trial that arrives moves those it dominates one
front down and no others (Li et al. 2014, "Efficient Non-domination Level Update Approach for
Steady-State Evolutionary Multiobjective Optimization").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from autotune.pareto import BoolArray, FloatArray, hypervolume, normalised

REFERENCE = 1.1
"""The reference point of hypervolume contributions, in every objective scaled to [0, 1] over the
front: a little behind its worst, so that the ends of a front contribute too."""

Order = Callable[[FloatArray], list[int]]
"""Indices of a front's points (points, objectives), those that should go on first first."""


@dataclass
class _Front:
    """Trials of which none dominates another.

    Args:
        numbers: of the trials, ascending.
        values: theirs, (trials, objectives), less is better.
        paused: those that were not promoted.
        order: of all, if it is known.
    """

    numbers: list[int] = field(default_factory=list)
    values: FloatArray = field(default_factory=lambda: np.empty((0, 0)))
    paused: set[int] = field(default_factory=set)
    order: list[int] | None = None


class FrontRung:
    """Ranks by fronts. Where the first objective is not finite, a trial stands behind all and is
    never promoted; in another, it has the worst value there is.

    Args:
        reduction: one in so many may go on.
        order: of the trials within a front.
    """

    def __init__(self, reduction: int, order: Order) -> None:
        self._reduction = reduction
        self._order = order
        self._count = 0
        self._covered = 0
        self._paused: set[int] = set()
        self._fronts: list[_Front] = []
        self._rest: dict[int, FloatArray] = {}

    def enter(self, number: int, values: Sequence[float]) -> None:
        """A trial got here with these values."""
        self._count += 1
        if math.isfinite(values[0]):
            point = np.array([v if math.isfinite(v) else math.inf for v in values])
            self._paused.add(number)
            self._place(number, point)
        self._cover()

    def fail(self, number: int) -> None:
        """It only counts."""
        self._count += 1
        self._cover()

    def leave(self, number: int) -> None:
        """It is promoted, or failed since."""
        self._paused.discard(number)
        for front in self._fronts:
            front.paused.discard(number)

    def promotable(self) -> int | None:
        """The first paused trial among those of the ranking that may go on."""
        left = self._count // self._reduction
        for front in self._fronts:
            if left <= 0:
                return None
            if front.paused:
                for number in self._ordered(front)[:left]:
                    if number in front.paused:
                        return number
            left -= len(front.numbers)
        return None

    def _place(self, number: int, point: FloatArray) -> None:
        """Insert into the first front of which no trial dominates it."""
        low, high = 0, len(self._fronts)
        while low < high:
            middle = (low + high) // 2
            if _dominates(self._fronts[middle].values, point).any():
                low = middle + 1
            else:
                high = middle
        numbers, values = [number], point[None, :]
        for front in self._fronts[low:]:
            numbers, values = self._join(front, numbers, values)
            if not numbers:
                break
        self._rest.update(zip(numbers, values, strict=True))

    def _join(
        self, front: _Front, numbers: list[int], values: FloatArray
    ) -> tuple[list[int], FloatArray]:
        """Adds trials to a front; those that they dominate leave it, and are returned."""
        beaten = np.zeros(len(front.numbers), dtype=bool)
        for point in values:
            beaten |= _dominated(front.values, point)
        gone = [n for n, out in zip(front.numbers, beaten, strict=True) if out]
        gone_values = front.values[beaten]
        kept = [n for n, out in zip(front.numbers, beaten, strict=True) if not out]
        self._fill(front, [*kept, *numbers], np.vstack([front.values[~beaten], values]))
        return gone, gone_values

    def _fill(self, front: _Front, numbers: list[int], values: FloatArray) -> None:
        self._covered += len(numbers) - len(front.numbers)
        by_number = sorted(range(len(numbers)), key=numbers.__getitem__)
        front.numbers = [numbers[index] for index in by_number]
        front.values = values[by_number]
        front.paused = self._paused.intersection(numbers)
        front.order = None

    def _cover(self) -> None:
        """Peels fronts off the rest until they hold all that may go on."""
        while self._covered < self._count // self._reduction and self._rest:
            numbers, values = list(self._rest), np.array(list(self._rest.values()))
            best = _best_front(values)
            front = _Front()
            self._fill(front, [numbers[index] for index in best], values[best])
            self._fronts.append(front)
            for number in front.numbers:
                del self._rest[number]

    def _ordered(self, front: _Front) -> list[int]:
        if front.order is None:
            found = [0] if len(front.numbers) == 1 else self._order(front.values)
            front.order = [front.numbers[index] for index in found]
        return front.order


def _dominates(points: FloatArray, point: FloatArray) -> BoolArray:
    """Which of the points (points, objectives) dominate the one."""
    return np.asarray((points <= point).all(axis=1) & (points < point).any(axis=1))


def _dominated(points: FloatArray, point: FloatArray) -> BoolArray:
    """Which of the points the one dominates."""
    return np.asarray((points >= point).all(axis=1) & (points > point).any(axis=1))


def _best_front(values: FloatArray) -> list[int]:
    """Indices of the points that no other dominates. Of those left, the first in lexicographic
    order is never dominated; what it dominates is dropped."""
    left = np.lexsort(values.T[::-1])
    found = []
    while len(left):
        found.append(int(left[0]))
        left = left[1:][~_dominated(values[left[1:]], values[left[0]])]
    return found


# --- within a front ---------------------------------------------------------------------------


def _scaled(values: FloatArray) -> FloatArray:
    """Each objective scaled to [0, 1] over the front; what is not finite is at the reference."""
    return np.nan_to_num(normalised(values), nan=REFERENCE)


def epsilon_net(values: FloatArray) -> list[int]:
    """The best in the first objective, then always the point farthest from all before it
    (Clarkson 2006, "Nearest-Neighbor Searching and Metric Space Dimensions"), each objective scaled
    to [0, 1] over the front: a front cut anywhere is covered evenly. Of equals the first counts."""
    points = _scaled(values)
    order = [int(np.argmin(values[:, 0]))]
    distance = np.full(len(points), np.inf)
    while len(order) < len(points):
        newest = points[order[-1]]
        distance = np.minimum(distance, ((points - newest) ** 2).sum(axis=1))
        distance[order[-1]] = -1.0
        order.append(int(np.argmax(distance)))
    return order


def hypervolume_contribution(values: FloatArray) -> list[int]:
    """By the volume that only this point of the front dominates, the largest first, each objective
    scaled to [0, 1] over the front and `REFERENCE` behind it. Of equals the first counts."""
    points = _scaled(values)
    alone = _contributions_in_the_plane if points.shape[1] == 2 else _contributions
    return [int(index) for index in np.argsort(-alone(points), kind="stable")]


def _contributions_in_the_plane(points: FloatArray) -> FloatArray:
    order = np.lexsort(points.T[::-1])
    first, second = points[order].T
    width = np.append(first[1:], REFERENCE) - first
    height = np.append(REFERENCE, second[:-1]) - second
    found = np.empty(len(points))
    found[order] = width * height
    return found


def _contributions(points: FloatArray) -> FloatArray:
    reference = [REFERENCE] * points.shape[1]
    whole = hypervolume(points, reference)
    return np.array(
        [whole - hypervolume(np.delete(points, i, axis=0), reference) for i in range(len(points))]
    )

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
from numpy.typing import NDArray

from autotune.pareto import BoolArray, FloatArray, hypervolume, normalised

IntArray = NDArray[np.int_]

REFERENCE = 1.1
"""The reference point of hypervolume contributions, in every objective scaled to [0, 1] over the
front: a little behind its worst, so that the ends of a front contribute too."""

SPARE = 8
"""So many more than those that may go on are ranked: as trials arrive, they are asked for next."""

Order = Callable[[FloatArray, int], list[int]]
"""Of a front's points (points, objectives), the indices of the first so many to go on, in order."""


@dataclass
class _Front:
    """Trials of which none dominates another.

    Args:
        numbers: of the trials, ascending, (trials,).
        values: their violation of the constraints, then their objectives, (trials, 1 + objectives);
            less is better.
        paused: which were not promoted, (trials,); `waiting` is how many.
        order: indices of the first to go on, as far as they are known.
    """

    numbers: IntArray
    values: FloatArray
    paused: BoolArray
    waiting: int = 0
    order: list[int] = field(default_factory=list)


class FrontRung:
    """Ranks by fronts; what violates the constraints less dominates what does more, whatever their
    values (Deb et al. 2002, NSGA-II, section VI). Where the first objective is not finite, a trial
    stands behind all and is never promoted; in another, it has the worst value there is.

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
        self._front: dict[int, _Front] = {}
        self._rest: dict[int, FloatArray] = {}

    def enter(self, number: int, values: Sequence[float], violation: float = 0.0) -> None:
        """A trial got here with these values."""
        self._count += 1
        if math.isfinite(values[0]):
            point = np.array([violation, *(v if math.isfinite(v) else math.inf for v in values)])
            self._paused.add(number)
            self._place(number, point)
        self._cover()

    def fail(self, number: int) -> None:
        """It only counts."""
        self._count += 1
        self._cover()

    def leave(self, number: int) -> None:
        """It is promoted, or failed since."""
        if number in self._paused:
            self._paused.remove(number)
            front = self._front.get(number)
            if front is not None:
                front.paused[np.searchsorted(front.numbers, number)] = False
                front.waiting -= 1

    def promotable(self) -> int | None:
        """The first paused trial among those of the ranking that may go on."""
        left = self._count // self._reduction
        for front in self._fronts:
            if left <= 0:
                return None
            if front.waiting:
                index = self._first_paused(front, left)
                if index is not None:
                    return int(front.numbers[index])
            left -= len(front.numbers)
        return None

    def _first_paused(self, front: _Front, most: int) -> int | None:
        """Index of the first paused trial among the first `most` of a front."""
        size = len(front.numbers)
        if front.waiting == 1 and most >= size:
            return int(front.paused.argmax())
        if len(front.order) < min(most, size):
            front.order = self._order(front.values[:, 1:], min(most + SPARE, size))
        return next((index for index in front.order[:most] if front.paused[index]), None)

    def _place(self, number: int, point: FloatArray) -> None:
        """Insert into the first front of which no trial dominates it."""
        low, high = 0, len(self._fronts)
        while low < high:
            middle = (low + high) // 2
            if _dominates(self._fronts[middle].values, point).any():
                low = middle + 1
            else:
                high = middle
        numbers, values = np.array([number]), point[None, :]
        for front in self._fronts[low:]:
            numbers, values = self._join(front, numbers, values)
            if not len(numbers):
                return
        for each, row in zip(numbers.tolist(), values, strict=True):
            self._front.pop(each, None)
            self._rest[each] = row

    def _join(
        self, front: _Front, numbers: IntArray, values: FloatArray
    ) -> tuple[IntArray, FloatArray]:
        """Adds trials to a front; those that they dominate leave it, and are returned."""
        beaten = np.zeros(len(front.numbers), dtype=bool)
        for point in values:
            beaten |= _dominated(front.values, point)
        gone = front.numbers[beaten], front.values[beaten]
        kept = ~beaten
        paused = np.array([number in self._paused for number in numbers.tolist()])
        joined = np.concatenate([front.numbers[kept], numbers])
        order = np.argsort(joined)
        self._covered += len(joined) - len(front.numbers)
        front.numbers = joined[order]
        front.values = np.concatenate([front.values[kept], values])[order]
        front.paused = np.concatenate([front.paused[kept], paused])[order]
        front.waiting = int(np.count_nonzero(front.paused))
        front.order = []
        self._front.update(dict.fromkeys(numbers.tolist(), front))
        return gone

    def _cover(self) -> None:
        """Peels fronts off the rest until they hold all that may go on."""
        while self._covered < self._count // self._reduction and self._rest:
            numbers, values = np.array(list(self._rest)), np.array(list(self._rest.values()))
            best = _best_front(values)
            front = _Front(numbers[:0], values[:0], np.zeros(0, dtype=bool))
            self._join(front, numbers[best], values[best])
            self._fronts.append(front)
            for number in front.numbers.tolist():
                del self._rest[number]


def _dominates(points: FloatArray, point: FloatArray) -> BoolArray:
    """Which of the points (points, 1 + objectives) dominate the one."""
    by_values = (points <= point).all(axis=1) & (points < point).any(axis=1)
    return np.asarray(by_values | (points[:, 0] < point[0]))


def _dominated(points: FloatArray, point: FloatArray) -> BoolArray:
    """Which of the points the one dominates."""
    by_values = (points >= point).all(axis=1) & (points > point).any(axis=1)
    return np.asarray(by_values | (points[:, 0] > point[0]))


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


def epsilon_net(values: FloatArray, most: int) -> list[int]:
    """The best in the first objective, then always the point farthest from all before it
    (Clarkson 2006, "Nearest-Neighbor Searching and Metric Space Dimensions"), each objective scaled
    to [0, 1] over the front: a front cut anywhere is covered evenly. Of equals the first counts."""
    points = _scaled(values)
    squares = sum(np.subtract.outer(column, column) ** 2 for column in points.T)
    order = [int(values[:, 0].argmin())]
    distance = np.full(len(points), np.inf)
    while len(order) < most:
        np.minimum(distance, squares[order[-1]], out=distance)
        distance[order[-1]] = -1.0
        order.append(int(distance.argmax()))
    return order


def hypervolume_contribution(values: FloatArray, most: int) -> list[int]:
    """By the volume that only this point of the front dominates, the largest first, each objective
    scaled to [0, 1] over the front and `REFERENCE` behind it. Of equals the first counts."""
    points = _scaled(values)
    alone = _contributions_in_the_plane if points.shape[1] == 2 else _contributions
    order: list[int] = np.argsort(-alone(points), kind="stable")[:most].tolist()
    return order


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

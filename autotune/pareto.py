"""Dominance, hypervolume and knee point: what comparing several objectives takes.

Values come as an array of shape (points, objectives) in their own units, with one sign an
objective: +1.0 where less is better, -1.0 where more is. Nothing here knows a study.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

_BLOCK = 4_000_000


def oriented(values: ArrayLike, signs: ArrayLike | None = None) -> FloatArray:
    """Values with less better everywhere, shape (points, objectives).

    Raises:
        ValueError: if the shapes do not fit, or a sign is not 1 or -1.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2:
        raise ValueError(f"values must have shape (points, objectives), got {array.shape}")
    if signs is None:
        return array
    sign = np.asarray(signs, dtype=np.float64)
    if sign.shape != (array.shape[1],) or not np.all(np.abs(sign) == 1.0):
        raise ValueError(
            f"signs must hold 1 or -1 for each of {array.shape[1]} objectives, got {signs!r}"
        )
    return array * sign


def non_dominated(
    values: ArrayLike, signs: ArrayLike | None = None, spread: ArrayLike | None = None
) -> BoolArray:
    """Which points no other point dominates, shape (points,).

    A point dominates another if it is at least as good in every objective and better in one
    by more than what the measurement can tell apart: their half-widths of uncertainty
    together. So noise never removes a point, the front holds the ordinary Pareto front, and
    points that are equal are all on it or all off it.

    Args:
        values: shape (points, objectives). A point with a NaN is never on the front and
            dominates nothing; infinities are compared as they are.
        signs: 1 (less is better, the default) or -1 for each objective.
        spread: half-widths of uncertainty, of the shape of `values` or one an objective;
            NaN, where nothing was measured, counts as 0.
    """
    score = oriented(values, signs)
    count, objectives = score.shape
    width = np.zeros_like(score)
    if spread is not None:
        width = np.broadcast_to(
            np.nan_to_num(np.abs(np.asarray(spread, dtype=np.float64)), nan=0.0, posinf=np.inf),
            score.shape,
        )
    valid = ~np.isnan(score).any(axis=1)
    front = np.zeros(count, dtype=np.bool_)
    where = np.flatnonzero(valid)
    good, good_width = score[valid], width[valid]
    rows = max(1, _BLOCK // max(1, count * objectives))
    with np.errstate(invalid="ignore"):  # an infinite value with an infinite width beats nothing
        upper, lower = good + good_width, good - good_width
    for start in range(0, len(good), rows):
        block = slice(start, start + rows)
        # Axis 0: the points that may dominate; axis 1: this block's points.
        no_worse = (good[:, None, :] <= good[None, block, :]).all(axis=2)
        clearly = (upper[:, None, :] < lower[None, block, :]).any(axis=2)
        front[where[block]] = ~(no_worse & clearly).any(axis=0)
    return front


def hypervolume(
    values: ArrayLike, reference: Sequence[float], signs: ArrayLike | None = None
) -> float:
    """Volume between the points and `reference` (in the same units), by Optuna's WFG.

    Points that are not better than the reference in every objective, or hold a NaN, add
    nothing. In the product of the objectives' units.

    Raises:
        ValueError: if the reference is not finite or of the wrong length.
    """
    score = oriented(values, signs)
    limit = oriented(np.asarray([reference], dtype=np.float64), signs)[0]
    if limit.shape != (score.shape[1],) or not np.isfinite(limit).all():
        raise ValueError(f"the reference must be {score.shape[1]} finite numbers: {reference!r}")
    inside = score[(score < limit).all(axis=1) & ~np.isnan(score).any(axis=1)]
    if not len(inside):
        return 0.0
    if np.isneginf(inside).any():
        return math.inf
    from optuna._hypervolume import compute_hypervolume

    front = np.unique(inside[non_dominated(inside)], axis=0)
    return float(compute_hypervolume(front, limit, assume_pareto=True))


def normalised(score: FloatArray) -> FloatArray:
    """Each column scaled to [0, 1] over its finite range; a column without a range is 0.

    The range is halved before it is taken, so that it cannot overflow.
    """
    finite = np.where(np.isfinite(score), score, np.nan)
    if not len(score):
        return finite
    with np.errstate(all="ignore"):
        low, high = np.fmin.reduce(finite, axis=0), np.fmax.reduce(finite, axis=0)
        span = high / 2 - low / 2
        scaled = (finite / 2 - low / 2) / np.where(span > 0, span, 1.0)
    return np.asarray(scaled, dtype=np.float64)


def knee(values: ArrayLike, signs: ArrayLike | None = None) -> int | None:
    """Index of the front's knee: the point furthest below the plane through the extremes.

    With every objective scaled to [0, 1] over the front, that is the point whose scaled
    objectives sum to the least (Das 1999, "On characterizing the knee of the Pareto curve").
    None if no point has all its objectives finite.
    """
    score = oriented(values, signs)
    front = np.flatnonzero(non_dominated(score) & np.isfinite(score).all(axis=1))
    if not len(front):
        return None
    return int(front[np.argmin(normalised(score[front]).sum(axis=1))])

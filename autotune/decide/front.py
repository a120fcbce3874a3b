"""What a candidate would add to the front of several objectives, from forecasts of its curves.

The hypervolume of a set of points is, up to a constant, the mean over directions w of how far the
farthest of them reaches from the reference point r along w, to the power of the number of
objectives k (Zhang and Golovin 2020, Random Hypervolume Scalarizations for Provable
Multi-Objective Black Box Optimization, 2006.04655, lemma 5):

    HV(Y) = c * E_w[ max over y in Y of s_w(y) ** k ],   s_w(y) = min over j of (r_j - y_j) / w_j

with w uniform on the positive part of the sphere. So the hypervolume grows
where a point reaches beyond all others along some direction: augmented Tchebycheff's idea (ParEGO,
Knowles 2006) with the reference point in the place of the ideal one. A point reaches beyond s along
w if every one of its objectives is below r_j - s * w_j, and forecasts of each objective by itself,
taken as independent of the others, give the probability of that. What is measured once is known of
every trial that was trained, and predicted for a new configuration by the process that predicts
costs (`autotune.decide.cost`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from autotune.decide import cost
from autotune.decide import scale as scales
from autotune.decide.forecasters.surface import Embedding
from autotune.plugins.search import (
    Event,
    FloatArray,
    Forecast,
    Frozen,
    Objective,
    Observed,
    SearchContext,
)
from autotune.plugins.trials import Trials
from autotune.space import Configuration

DIRECTIONS = 32
"""Drawn for each decision."""

SLACK = 0.1
"""The reference point is so much beyond where trials start (a curve) and the worst seen (what is
measured once), on axes where 0 is the best seen and these are 1; and no better than so much below 0
is looked for."""

MARGINS = 4
"""By how much a candidate has to reach farther is drawn so often for each direction."""

LEVELS = np.concatenate([np.linspace(-SLACK, SLACK, 25), np.linspace(SLACK, 1.0 + SLACK, 25)[1:]])
"""Where on its axis, as shares of the way to the reference point, a forecast's distribution is
looked up; between them it is taken as linear."""


def searched(context: SearchContext) -> tuple[Objective, ...]:
    """The objectives whose front training can be aimed at: curves, the primary first, then what
    is measured once."""
    curves = [o for o in context.objectives if o.kind == "curve"]
    return (*curves, *(o for o in context.objectives if o.kind == "static"))


class Front:
    """The fold: how trials stand in every objective, oriented so that less is better.

    Attributes:
        firsts, bests: of each curve objective, by trial.
        static: what was measured once, by trial, (static objectives,).
        points, owners: checkpoints that no other dominates, (points, objectives), and their trials.
    """

    def __init__(self, objectives: Sequence[Objective]) -> None:
        self.curves = [o for o in objectives if o.kind == "curve"]
        self.statics = [o for o in objectives if o.kind == "static"]
        self.firsts: list[dict[int, float]] = [{} for _ in self.curves]
        self.bests: list[dict[int, float]] = [{} for _ in self.curves]
        self.static: dict[int, FloatArray] = {}
        self.points: FloatArray = np.zeros((0, len(self.curves) + len(self.statics)))
        self.owners: list[int] = []

    def observe(self, event: Event, trials: Trials) -> None:
        """Fold one event that `trials` has folded already."""
        match event:
            case Observed(trial=number, metrics=metrics):
                for o, firsts, bests in zip(self.curves, self.firsts, self.bests, strict=True):
                    value = o.sign * metrics.get(o.name, math.nan)
                    if math.isfinite(value):
                        firsts.setdefault(number, value)
                        bests[number] = min(value, bests.get(number, math.inf))
            case Frozen(trial=number):
                trial = trials[number]
                static = [o.sign * trial.static.get(o.name, math.nan) for o in self.statics]
                self.static[number] = np.array(static)
                before, step = trial.segments[-1]
                for unit in range(before + 1, step + 1):
                    metrics = trial.metrics.get(unit, {})
                    if trials.violation({**metrics, **trial.static}) > 0:
                        continue
                    values = [o.sign * metrics.get(o.name, math.nan) for o in self.curves]
                    self._add(np.array([*values, *static]), number)
            case _:
                pass

    def _add(self, point: FloatArray, owner: int) -> None:
        if not np.isfinite(point).all() or (self.points <= point).all(axis=1).any():
            return
        kept = np.logical_not((point <= self.points).all(axis=1))
        self.points = np.vstack([self.points[kept], point])
        others = [o for o, keep in zip(self.owners, kept.tolist(), strict=True) if keep]
        self.owners = [*others, owner]


@dataclass(frozen=True)
class Line:
    """What is measured once on [0, 1], the range of what was seen; logarithmically where it is
    always above 0."""

    low: FloatArray
    width: FloatArray
    sign: FloatArray

    @classmethod
    def of(cls, seen: FloatArray) -> Line:
        """Of oriented values (trials, objectives), some of them NaN."""
        missing = np.isnan(seen)
        above, below = ((side | missing).all(axis=0) for side in (seen > 0, seen < 0))
        sign = np.where(above, 1.0, np.where(below, -1.0, 0.0))
        line = _logarithms(seen, sign)
        low = np.fmin.reduce(line, axis=0, initial=np.inf)
        width = np.fmax.reduce(line, axis=0, initial=-np.inf) - low
        usable = np.isfinite(width) & (width > 1e-12)
        return cls(np.where(np.isfinite(low), low, 0.0), np.where(usable, width, 1.0), sign)

    def __call__(self, values: FloatArray) -> FloatArray:
        """Normalised values of the same shape."""
        return (_logarithms(values, self.sign) - self.low) / self.width


def _logarithms(values: FloatArray, sign: FloatArray) -> FloatArray:
    safe = np.maximum(np.where(sign != 0, np.abs(values), 1.0), 1e-300)
    return np.where(sign != 0, sign * np.log(safe), values)


class Aim:
    """The front at one decision, on normalised axes, seen along random directions.

    For each direction `MARGINS` distances beyond the farthest point are drawn, 10^tau of the way
    from there to what could be reached at most, tau uniform in (-4, -1).

    Args:
        flying: trials in flight, and what their curve objectives are expected to be when they
            land, (flying, curves): they count as points of the front.
    """

    def __init__(
        self,
        front: Front,
        trials: Trials,
        generator: np.random.Generator,
        flying: Sequence[int] = (),
        expected: FloatArray | None = None,
    ) -> None:
        self._front, self._trials = front, trials
        both = list(zip(front.curves, front.firsts, front.bests, strict=True))
        self._scales = [scales.fitted(o, list(f.values()), list(b.values())) for o, f, b in both]
        starts = [
            float(scale.normalise(np.median(list(firsts.values()))))
            for scale, firsts in zip(self._scales, front.firsts, strict=True)
        ]
        known = np.array(list(front.static.values())).reshape(len(front.static), len(front.statics))
        self._line = Line.of(known)
        self._reference = np.array([*starts, *[1.0] * len(front.statics)]) + SLACK
        weights = np.abs(generator.standard_normal((DIRECTIONS, len(self._reference))))
        self._weights = weights / np.linalg.norm(weights, axis=1, keepdims=True)
        curves = len(self._scales)
        points = [self._normalised(front.points[:, :curves], self._line(front.points[:, curves:]))]
        if expected is not None and len(flying):
            configurations = [trials[number].configuration for number in flying]
            points.append(self._normalised(expected, self._predicted(configurations)[0]))
        reached = self._reached(np.concatenate(points))
        most = self._reached(np.full((1, len(self._reference)), -SLACK))
        margins = 10.0 ** -generator.uniform(1.0, 4.0, size=(DIRECTIONS, MARGINS))
        levels = reached[:, None] + margins * np.maximum(most - reached, 0.0)[:, None]
        # What each objective must be below, (directions, margins, objectives).
        self._limits = self._reference - levels[:, :, None] * self._weights[:, None, :]

    def _normalised(self, curves: FloatArray, static: FloatArray) -> FloatArray:
        columns = [scale.normalise(curves[:, j]) for j, scale in enumerate(self._scales)]
        return np.column_stack([*columns, static])

    def _reached(self, points: FloatArray) -> FloatArray:
        """How far the farthest of the points reaches along each direction, (directions,)."""
        if not len(points):
            return np.zeros(len(self._weights))
        along = ((self._reference - points)[:, None, :] / self._weights).min(axis=2)
        return np.asarray(np.maximum(along.max(axis=0), 0.0))

    def static(self, numbers: Sequence[int], new: Sequence[Configuration]) -> FloatArray:
        """Probability that what is measured once is below every limit: of trials, then of new
        configurations; (candidates, directions, margins)."""
        curves = len(self._scales)
        limits = self._limits[None, :, :, curves:]
        known = np.array([self._front.static[number] for number in numbers])
        known = self._line(known.reshape(len(numbers), len(self._front.statics)))
        below = (known[:, None, None, :] <= limits).all(axis=3).astype(float)
        if not new:
            return below
        mean, deviation = self._predicted(new)
        likely = ndtr((limits - mean[:, None, None, :]) / deviation).prod(axis=3)
        return np.concatenate([below, likely])

    def _predicted(self, new: Sequence[Configuration]) -> tuple[FloatArray, FloatArray]:
        """Normalised means (configurations, statics) and deviations (statics,)."""
        front, trials = self._front, self._trials
        numbers = [n for n, values in front.static.items() if np.isfinite(values).all()]
        numbers = numbers[-cost.LOOKED_AT :]
        known = np.array([front.static[n] for n in numbers])
        known = known.reshape(len(numbers), len(front.statics))
        known = self._line(known)
        embed = Embedding(trials.space)
        seen = [(trials[number].encoded, trials[number].mask) for number in numbers]
        asked = [trials.space.encode(configuration) for configuration in new]
        points, places = (
            embed(np.stack([e for e, _ in rows]), np.stack([m for _, m in rows]))
            for rows in (seen, asked)
        )
        means, deviations = np.zeros((len(new), known.shape[1])), np.zeros(known.shape[1])
        for column, values in enumerate(known.T):
            means[:, column], deviations[column] = cost.predicted(points, values, places)
        return means, np.maximum(deviations, 0.001)

    def promise(self, static: FloatArray, forecasts: Sequence[Forecast]) -> FloatArray:
        """Mean probability over directions and margins to reach beyond the front, (candidates,).

        Args:
            static: as `static` gives it, of the candidates that are forecast.
            forecasts: of each curve objective; what is beyond the candidates is not looked at.
        """
        likely = static
        for column, (scale, forecast) in enumerate(zip(self._scales, forecasts, strict=True)):
            levels = LEVELS * self._reference[column]
            below = np.stack(
                [forecast.probability_below(float(scale.restore(level))) for level in levels]
            )[:, : len(static)]
            place = np.interp(self._limits[:, :, column], levels, np.arange(len(levels)))
            index = np.minimum(place.astype(int), len(levels) - 2)
            share = (place - index)[..., None]
            found = below[index] * (1.0 - share) + below[index + 1] * share
            likely = likely * np.moveaxis(found, 2, 0)
        return np.asarray(likely.mean(axis=(1, 2)))

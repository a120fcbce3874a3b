"""Forecasts that a curve stays where it is, with an error that grows with the logarithm of time:
what every other forecaster must beat.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from autotune.decide.forecasters import classes
from autotune.decide.forecasters.history import History, Sample, beginning, oriented_bounds
from autotune.decide.forecasters.mixture import MixtureForecast
from autotune.plugins.search import (
    Event,
    FloatArray,
    Forecast,
    Forecaster,
    Query,
    SearchContext,
)
from autotune.plugins.trials import Trials

REFERENCES = 64
"""A new configuration may go on like any of so many trials, evenly spaced among those chosen."""

_KINDS = np.array(
    [
        (floor, slope, drift)
        for floor, slope, drift in product(
            (1e-4, 5e-4, 0.002, 0.01, 0.04, 0.15),
            (0.0, 0.002, 0.006, 0.02, 0.06, 0.2, 0.6),
            (0.0, 1.0),
        )
        if slope or not drift
    ]
)
"""Classes of curves, normalised: deviation at no distance, its growth with log time, and the
fall with log time in units of that growth."""

_FARTHEST = 0.5
"""What a curve may change by in expectation is bounded by this, normalised, however far away."""

_UNKNOWN_MEAN, _UNKNOWN_DEVIATION = 0.6, 0.6
_BANDWIDTH = 0.05


@dataclass
class State:
    """What has been seen, and how common each class of curves is."""

    history: History
    log_weight: FloatArray


class LastValue(Forecaster):
    """The last value, with an error that grows with the log of the ratio of times.

    Curves are of classes that differ in how fast the error grows and whether they fall on; how
    common each is follows from the study's own curves, and each curve's class from its past.

    Example:
        >>> forecaster = LastValue()
        >>> state = forecaster.initial(context)                                # doctest: +SKIP
    """

    name = "last_value"
    summary = "the last value, with an error that grows with log time, learned from the study"
    reference = ""

    def initial(self, context: SearchContext) -> State:
        """All classes are equally common."""
        return State(beginning(context.objective), np.full(len(_KINDS), -np.log(len(_KINDS))))

    def observe(self, state: State, event: Event, trials: Trials) -> State:
        """Now and then, learn how common each class is."""
        if state.history.record(event, trials):
            sample = state.history.sample(state.history.chosen(), trials)
            evidences = _evidence(sample)
            state.log_weight = classes.learned(evidences[sample.count > 1])
        return state

    def forecast(
        self, context: SearchContext, state: State, trials: Trials, queries: Sequence[Query]
    ) -> Forecast:
        """Predictive distributions for the queries."""
        width = max(len(_KINDS), REFERENCES) + 1
        shape = (len(queries), width)
        weight, mean, deviation = np.zeros(shape), np.zeros(shape), np.ones(shape)
        seen = sorted({q.trial for q in queries if q.trial in state.history.curves} - {None})
        row_of = {number: row for row, number in enumerate(seen)}
        rows = np.array([row_of.get(q.trial, -1) if q.trial is not None else -1 for q in queries])
        steps = np.array([query.step for query in queries], dtype=np.float64)
        if seen:
            sample = state.history.sample(seen, trials)
            inside = rows >= 0
            parts = _continued(state, sample, rows[inside], steps[inside])
            for whole, part in zip((weight, mean, deviation), parts, strict=True):
                whole[inside, : len(_KINDS) + 1] = part
        references = _References.of(state, trials)
        for step in np.unique(steps[rows < 0]):
            here = (rows < 0) & (steps == step)
            parts = references.at(state, step)
            for whole, part in zip((weight, mean, deviation), parts, strict=True):
                whole[here, : len(part)] = part
        return MixtureForecast(
            state.history.scale, weight, mean, deviation, oriented_bounds(context.objective)
        )


def _evidence(sample: Sample) -> FloatArray:
    """Of every curve under every class, from its pairs of consecutive points."""
    ratio = np.log(sample.steps[:, 1:] / sample.steps[:, :-1])[..., None]
    change = np.diff(sample.values, axis=1)[..., None]
    known = sample.known[:, 1:]
    ratio = np.where(known[..., None], ratio, 0.0)
    fall, deviation = _moments(ratio)
    return classes.evidence(classes.log_normal(change + fall, deviation), known.astype(np.float64))


def _moments(log_ratio: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Expected fall and deviation over a log ratio of times (..., 1), by class: (..., classes)."""
    floor, slope, drift = _KINDS.T
    change = _FARTHEST * np.tanh(slope * log_ratio / _FARTHEST)
    return drift * change, np.hypot(floor, change)


def _continued(
    state: State, sample: Sample, rows: np.ndarray, steps: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Weights, means and deviations (queries, classes + 1) of curves in `sample` at `steps`."""
    at, last = sample.last()
    weight = classes.posterior(state.log_weight, _evidence(sample))
    ratio = np.abs(np.log(steps / at[rows]))[:, None]
    fall, deviation = _moments(ratio)
    return classes.with_escape(weight[rows], last[rows, None] - fall, deviation, last[rows])


@dataclass(frozen=True)
class _References:
    """Trials that new configurations may be like."""

    sample: Sample

    @classmethod
    def of(cls, state: State, trials: Trials) -> _References:
        known = state.history.chosen()
        places = np.linspace(0, len(known) - 1, min(len(known), REFERENCES)).round().astype(int)
        return cls(state.history.sample([known[place] for place in places], trials))

    def at(self, state: State, step: float) -> tuple[FloatArray, FloatArray, FloatArray]:
        """One component a trial, and one for what no trial was like, each (trials + 1,)."""
        count = len(self.sample)
        mean = np.full(count + 1, _UNKNOWN_MEAN)
        deviation = np.full(count + 1, _UNKNOWN_DEVIATION)
        if count:
            # The nearest step that was observed, and from there on as the trial itself.
            away = np.abs(np.log(self.sample.steps / step))
            nearest = np.where(self.sample.known, away, np.inf).argmin(axis=1)
            row = np.arange(count)
            start = self.sample.values[row, nearest]
            ratio = np.log(step / self.sample.steps[row, nearest])[:, None]
            weight = classes.posterior(state.log_weight, _evidence(self.sample))
            fall, error = _moments(np.maximum(ratio, 0.0))
            middle = (weight * fall).sum(axis=1)
            variance = (weight * (error**2 + (fall - middle[:, None]) ** 2)).sum(axis=1)
            mean[:count] = start - middle
            deviation[:count] = np.sqrt(variance + (_BANDWIDTH**2) / count**0.4)
        return np.full(count + 1, 1.0 / (count + 1)), mean, deviation

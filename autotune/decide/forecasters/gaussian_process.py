"""Forecasts by a freeze-thaw Gaussian process, its deviations corrected by how it has done on the
study's own curves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autotune.decide.forecasters import classes
from autotune.decide.forecasters import freeze_thaw_kernel as kernels
from autotune.decide.forecasters.history import History, Sample, beginning, oriented_bounds
from autotune.decide.forecasters.mixture import MixtureForecast
from autotune.decide.forecasters.surface import Embedding
from autotune.plugins.search import (
    Event,
    FloatArray,
    Forecast,
    Forecaster,
    Query,
    SearchContext,
)
from autotune.plugins.trials import Trials

LEARNED = 100
"""Hyperparameters are learned from no more trials."""

FACTORS = np.array([0.02, 0.06, 0.15, 0.4, 1.0, 2.0, 5.0] * 2)
FOLLOWS = np.repeat([1.0, 0.0], len(FACTORS) // 2)
"""Classes of curves: by what factor the process misjudges their deviation, and whether they go
where it expects or stay where they are."""

FLOOR = 3e-4
"""The least deviation of a forecast, normalised."""

_UNKNOWN_VARIANCE = 0.2


@dataclass
class Learned:
    """What was learned from a sample of curves: the kernel, and how common each class is."""

    kernel: kernels.Kernel
    log_weight: FloatArray


@dataclass
class State:
    """What has been seen. `sample` are the curves to learn from, as they were when learning was
    due; `learned` what was found, once somebody has asked."""

    history: History
    embedding: Embedding
    sample: Sample | None = None
    points: FloatArray | None = None
    learned: Learned | None = None


class GaussianProcess(Forecaster):
    """A Gaussian process over configurations and time with the freeze-thaw kernel, exact on at
    most 200 trials with 16 observations each (`history`), its kernel learned from at most 100.

    Curves that stand still or jump about do so more or less than one kernel for all of them
    says; a class of each curve, told from its own past, corrects the deviations.

    Example:
        >>> forecaster = GaussianProcess()
        >>> state = forecaster.initial(context)                                # doctest: +SKIP
    """

    name = "gaussian_process"
    summary = "Gaussian process over configurations and time with the freeze-thaw kernel"
    reference = "Swersky, Snoek and Adams 2014, Freeze-Thaw Bayesian Optimization, 1406.3896"

    def initial(self, context: SearchContext) -> State:
        """Nothing is known."""
        return State(beginning(context.objective), Embedding(context.space))

    def observe(self, state: State, event: Event, trials: Trials) -> State:
        """Now and then, lay the curves aside that the kernel is to be learned from."""
        if state.history.record(event, trials):
            chosen = state.history.chosen(LEARNED)
            state.sample = state.history.sample(chosen, trials)
            state.points = _embedded(state, chosen, trials)
            state.learned = None
        return state

    def forecast(
        self, context: SearchContext, state: State, trials: Trials, queries: Sequence[Query]
    ) -> Forecast:
        """Predictive distributions for the queries."""
        bounds = oriented_bounds(context.objective)
        if not queries or not state.history.curves:
            shape = (len(queries), 1)
            unknown = np.full(shape, np.sqrt(_UNKNOWN_VARIANCE))
            return MixtureForecast(
                state.history.scale, np.ones(shape), np.full(shape, 0.5), unknown, bounds
            )
        found = self._learn(context, state)
        mean, variance, weight, last = _Posterior(state, found, trials).at(context, queries)
        parts = classes.with_escape(weight, *_classes(mean, variance, last), last)
        return MixtureForecast(state.history.scale, *parts, bounds)

    def _learn(self, context: SearchContext, state: State) -> Learned:
        """What the laid-aside curves teach: found at the first asking, the same at any."""
        if state.learned is None:
            assert state.sample is not None
            assert state.points is not None
            slots = len(context.space.slots)
            curves = _curves(state.sample, state.points)
            kernel = kernels.learned(curves, state.embedding.dimension, slots)
            evidences = _evidence(kernel, curves)[state.sample.count > 1]
            state.learned = Learned(kernel, classes.learned(evidences))
        return state.learned


def _embedded(state: State, numbers: Sequence[int], trials: Trials) -> FloatArray:
    encoded = np.stack([trials[number].encoded for number in numbers])
    return state.embedding(encoded, np.stack([trials[number].mask for number in numbers]))


def _curves(sample: Sample, points: FloatArray) -> kernels.Curves:
    time = sample.steps / sample.horizon[:, None]
    return kernels.Curves(points, time, sample.values, sample.known.astype(np.float64))


def _classes(
    mean: FloatArray, variance: FloatArray, last: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Means and deviations by class, (queries, classes), of what the process expects (queries,)
    of curves that stand at `last`."""
    means = last[:, None] + FOLLOWS * (mean - last)[:, None]
    return means, np.hypot(np.sqrt(variance)[:, None] * FACTORS, FLOOR)


def _evidence(kernel: kernels.Kernel, curves: kernels.Curves) -> FloatArray:
    """Of every curve under every class, from its points: each forecast from those before it,
    and the last from every prefix."""
    shape = curves.values.shape
    log_likelihood = np.zeros((shape[0], 2 * shape[1], len(FACTORS)))
    told = np.zeros((shape[0], 2 * shape[1]))
    rows = np.arange(shape[0])
    last = curves.known.sum(axis=1).astype(int) - 1
    for place in range(1, shape[1]):
        known = curves.known * (np.arange(shape[1]) < place)
        before = kernels.Curves(curves.points, curves.time, curves.values, known)
        factors = kernels.Factors.of(kernel, before)
        variance = 1.0 / (1.0 / (kernel.amplitude + kernel.apart) + factors.precision)
        asymptote = kernel.mean + variance * factors.pull
        for column, target in ((place, np.full(shape[0], place)), (shape[1] + place, last)):
            mean, spread = factors.ahead(rows, curves.time[rows, target], asymptote, variance)
            means, deviations = _classes(mean, spread, curves.values[:, place - 1])
            error = curves.values[rows, target, None] - means
            log_likelihood[:, column] = classes.log_normal(error, deviations)
            told[:, column] = last > place if column > place else curves.known[:, place]
    return classes.evidence(log_likelihood, told)


class _Posterior:
    """The process given the state's curves."""

    def __init__(self, state: State, found: Learned, trials: Trials) -> None:
        self._state, self._found, self._trials = state, found, trials
        self._numbers = state.history.chosen()
        points = _embedded(state, self._numbers, trials)
        curves = _curves(state.history.sample(self._numbers, trials), points)
        factors = kernels.Factors.of(found.kernel, curves)
        self._asymptotes = kernels.Asymptotes.of(factors, state.embedding.dimension)

    def at(
        self, context: SearchContext, queries: Sequence[Query]
    ) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """Means and variances (queries,), weights of the classes (queries, classes), and where
        the curves stand (queries,); new ones where they are expected."""
        space, trials = context.space, self._trials
        horizon = [context.horizon if q.trial is None else trials[q.trial].horizon for q in queries]
        time = np.array([q.step for q in queries]) / np.array(horizon, dtype=np.float64)
        shape = (len(queries),)
        mean, variance, last = np.zeros(shape), np.zeros(shape), np.zeros(shape)
        weight = np.tile(np.exp(self._found.log_weight), (len(queries), 1))
        observed = [n for n in dict.fromkeys(q.trial for q in queries) if self._has(n)]
        row_of = {number: row for row, number in enumerate(observed)}
        rows = np.array([row_of.get(q.trial, -1) for q in queries])
        own, new = rows >= 0, rows < 0
        if own.any():
            ahead = self._own([n for n in observed if n is not None], rows[own], time[own])
            mean[own], variance[own], weight[own], last[own] = ahead
        if new.any():
            encodings = [
                (trials[q.trial].encoded, trials[q.trial].mask)
                if q.trial is not None
                else space.encode(q.configuration or {})
                for q, is_new in zip(queries, new, strict=True)
                if is_new
            ]
            points = self._state.embedding(
                *(np.stack(part) for part in zip(*encodings, strict=True))
            )
            mean[new], variance[new] = self._asymptotes.elsewhere(points)
            kernel = self._found.kernel
            mean[new] += kernel.expected(time[new])
            variance[new] += kernel.over_time(time[new], time[new]) + kernel.noise
            last[new] = mean[new]
        return mean, variance, weight, last

    def _has(self, number: int | None) -> bool:
        return number in self._state.history.curves

    def _own(
        self, numbers: list[int], rows: np.ndarray, time: FloatArray
    ) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """The same, of curves that were observed, whether or not the process looks at them."""
        kernel = self._found.kernel
        points = _embedded(self._state, numbers, self._trials)
        sample = self._state.history.sample(numbers, self._trials)
        curves = _curves(sample, points)
        factors = kernels.Factors.of(kernel, curves)
        inside = {number: place for place, number in enumerate(self._numbers)}
        places = np.array([inside.get(number, -1) for number in numbers])
        asymptote, variance = self._asymptotes.elsewhere(points)
        # Those that the process does not look at: what it says of their like, and their own curve.
        posterior = 1.0 / (1.0 / variance + factors.precision)
        pulled = factors.pull + factors.precision * kernel.mean
        asymptote = np.where(
            places >= 0,
            self._asymptotes.mean[places],
            posterior * (asymptote / variance + pulled),
        )
        variance = np.where(places >= 0, self._asymptotes.variance[places], posterior)
        weight = classes.posterior(self._found.log_weight, _evidence(kernel, curves))
        ahead = factors.ahead(rows, time, asymptote[rows], variance[rows])
        return *ahead, weight[rows], sample.last()[1][rows]

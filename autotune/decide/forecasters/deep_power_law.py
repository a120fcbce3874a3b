"""Forecasts by deep power laws: an ensemble of small networks, trained on the study's curves."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autotune.decide.forecasters import classes
from autotune.decide.forecasters.history import History, Sample, beginning, oriented_bounds
from autotune.decide.forecasters.mixture import MixtureForecast
from autotune.decide.forecasters.power_law_network import Examples, Networks, trained
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

FEWEST = 8
"""Observations before networks are trained."""

HIDDEN = 0.4
"""Share of curves whose rest, from a random point on, is kept from the networks: to see how far
off they are."""

FACTORS = np.array([0.02, 0.06, 0.15, 0.4, 1.0, 2.0, 5.0] * 2)
FOLLOWS = np.repeat([1.0, 0.0], len(FACTORS) // 2)
"""Classes of curves: by what factor the networks misjudge their deviation, and whether they go
where they are expected or stay where they are."""

FLOOR = 3e-4
"""The least deviation of a forecast, normalised."""

_UNKNOWN_DEVIATION = 0.45


@dataclass
class Learned:
    """The networks, and how common each class of curves is."""

    networks: Networks
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


class DeepPowerLaw(Forecaster):
    """An ensemble of networks that map a configuration to a power law.

    Trained anew, from the context's seed, whenever trials or observations have grown by a
    quarter (`history`); on at most 200 trials with 16 observations each, for 150 steps.

    Example:
        >>> forecaster = DeepPowerLaw()
        >>> state = forecaster.initial(context)                                # doctest: +SKIP
    """

    name = "deep_power_law"
    summary = "ensemble of small networks that map a configuration to a power law"
    reference = (
        "Kadra, Janowski, Wistuba and Grabocka 2023, Scaling Laws for Hyperparameter "
        "Optimization, 2302.00441; github.com/machinelearningnuremberg/DPL"
    )

    def initial(self, context: SearchContext) -> State:
        """Nothing is known."""
        return State(beginning(context.objective), Embedding(context.space))

    def observe(self, state: State, event: Event, trials: Trials) -> State:
        """Now and then, lay the curves aside that the networks are to be trained on."""
        if state.history.record(event, trials):
            chosen = state.history.chosen()
            state.sample = state.history.sample(chosen, trials)
            state.points = _embedded(state, chosen, trials)
            state.learned = None
        return state

    def forecast(
        self, context: SearchContext, state: State, trials: Trials, queries: Sequence[Query]
    ) -> Forecast:
        """Predictive distributions for the queries."""
        bounds, scale = oriented_bounds(context.objective), state.history.scale
        found = self._learn(context, state)
        if not queries or found is None:
            shape = (len(queries), 1)
            unknown = np.full(shape, _UNKNOWN_DEVIATION)
            return MixtureForecast(scale, np.ones(shape), np.full(shape, 0.5), unknown, bounds)
        asked = _Asked.of(context, state, trials, queries)
        mean, variance = found.networks.ahead(asked.points, asked.time, asked.before, asked.value)
        weight = np.tile(np.exp(found.log_weight), (len(queries), 1))
        seen = asked.before > 0
        if seen.any():
            evidences = _past(found.networks, asked.sample, asked.sample_points)
            weight[seen] = classes.posterior(found.log_weight, evidences)[asked.row[seen]]
        last = np.where(seen, asked.value, mean)
        parts = classes.with_escape(weight, *_classes(mean, variance, last), last)
        return MixtureForecast(scale, *parts, bounds)

    def _learn(self, context: SearchContext, state: State) -> Learned | None:
        """What the laid-aside curves teach: found at the first asking, the same at any."""
        if state.learned is None and state.sample is not None and state.points is not None:
            if state.sample.known.sum() < FEWEST:
                return None
            seed = zlib.crc32(f"{context.seed} {state.history.learned_at}".encode())
            state.learned = _learned(state.sample, state.points, seed)
        return state.learned


def _learned(sample: Sample, points: FloatArray, seed: int) -> Learned:
    """Networks that know part of some curves, and classes from the rest of these."""
    generator = np.random.default_rng(seed)
    count = sample.count
    partly = (generator.random(len(sample)) < HIDDEN) & (count > 1)
    cut = 1 + np.floor(generator.random(len(sample)) * (count - 1)).astype(int)
    visible = np.where(partly, np.minimum(cut, count - 1), count)
    place = np.arange(sample.steps.shape[1])
    known = sample.known & (place < visible[:, None])
    time = sample.steps / sample.horizon[:, None]
    curve, column = np.nonzero(known)
    earlier = np.maximum(column - 1, 0)
    networks = trained(
        Examples(
            points[curve],
            time[curve, column],
            sample.values[curve, column],
            np.where(column > 0, time[curve, earlier], 0.0),
            sample.values[curve, earlier],
            curve,
        ),
        seed,
    )
    hidden = sample.known & ~known
    row, ahead = np.nonzero(hidden)
    log_weight = np.full(len(FACTORS), -np.log(len(FACTORS)))
    if len(row):
        start = visible[row] - 1
        before, value = time[row, start], sample.values[row, start]
        mean, variance = networks.ahead(points[row], time[row, ahead], before, value)
        likelihood = np.zeros((*hidden.shape, len(FACTORS)))
        likelihood[row, ahead] = _likelihood(mean, variance, value, sample.values[row, ahead])
        evidences = classes.evidence(likelihood, hidden.astype(np.float64))
        log_weight = classes.learned(evidences[partly])
    return Learned(networks, log_weight)


def _classes(
    mean: FloatArray, variance: FloatArray, last: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Means and deviations by class, (queries, classes)."""
    means = last[:, None] + FOLLOWS * (mean - last)[:, None]
    return means, np.hypot(np.sqrt(variance)[:, None] * FACTORS, FLOOR)


def _likelihood(
    mean: FloatArray, variance: FloatArray, last: FloatArray, value: FloatArray
) -> FloatArray:
    means, deviations = _classes(mean, variance, last)
    return classes.log_normal(value[:, None] - means, deviations)


def _past(networks: Networks, sample: Sample, points: FloatArray) -> FloatArray:
    """Of every curve under every class, from its points: each forecast from the one before."""
    time = sample.steps / sample.horizon[:, None]
    known = sample.known.copy()
    known[:, 0] = False
    row, column = np.nonzero(known)
    likelihood = np.zeros((*known.shape, len(FACTORS)))
    if len(row):
        last = sample.values[row, column - 1]
        mean, variance = networks.ahead(points[row], time[row, column], time[row, column - 1], last)
        likelihood[row, column] = _likelihood(mean, variance, last, sample.values[row, column])
    return classes.evidence(likelihood, known.astype(np.float64))


@dataclass(frozen=True)
class _Asked:
    """Queries as arrays (queries, ...): points, time, and the last observation of their curves
    (time 0 where there is none); and those curves, of which `row` is each query's."""

    points: FloatArray
    time: FloatArray
    before: FloatArray
    value: FloatArray
    row: np.ndarray
    sample: Sample
    sample_points: FloatArray

    @classmethod
    def of(
        cls, context: SearchContext, state: State, trials: Trials, queries: Sequence[Query]
    ) -> _Asked:
        curves = state.history.curves
        numbers = [n for n in dict.fromkeys(q.trial for q in queries) if n is not None]
        observed = [number for number in numbers if number in curves]
        row_of = {number: row for row, number in enumerate(observed)}
        row = np.array([-1 if q.trial is None else row_of.get(q.trial, -1) for q in queries])
        horizon = [context.horizon if q.trial is None else trials[q.trial].horizon for q in queries]
        encoded, masks = zip(*(_encoded(q, context, trials) for q in queries), strict=True)
        sample = state.history.sample(observed, trials)
        before, value = np.zeros(len(queries)), np.zeros(len(queries))
        if observed:
            step, last = sample.last()
            before = np.where(row >= 0, (step / sample.horizon)[row], 0.0)
            value = np.where(row >= 0, last[row], 0.0)
        return cls(
            state.embedding(np.stack(encoded), np.stack(masks)),
            np.array([q.step for q in queries]) / np.array(horizon, dtype=np.float64),
            before,
            value,
            row,
            sample,
            _embedded(state, observed, trials),
        )


def _encoded(query: Query, context: SearchContext, trials: Trials) -> tuple[FloatArray, np.ndarray]:
    if query.trial is not None:
        return trials[query.trial].encoded, trials[query.trial].mask
    if query.configuration is None:
        raise ValueError("a query names a trial or a configuration")
    return context.space.encode(query.configuration)


def _embedded(state: State, numbers: Sequence[int], trials: Trials) -> FloatArray:
    if not numbers:
        return np.zeros((0, len(state.embedding.dimension)))
    encoded = np.stack([trials[number].encoded for number in numbers])
    return state.embedding(encoded, np.stack([trials[number].mask for number in numbers]))

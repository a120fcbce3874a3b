"""Forecasts learning curves by an ensemble of parametric families, and new configurations by
what their neighbours did.

Three layers, each in closed form:

1. a bank of falling shapes (`shapes`), a posterior over them for every curve (`curves`);
2. what the study's curves have in common: their scale (`scale`), where they start and end, and
   which shapes they take, as the prior of the next curve;
3. how a curve's end depends on its configuration (`surface`): the other trials' ends are a
   further observation of a short curve's end, and all there is for a new configuration.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import NDArray

from autotune.decide import scale as scales
from autotune.decide.forecasters import surface as surfaces
from autotune.decide.forecasters.curves import (
    NOISES,
    Components,
    Fit,
    Prior,
    fit,
    predicted,
    told,
    unobserved,
)
from autotune.decide.forecasters.history import oriented_bounds
from autotune.decide.forecasters.mixture import MixtureForecast
from autotune.decide.forecasters.shapes import Bank, bank
from autotune.decide.scale import Scale
from autotune.plugins.search import (
    Event,
    Failed,
    FloatArray,
    Forecast,
    Forecaster,
    Observed,
    Query,
    SearchContext,
)
from autotune.plugins.trials import Trials

CELLS = 128
"""A horizon of more units is divided into so many cells, whose observations are averaged."""

TRIALS = 200
"""The surface looks at no more trials: the better half by expected end, the rest the newest."""

GROWTH = 1.15
"""What the curves have in common is learned anew when there are so many times more trials or,
squared, observations than the last time, or when the best has improved by `IMPROVEMENT` of the
scale."""

IMPROVEMENT = 0.15

_SHAPE_STRENGTH = 3.0
"""The bank's prior over shapes counts for so many curves."""

_START_FLOOR = 0.003
_END_FLOOR = 0.5

_FAILED_END, _FAILED_VARIANCE = 1.3, 0.1


@dataclass
class _Curve:
    """Sums and counts of the finite oriented values by cell; the first and the best of them."""

    cells: dict[int, list[float]] = field(default_factory=dict)
    first: float = math.nan
    best: float = math.inf

    def add(self, cell: int, value: float) -> None:
        if math.isnan(self.first):
            self.first = value
        self.best = min(self.best, value)
        entry = self.cells.setdefault(cell, [0.0, 0.0])
        entry[0] += value
        entry[1] += 1.0

    def arrays(self) -> tuple[NDArray[np.intp], FloatArray]:
        order = sorted(self.cells)
        values = [self.cells[cell][0] / self.cells[cell][1] for cell in order]
        return np.array(order, dtype=np.intp), np.array(values)


@dataclass
class State:
    """Everything the forecaster has learned.

    Args:
        shapes: sum of the curves' probabilities of each (shape, noise), short curves less.
        learned_at: numbers of curves and observations, and the best, when the common part was
            last learned.
    """

    bank: Bank
    embedding: surfaces.Embedding
    kernel: surfaces.Kernel
    shapes: FloatArray
    log_bank: FloatArray
    scale: Scale = field(default_factory=Scale)
    prior: Prior = field(default_factory=Prior)
    curves: dict[int, _Curve] = field(default_factory=dict)
    fits: dict[int, Fit] = field(default_factory=dict)
    failed: set[int] = field(default_factory=set)
    observations: int = 0
    best: float = math.inf
    learned_at: tuple[int, int, float] = (0, 0, math.inf)

    @property
    def log_prior(self) -> FloatArray:
        """Of (shape, noise): the bank's, shifted by what the study's curves look like."""
        mixed = self.shapes + _SHAPE_STRENGTH * np.exp(self.log_bank)
        return np.log(mixed / mixed.sum())


class Parametric(Forecaster):
    """An ensemble of power, exponential, logarithmic and Hill curves with optional tails.

    Example:
        >>> forecaster = Parametric()
        >>> state = forecaster.initial(context)                                # doctest: +SKIP
        >>> forecast = forecaster.forecast(context, state, trials, [Query(20, trial=3)])
        ...                                                                    # doctest: +SKIP
        >>> forecast.quantile(0.05)                                            # doctest: +SKIP
    """

    name = "parametric"
    summary = "ensemble of parametric curve families, and a Gaussian process over configurations"
    reference = (
        "Domhan et al. 2015, Speeding Up Automatic Hyperparameter Optimization of Deep Neural "
        "Networks by Extrapolation of Learning Curves, IJCAI; Swersky et al. 2014, 1406.3896"
    )

    def initial(self, context: SearchContext) -> State:
        """Nothing is known but the bank."""
        shapes = bank(min(context.horizon, CELLS))
        log_bank = np.log(shapes.weight)[:, None] - np.log(np.full(len(NOISES), len(NOISES)))
        return State(
            shapes,
            surfaces.Embedding(context.space),
            surfaces.initial(len(context.space.slots)),
            np.zeros_like(log_bank),
            log_bank,
        )

    def observe(self, state: State, event: Event, trials: Trials) -> State:
        """Fit the trial that was observed; now and then, learn what all have in common."""
        match event:
            case Observed(trial=number, step=step, metrics=metrics):
                value = trials.score(metrics)
                if math.isfinite(value):
                    cell = _cell(state.bank, step, trials[number].horizon)
                    state.curves.setdefault(number, _Curve()).add(cell, value)
                    state.best = min(state.best, value)
                    state.observations += 1
                    if not self._learn(state, trials):
                        self._fit(state, number)
            case Failed(trial=number, evaluation=None):
                state.failed.add(number)
            case _:
                pass
        return state

    def _fit(self, state: State, number: int) -> None:
        cells, values = state.curves[number].arrays()
        if number in state.fits:
            state.shapes -= _share(state, number) * state.fits[number].probability
            np.maximum(state.shapes, 0.0, out=state.shapes)
        values = state.scale.normalise(values)
        state.fits[number] = fit(state.bank, cells, values, state.prior, state.log_prior)
        state.shapes += _share(state, number) * state.fits[number].probability

    def _learn(self, state: State, trials: Trials) -> bool:
        """Learn scale, prior and surface anew, if it is time; then fit all curves."""
        curves, observations, best = state.learned_at
        improved = (best - state.best) / state.scale.width if state.scale.origin is None else 0.0
        if (
            len(state.curves) < max(curves + 1, GROWTH * curves)
            and observations * GROWTH**2 > state.observations
            and improved < IMPROVEMENT
        ):
            return False
        state.learned_at = (len(state.curves), state.observations, state.best)
        firsts = [curve.first for curve in state.curves.values()]
        bests = [curve.best for curve in state.curves.values()]
        state.scale = scales.fitted(trials.objective, firsts, bests)
        state.prior = _prior(state)
        state.fits.clear()
        common = state.log_prior
        state.shapes = np.zeros_like(state.shapes)
        for number, curve in state.curves.items():
            cells, values = curve.arrays()
            values = state.scale.normalise(values)
            state.fits[number] = fit(state.bank, cells, values, state.prior, common)
            state.shapes += _share(state, number) * state.fits[number].probability
        numbers, ends = _ends(state, trials)
        if len(numbers) >= 4:
            state.kernel = surfaces.learned(state.kernel, state.embedding.dimension, ends)
        return True

    def forecast(
        self, context: SearchContext, state: State, trials: Trials, queries: Sequence[Query]
    ) -> Forecast:
        """Predictive distributions for the queries."""
        if not queries:
            none = np.zeros((0, 1))
            return MixtureForecast(state.scale, none, none, none)
        numbers, ends = _ends(state, trials)
        end = np.full(len(queries), state.kernel.mean)
        spread = np.full(len(queries), state.kernel.amplitude + state.kernel.noise)
        if len(numbers):
            surface = surfaces.given(state.kernel, state.embedding.dimension, ends)
            self._ask(surface, numbers, state, trials, queries, end, spread)
        fresh = unobserved(state.prior, state.log_prior)
        fits = [
            state.fits[query.trial].components if query.trial in state.fits else fresh
            for query in queries
        ]
        components = Components(
            *(np.stack([getattr(one, f.name) for one in fits]) for f in fields(Components))
        )
        components = told(components, state.prior, end, spread)
        cells = np.array(
            [_cell(state.bank, query.step, _horizon(query, context, trials)) for query in queries]
        )
        return MixtureForecast(
            state.scale,
            *predicted(state.bank, components, cells),
            oriented_bounds(context.objective),
        )

    def _ask(
        self,
        surface: surfaces.Surface,
        numbers: list[int],
        state: State,
        trials: Trials,
        queries: Sequence[Query],
        end: FloatArray,
        spread: FloatArray,
    ) -> None:
        """Fill in, for every query, what the other trials say about its end."""
        inside = {number: row for row, number in enumerate(numbers)}
        loo_mean, loo_variance = surface.without_each()
        elsewhere: list[int] = []
        encoded: list[tuple[FloatArray, np.ndarray]] = []
        for index, query in enumerate(queries):
            if query.trial is not None and query.trial in inside:
                row = inside[query.trial]
                end[index], spread[index] = loo_mean[row], loo_variance[row]
            else:
                elsewhere.append(index)
                encoded.append(_encoded(query, trials))
        if elsewhere:
            where = state.embedding(
                np.stack([values for values, _ in encoded]), np.stack([mask for _, mask in encoded])
            )
            end[elsewhere], spread[elsewhere] = surface.elsewhere(where)


def _cell(shapes: Bank, step: int, horizon: int) -> int:
    cells = shapes.values.shape[1]
    return min(max(math.ceil(step * cells / horizon), 1), cells) - 1


def _horizon(query: Query, context: SearchContext, trials: Trials) -> int:
    return context.horizon if query.trial is None else trials[query.trial].horizon


def _encoded(query: Query, trials: Trials) -> tuple[FloatArray, np.ndarray]:
    if query.trial is not None:
        return trials[query.trial].encoded, trials[query.trial].mask
    if query.configuration is None:
        raise ValueError("a query names a trial or a configuration")
    return trials.space.encode(query.configuration)


def _coverage(state: State, number: int) -> float:
    """How much of its curve was observed, on a logarithmic axis of time; 1 is all."""
    last = max(state.curves[number].cells) + 1
    return math.log1p(last) / math.log1p(state.bank.values.shape[1])


def _share(state: State, number: int) -> float:
    """What a curve counts for in what the study's curves have in common: short ones less."""
    return _coverage(state, number) ** 2


def _prior(state: State) -> Prior:
    """Where the study's curves start and end, by those that are fitted, with floors on what may
    differ. What is known of short curves' ends comes from this prior in the first place, so
    they hardly count."""
    if len(state.fits) < 4:
        return Prior()
    numbers = list(state.fits)
    firsts = state.scale.normalise(np.array([state.curves[n].first for n in numbers]))
    weight = np.array([_share(state, n) for n in numbers])
    starts = np.array([state.fits[n].start for n in numbers])
    unsure = np.array([state.fits[n].start_variance for n in numbers])
    ends = np.array([state.fits[n].end for n in numbers])
    start, spread = _middle(starts, weight)
    end, width = _middle(ends, weight**2)
    _, first_spread = _middle(firsts, np.ones(len(numbers)))
    return Prior(
        max(start, float(np.median(firsts))),
        max(spread + float(np.average(unsure, weights=weight)), first_spread) + _START_FLOOR,
        end,
        max(width, _END_FLOOR),
    )


def _middle(values: FloatArray, weight: FloatArray) -> tuple[float, float]:
    """Median, and variance of the Gaussian with the same middle half: what diverges does not
    count."""
    order = np.argsort(values)
    below = np.cumsum(weight[order]) - 0.5 * weight[order]
    low, middle, high = np.interp([0.25, 0.5, 0.75], below / weight.sum(), values[order])
    return float(middle), float(((high - low) / 1.349) ** 2)


def _ends(state: State, trials: Trials) -> tuple[list[int], surfaces.Ends]:
    """What each curve alone says about its end, free of the prior, for at most `TRIALS` trials,
    by number. A failed trial ends badly."""
    known = list(state.fits) + [n for n in sorted(state.failed) if n not in state.fits]
    if len(known) > TRIALS:
        ranked = sorted(known, key=lambda n: state.fits[n].end if n in state.fits else math.inf)
        chosen = set(ranked[: TRIALS // 2])
        newest = [n for n in sorted(known, reverse=True) if n not in chosen]
        known = [*chosen, *newest[: TRIALS - len(chosen)]]
    known.sort()
    rows = np.array([_end(state, number) for number in known]).reshape(len(known), 3)
    if known:
        encoded = np.stack([trials[number].encoded for number in known])
        points = state.embedding(encoded, np.stack([trials[number].mask for number in known]))
    else:
        points = np.zeros((0, len(state.embedding.dimension)))
    return known, surfaces.Ends(points, *rows.T)


def _end(state: State, number: int) -> tuple[float, float, float]:
    """Value, variance and distance of extrapolation of a trial's end."""
    if number in state.failed:
        return _FAILED_END, _FAILED_VARIANCE, 0.0
    found, prior = state.fits[number], state.prior
    precision = max(1 / found.end_variance - 1 / prior.end_variance, 0.05)
    pulled = found.end / found.end_variance - prior.end / prior.end_variance
    value = min(max(pulled / precision, -1.0), 3.0)
    return value, 1 / precision, 1.0 - _coverage(state, number)

"""The curve network as a forecaster of studies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from autotune.pfn import features, histogram, relations, scaling, slots, weights
from autotune.pfn.network import CurveNetwork, horizons, tokens
from autotune.pfn.scaling import Scaling
from autotune.plugins.search import (
    Event,
    Failed,
    FloatArray,
    Forecast,
    Forecaster,
    Objective,
    Observed,
    Query,
    SearchContext,
)
from autotune.plugins.trials import Trials

TRIALS = 2048
"""The network looks at no more trials: the better half by their best value, the rest the
newest."""

_CAUSES = frozenset({"not_finite", "out_of_memory", "error"})
"""Failures that tell something about the configuration."""

_QUERIES = 512
"""Queries that go through the network together."""


class HistogramForecast(Forecast):
    """Histograms on the network's scale, in the metric's own units through `scaling`."""

    def __init__(self, scale: Scaling, logits: Tensor) -> None:
        self._scale = scale
        self._logits = logits
        self._edge = histogram.edges(logits)

    def __len__(self) -> int:
        return len(self._edge)

    def probability_below(self, threshold: float | FloatArray) -> FloatArray:
        """P(value < threshold), shape (queries,)."""
        y = self._scale.normalise(np.asarray(threshold, dtype=np.float64))
        place = torch.from_numpy(np.array(np.broadcast_to(y, (len(self),))))
        return np.asarray(1.0 - histogram.below(self._edge, place).numpy())

    def quantile(self, probability: float) -> FloatArray:
        """Quantiles, shape (queries,)."""
        return self._scale.restore(histogram.quantile(self._edge, 1.0 - probability).numpy())

    def mean(self) -> FloatArray:
        """Means, shape (queries,)."""
        bins = self._edge.shape[-1] - 1
        centres = self._scale.restore((np.arange(bins) + 0.5) / bins)
        return np.asarray(np.diff(self._edge.numpy(), axis=-1) @ centres)

    def log_density(self, value: FloatArray) -> FloatArray:
        """Log density at `value` (queries,), shape (queries,)."""
        y = torch.from_numpy(self._scale.normalise(value)).float()
        density = histogram.log_density(self._logits, y).double().numpy()
        return np.asarray(density + self._scale.log_slope(value))


@dataclass
class State:
    """What is known of every trial beside its curve, which `Trials` holds. Values are oriented so
    that less is better: the `first` finite one, the `best` one (infinite where none is finite);
    and the unit at which it `failed`."""

    objective: Objective
    plan: slots.Layout
    first: dict[int, float] = field(default_factory=dict)
    best: dict[int, float] = field(default_factory=dict)
    failed: dict[int, int] = field(default_factory=dict)


class CurveNetworkForecaster(Forecaster):
    """Forecasts all curves of a study in one pass of a transformer with one token a curve.

    The network was fitted to artificial curves only (`autotune.pfn.prior`); nothing is learned
    during a study. It sees the horizon (times are shares of it), every active hyperparameter
    (`SLOTS` at once; of more, the most important), and diverged curves as such: they end at the
    worst value.
    """

    name = "pfn"
    summary = "a transformer fitted to artificial curves; one token a curve"
    reference = (
        "After Rakotoarison et al. 2024, In-Context Freeze-Thaw Bayesian Optimization for "
        "Hyperparameter Optimization, 2404.16795; network, prior and weights are this project's"
    )

    def network(self) -> CurveNetwork:
        """The weights that come with the package."""
        return weights.shared(Path(weights.SHIPPED))

    def remarks(self, context: SearchContext) -> list[str]:
        """What a user should know before the study begins."""
        groups = slots.layout(context.space).groups
        if groups <= slots.SLOTS:
            return []
        return [
            f"the space has {groups} hyperparameters active at once; the forecaster sees the "
            f"{slots.SLOTS} that matter most in this study's results so far"
        ]

    def initial(self, context: SearchContext) -> State:
        """Nothing is known."""
        return State(context.objective, slots.layout(context.space))

    def observe(self, state: State, event: Event, trials: Trials) -> State:
        """Note what was observed, and failures as the worst value there is."""
        match event:
            case Observed(trial=number, metrics=metrics):
                value = state.objective.sign * metrics.get(state.objective.name, math.nan)
                if math.isfinite(value):
                    state.first.setdefault(number, value)
                else:
                    value = math.inf
                state.best[number] = min(value, state.best.get(number, math.inf))
            case Failed(trial=number, step=step, cause=cause, evaluation=None):
                if cause in _CAUSES:
                    state.failed[number] = step + 1
                    state.best.setdefault(number, math.inf)
            case _:
                pass
        return state

    @torch.inference_mode()
    def forecast(
        self, context: SearchContext, state: State, trials: Trials, queries: Sequence[Query]
    ) -> Forecast:
        """Predictive distributions for the queries."""
        scale = scaling.fitted(
            state.objective,
            np.array(list(state.first.values())),
            np.array([best for best in state.best.values() if best < math.inf]),
        )
        network = self.network()
        if not queries:
            return HistogramForecast(scale, torch.zeros(0, network.size.bins))
        seen = _seen(context, state, trials, scale, queries)
        memory = network.remember(seen.context[None])
        logits = [
            network.forecast(memory, seen.queries[None, part], seen.horizons[None, part])
            for part in torch.arange(len(queries)).split(_QUERIES)
        ]
        return HistogramForecast(scale, torch.cat(logits, dim=1)[0])


@dataclass(frozen=True)
class _Seen:
    """A study as tokens: of the trials that are looked at, (trials, TOKEN), of the queries,
    (queries, TOKEN), and what these ask, (queries, HORIZON)."""

    context: Tensor
    queries: Tensor
    horizons: Tensor


def _seen(
    context: SearchContext,
    state: State,
    trials: Trials,
    scale: Scaling,
    queries: Sequence[Query],
) -> _Seen:
    chosen = _chosen(state)
    number, step, value = _curves(state, trials, chosen)
    row_of = {int(trial): row for row, trial in enumerate(chosen)}
    row, encoded, mask = _rows(trials, row_of, queries)
    filled = _filled(state, trials, scale, chosen, encoded, mask)
    count = len(filled)

    curve = torch.from_numpy(np.searchsorted(chosen, number).astype(np.int64))
    time = torch.from_numpy(np.minimum(step / context.horizon, 1.0)).float()
    observed = torch.from_numpy(scale.normalise(value)).float()
    spacing = torch.full((count,), 1.0 / context.horizon)
    described = features.curves(count, curve, time, observed, spacing)
    basis = torch.from_numpy(_best_and_newest(state, chosen, relations.BASIS))[None]
    related = relations.relate(filled[None], curve, time, observed, basis)
    found = tokens(described, related.curve[0], filled)

    asked = torch.tensor([min(query.step / context.horizon, 1.0) for query in queries])
    last_time = described[row, features.LAST_TIME]
    last_value = described[row, features.LAST_VALUE]
    horizon = features.horizon(asked, last_time, spacing[row])
    by_others = relations.asked(related, row[None], asked[None], last_value[None])[0]
    return _Seen(found[: len(chosen)], found[row], horizons(horizon, by_others))


def _rows(
    trials: Trials, row_of: dict[int, int], queries: Sequence[Query]
) -> tuple[Tensor, FloatArray, np.ndarray]:
    """The row of each query, and configurations and masks of all rows: the trials that are
    looked at, then one for every query about anything else."""
    places = [trials[trial].encoded for trial in row_of]
    masks = [trials[trial].mask for trial in row_of]
    rows = []
    for query in queries:
        if query.trial in row_of:
            rows.append(row_of[query.trial])
            continue
        if query.trial is not None:
            place, mask = trials[query.trial].encoded, trials[query.trial].mask
        elif query.configuration is not None:
            place, mask = trials.space.encode(query.configuration)
        else:
            raise ValueError("a query names a trial or a configuration")
        rows.append(len(places))
        places.append(place)
        masks.append(mask)
    return torch.tensor(rows), np.stack(places), np.stack(masks)


def _filled(
    state: State,
    trials: Trials,
    scale: Scaling,
    chosen: np.ndarray,
    encoded: FloatArray,
    mask: np.ndarray,
) -> Tensor:
    """Configurations in the network's slots, (rows, SLOTS, 3)."""
    known = len(chosen)
    scores = scale.normalise(np.array([state.best.get(int(t), math.inf) for t in chosen]))
    kept = slots.important(state.plan, encoded[:known], mask[:known], scores)
    return torch.from_numpy(slots.filled(state.plan, encoded, mask, kept))


def _curves(
    state: State, trials: Trials, chosen: np.ndarray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Trial, step and oriented value of all observations of the trials that are looked at, by
    trial and step; where one failed, and where a value is not finite, infinite."""
    numbers, steps, values = [np.zeros(0)], [np.zeros(0)], [np.zeros(0)]
    for number in map(int, chosen):
        step, value = trials.scores(number)
        failed = state.failed.get(number)
        if failed is not None:
            place = np.searchsorted(step, failed)
            beyond = place + (failed in step)
            step = np.concatenate([step[:place], [failed], step[beyond:]])
            value = np.concatenate([value[:place], [math.inf], value[beyond:]])
        numbers.append(np.full(len(step), number))
        steps.append(step)
        values.append(np.where(np.isfinite(value), value, math.inf))
    return np.concatenate(numbers), np.concatenate(steps), np.concatenate(values)


def _chosen(state: State) -> np.ndarray:
    """Numbers of the trials that are looked at, ascending."""
    known = np.array(sorted(state.best), dtype=np.int64)
    return known[_best_and_newest(state, known, TRIALS)]


def _best_and_newest(state: State, known: np.ndarray, most: int) -> np.ndarray:
    """Places in `known`, ascending numbers of trials, of at most `most` of them: the better half
    by their best value, the rest the newest; ascending."""
    if len(known) <= most:
        return np.arange(len(known))
    score = np.array([state.best.get(int(trial), math.inf) for trial in known])
    ranked = np.lexsort((known, score))
    best, rest = ranked[: most // 2], np.sort(ranked[most // 2 :])
    return np.sort(np.concatenate([best, rest[-(most - len(best)) :]]))

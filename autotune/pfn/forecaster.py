"""The curve network as a forecaster of studies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from autotune.pfn import features, histogram, scaling, slots, weights
from autotune.pfn.network import CurveNetwork, tokens
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
    """The curves, oriented so that less is better, in the order of their observations; `first`
    and `best` finite value of every trial; where trials failed."""

    objective: Objective
    plan: slots.Layout
    trial: list[int] = field(default_factory=list)
    step: list[int] = field(default_factory=list)
    value: list[float] = field(default_factory=list)
    first: dict[int, float] = field(default_factory=dict)
    best: dict[int, float] = field(default_factory=dict)


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
            case Observed(trial=number, step=step, metrics=metrics):
                value = state.objective.sign * metrics.get(state.objective.name, math.nan)
                self._note(state, number, step, value if math.isfinite(value) else math.inf)
            case Failed(trial=number, step=step, cause=cause, evaluation=None):
                if cause in _CAUSES:
                    self._note(state, number, step + 1, math.inf)
            case _:
                pass
        return state

    @staticmethod
    def _note(state: State, number: int, step: int, value: float) -> None:
        state.trial.append(number)
        state.step.append(step)
        state.value.append(value)
        if math.isfinite(value):
            state.first.setdefault(number, value)
            state.best[number] = min(value, state.best.get(number, math.inf))

    @torch.inference_mode()
    def forecast(
        self, context: SearchContext, state: State, trials: Trials, queries: Sequence[Query]
    ) -> Forecast:
        """Predictive distributions for the queries."""
        scale = scaling.fitted(
            state.objective,
            np.array(list(state.first.values())),
            np.array(list(state.best.values())),
        )
        network = self.network()
        if not queries:
            return HistogramForecast(scale, torch.zeros(0, network.size.bins))
        seen = _Seen(context, state, trials, scale)
        memory = network.remember(seen.context()[None])
        logits = [
            network.forecast(
                memory, *seen.asked(context, trials, queries[begin : begin + _QUERIES])
            )
            for begin in range(0, len(queries), _QUERIES)
        ]
        return HistogramForecast(scale, torch.cat(logits, dim=1)[0])


class _Seen:
    """A study's curves as tokens. Trials that are looked at have rows; a last row, without
    observations, stands for new configurations."""

    def __init__(
        self, context: SearchContext, state: State, trials: Trials, scale: Scaling
    ) -> None:
        number, step, value = _curves(state)
        chosen = _chosen(state, number)
        self.row = {int(trial): row for row, trial in enumerate(chosen)}
        inside = np.isin(number, chosen)
        row = np.searchsorted(chosen, number[inside])
        horizon = float(max(context.horizon, 1))
        self.spacing = 1.0 / horizon
        time = np.minimum(step[inside] / horizon, 1.0)
        spacing = torch.full((len(chosen) + 1,), self.spacing)
        self.described = features.curves(
            len(chosen) + 1,
            torch.from_numpy(row.astype(np.int64)),
            torch.from_numpy(time),
            torch.from_numpy(scale.normalise(value[inside])),
            spacing,
        )
        self.last = torch.zeros(len(chosen) + 1)
        self.last[torch.from_numpy(row.astype(np.int64))] = torch.from_numpy(time).float()
        dimensions = len(context.space.slots)
        encoded = np.zeros((len(chosen), dimensions))
        mask = np.zeros((len(chosen), dimensions), dtype=bool)
        for place, trial in enumerate(chosen.tolist()):
            encoded[place], mask[place] = trials[trial].encoded, trials[trial].mask
        scores = scale.normalise(np.array([state.best.get(int(t), math.inf) for t in chosen]))
        self.plan = state.plan
        self.kept = slots.important(self.plan, encoded, mask, scores)
        filled = slots.filled(self.plan, encoded, mask, self.kept)
        self.configurations = torch.from_numpy(filled)

    def context(self) -> Tensor:
        """Tokens of the curves, (curves, TOKEN)."""
        return tokens(self.described[:-1], self.configurations)

    def asked(
        self, context: SearchContext, trials: Trials, queries: Sequence[Query]
    ) -> tuple[Tensor, Tensor]:
        """Tokens and horizon features of queries, (1, queries, ...)."""
        encoded, mask = [], []
        for query in queries:
            if query.trial is not None:
                places, active = trials[query.trial].encoded, trials[query.trial].mask
            elif query.configuration is not None:
                places, active = trials.space.encode(query.configuration)
            else:
                raise ValueError("a query names a trial or a configuration")
            encoded.append(places)
            mask.append(active)
        new = len(self.described) - 1
        row = torch.tensor(
            [self.row.get(q.trial, new) if q.trial is not None else new for q in queries]
        )
        configurations = slots.filled(self.plan, np.stack(encoded), np.stack(mask), self.kept)
        asked = torch.tensor([min(q.step / context.horizon, 1.0) for q in queries])
        horizon = features.horizon(asked, self.last[row], torch.full_like(asked, self.spacing))
        found = tokens(self.described[row], torch.from_numpy(configurations))
        return found[None], horizon[None]


def _curves(state: State) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Trial, step and value of all observations by trial and step; of a step that was trained
    twice the later value."""
    trial = np.array(state.trial, dtype=np.int64)
    step = np.array(state.step, dtype=np.int64)
    value = np.array(state.value)
    order = np.lexsort((np.arange(len(trial)), step, trial))
    trial, step, value = trial[order], step[order], value[order]
    last = np.ones(len(trial), dtype=bool)
    last[:-1] = (trial[1:] != trial[:-1]) | (step[1:] != step[:-1])
    return trial[last], step[last], value[last]


def _chosen(state: State, number: np.ndarray) -> np.ndarray:
    """Numbers of the trials that are looked at, ascending."""
    known = np.unique(number)
    if len(known) <= TRIALS:
        return known
    score = np.array([state.best.get(int(trial), math.inf) for trial in known])
    ranked = known[np.lexsort((known, score))]
    best, rest = ranked[: TRIALS // 2], np.sort(ranked[TRIALS // 2 :])
    return np.sort(np.concatenate([best, rest[-(TRIALS - len(best)) :]]))

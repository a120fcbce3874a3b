"""What a unit of training costs in seconds, as a function of the configuration.

With a budget in seconds or GPU-seconds a search must know what a unit costs before a candidate is
trained: batch size, width, depth and optimizer change it by an order of magnitude. Costs are
products of such factors, so their logarithm is close to linear in the encoded configuration, and
what is not linear is smooth: a Gaussian process on log seconds whose kernel is linear plus
squared-exponential (Rasmussen and Williams 2006, sections 2.7 and 4.2.1; the idea of a model of
log cost beside that of the objective is that of Snoek et al. 2012, 1206.2944, section 3.2).

What options are declared to cost (`SearchContext.costs`: an optimizer that decomposes matrices
says so) is the process's mean, until and where nothing was timed. How far it counts, from all to
nothing, is a regression's slope on what was timed; what it says wrongly of one option, the process
learns as it learns everything else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.linalg import cho_solve, cholesky

from autotune.decide.forecasters.surface import Embedding
from autotune.plugins.search import Budget, Event, FloatArray, Observed
from autotune.plugins.trials import Trials
from autotune.space import Configuration

DeclaredCosts = Mapping[str, Mapping[str, float]]
"""Of units, relative to each other, by choice and option."""

LOOKED_AT = 160
"""The model is fitted to no more trials than this, the newest."""

ENOUGH = 4
"""With fewer trials of known cost, a new configuration is taken to cost what the typical one
did."""

_NOISES = (0.01, 0.1, 0.4)
_SHARES = (0.2, 1.0)
_LENGTHS = (0.7, 2.0)
_LEAST_RELEVANCE = 0.1


def spare_seconds(budget: Budget, trials: Trials) -> float:
    """Seconds that one worker may train for by a budget in seconds or GPU-seconds, as a policy is
    told it; infinite where it has neither."""
    limits = [math.inf]
    if budget.seconds is not None:
        limits.append(budget.seconds - trials.at)
    if budget.gpu_seconds is not None and trials.gpus:
        limits.append((budget.gpu_seconds - trials.gpu_seconds) / trials.gpus)
    return min(limits)


@dataclass
class Costs:
    """Seconds of every trial's units, as a fold of the events; constant work an event.

    Args:
        first: of each trial's first unit, which pays for warm-up (compilation, caches, the start
            of data loaders).
        total, count: sum and number of the units after it.
    """

    first: dict[int, float] = field(default_factory=dict)
    total: dict[int, float] = field(default_factory=dict)
    count: dict[int, int] = field(default_factory=dict)

    def observe(self, event: Event) -> None:
        """Fold one event."""
        if not isinstance(event, Observed) or not math.isfinite(event.seconds):
            return
        seconds, number = max(event.seconds, 0.0), event.trial
        if event.step == 1:
            self.first[number] = seconds
        else:
            self.total[number] = self.total.get(number, 0.0) + seconds
            self.count[number] = self.count.get(number, 0) + 1

    def warm_up(self) -> float:
        """How many times as long the first unit takes as a later one: the median over the trials
        that have both; 1 while there is none."""
        ratios = [
            self.first[number] / (total / self.count[number])
            for number, total in self.total.items()
            if total > 0 and self.first.get(number, 0.0) > 0
        ]
        return float(np.median(ratios)) if ratios else 1.0

    def known(self) -> dict[int, float]:
        """Seconds a unit after the first of every trial with observations: the mean of those
        units, or what its first unit tells."""
        warm_up = self.warm_up()
        found = {number: seconds / warm_up for number, seconds in self.first.items()}
        found.update((n, total / self.count[n]) for n, total in self.total.items())
        return {number: seconds for number, seconds in found.items() if seconds > 0}

    def model(self, trials: Trials, costs: DeclaredCosts | None = None) -> CostModel:
        """What is known now, as a function of configurations. Does no more than `LOOKED_AT`
        trials' work. `costs` are what is declared."""
        known = self.known()
        chosen = sorted(known)[-LOOKED_AT:]
        log_seconds = np.log([known[number] for number in chosen]) if chosen else np.zeros(0)
        declared = _Declared(costs or {})
        told = declared.log_costs([trials[number].configuration for number in chosen])
        declared = replace(declared, trust=_slope(told, log_seconds))
        log_seconds = log_seconds - declared.trust * told
        embed = Embedding(trials.space)
        surface = None
        if len(chosen) >= ENOUGH and float(np.ptp(log_seconds)) > 1e-6:
            points = embed(
                np.stack([trials[number].encoded for number in chosen]),
                np.stack([trials[number].mask for number in chosen]),
            )
            surface = _fitted(points, log_seconds)
        typical = float(np.median(log_seconds)) if chosen else 0.0
        return CostModel(trials, known, self.warm_up(), typical, embed, surface, declared)


@dataclass(frozen=True)
class CostModel:
    """Seconds a unit, observed or predicted.

    Args:
        known: a trial's own mean, by number.
        warm_up: how many times as long a trial's first unit takes.
        typical: median log seconds beside what is declared; 0 while nothing is known, so that
            all costs are as declared then.
    """

    trials: Trials
    known: dict[int, float]
    warm_up: float
    typical: float
    embed: Embedding
    surface: _Surface | None
    declared: _Declared

    def of_trial(self, number: int) -> float:
        """Seconds of a further unit of a trial: its own mean where it has one."""
        if number in self.known:
            return self.known[number]
        return float(self.of_new([self.trials[number].configuration])[0])

    def of_new(self, configurations: list[Configuration]) -> FloatArray:
        """Seconds of a unit after the first, shape (configurations,)."""
        declared = self.declared.trust * self.declared.log_costs(configurations)
        if self.surface is None or not configurations:
            return np.asarray(np.exp(self.typical + declared))
        encoded = [self.trials.space.encode(configuration) for configuration in configurations]
        points = self.embed(np.stack([e for e, _ in encoded]), np.stack([m for _, m in encoded]))
        return np.asarray(np.exp(self.surface(points) + declared))


@dataclass(frozen=True)
class _Declared:
    """What is declared, and how far it counts."""

    costs: DeclaredCosts
    trust: float = 1.0

    def log_costs(self, configurations: list[Configuration]) -> FloatArray:
        """Log of the relative cost of each, shape (configurations,)."""
        found = np.zeros(len(configurations))
        for key, options in self.costs.items():
            for place, configuration in enumerate(configurations):
                found[place] += math.log(options.get(configuration[key]["name"], 1.0))
        return found


def _slope(told: FloatArray, log_seconds: FloatArray) -> float:
    """How much of what is declared the times bear out, in [0, 1]: regression towards 1, which
    counts as much as one trial that is a natural unit off the mean."""
    if len(told) == 0 or float(np.ptp(told)) == 0.0:
        return 1.0
    centred = told - told.mean()
    slope = (centred @ (log_seconds - log_seconds.mean()) + 1.0) / (centred @ centred + 1.0)
    return float(min(1.0, max(0.0, slope)))


def predicted(known: FloatArray, values: FloatArray, asked: FloatArray) -> tuple[FloatArray, float]:
    """What is expected at points, (asked,), and what such a prediction misses by: from the
    process where there are values enough that differ, else their median and spread.

    Args:
        known, asked: embedded configurations, (trials, features) and (asked, features).
        values: (trials,), such as log seconds.
    """
    if len(values) >= ENOUGH and float(np.ptp(values)) > 1e-6:
        surface = _fitted(known, values)
        return surface(asked), surface.deviation
    typical = float(np.median(values)) if len(values) else 0.0
    return np.full(len(asked), typical), float(values.std()) if len(values) else 1.0


@dataclass(frozen=True)
class _Surface:
    """The posterior mean of the process. `low` and `high` bound it: a prediction far outside of
    what was seen is not believed.

    Args:
        points: (trials, features), centred and scaled by `relevance`, as are all others.
        weights: (trials,), of the kernel's columns.
        deviation: what a prediction misses by, the root mean square over the trials, each
            predicted from all others.
    """

    centre: FloatArray
    relevance: FloatArray
    points: FloatArray
    weights: FloatArray
    mean: float
    share: float
    length: float
    low: float
    high: float
    deviation: float

    def __call__(self, points: FloatArray) -> FloatArray:
        """Log seconds, shape (points,)."""
        scaled = (points - self.centre) * self.relevance
        found = self.mean + _kernel(scaled, self.points, self.share, self.length) @ self.weights
        return np.asarray(np.clip(found, self.low, self.high))


def _kernel(a: FloatArray, b: FloatArray, share: float, length: float) -> FloatArray:
    """Linear, plus `share` times squared-exponential; shape (points of a, points of b)."""
    inner = a @ b.T
    squared = (a * a).sum(1)[:, None] + (b * b).sum(1)[None, :] - 2.0 * inner
    return np.asarray(inner + share * np.exp(-0.5 * np.maximum(squared, 0.0) / length**2))


def _fitted(points: FloatArray, log_seconds: FloatArray) -> _Surface:
    """The process whose hyperparameters make the observations likeliest, of a small grid.

    A dimension counts by its slope in a ridge regression: most do not change the cost at all,
    and a distance that counts them all alike finds no two configurations near each other.
    """
    centre, mean = points.mean(0), float(log_seconds.mean())
    residual = log_seconds - mean
    spread = max(float(residual.std()), 1e-6)
    centred = points - centre
    gram = centred.T @ centred + 0.3 * np.eye(centred.shape[1])
    slope = np.abs(np.linalg.solve(gram, centred.T @ residual)) / spread
    relevance = np.maximum(slope, _LEAST_RELEVANCE)
    scaled = centred * relevance
    best: tuple[float, FloatArray, float, float, FloatArray] | None = None
    for share in _SHARES:
        for length in _LENGTHS:
            smooth = _kernel(scaled, scaled, share, length)
            for noise in _NOISES:
                covariance = smooth + (noise * noise + 1e-6) * np.eye(len(scaled))
                factor = cholesky(covariance, lower=True, check_finite=False)
                weights = cho_solve((factor, True), residual / spread, check_finite=False)
                misfit = 0.5 * (residual / spread) @ weights + np.log(np.diag(factor)).sum()
                if best is None or misfit < best[0]:
                    best = float(misfit), weights * spread, share, length, factor
    assert best is not None, "the grid is not empty"
    reach = float(np.ptp(log_seconds))
    low, high = float(log_seconds.min()) - reach, float(log_seconds.max()) + reach
    inverse = cho_solve((best[4], True), np.eye(len(scaled)), check_finite=False)
    missed = best[1] / np.diag(inverse)  # leave-one-out (Rasmussen and Williams, eq. 5.12)
    deviation = float(np.sqrt(np.mean(missed**2)))
    return _Surface(
        centre, relevance, scaled, best[1], mean, best[2], best[3], low, high, deviation
    )

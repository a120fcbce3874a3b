"""What a forecaster has seen when it is asked, drawn as the ifBO paper draws it.

Rakotoarison et al. 2024 (arXiv 2404.16795), section 5.1, and the authors' `generate_tasks.py`:
the number of levels is ``round(10 ** U(0, 3))``, at most T; every configuration gets a weight
Gamma(a, a), ``a = 10 ** U(-4, -1)``, plus 1e-9; 2,000 (configuration, level) are drawn without
replacement by these weights, and drawn again if there are not so many. A configuration that
was drawn k times among the first `observations` is observed at its first k units. Asked is the
value at the last unit, T, of every configuration observed; as 2,000 is all the network there
could hold, of at most ``2000 - observations`` of them.

Where this differs: one draw serves all numbers of observations, each a prefix of the next (the
distributions are the same), so that folding it once is enough.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autotune.plugins.search import (
    Budget,
    Decided,
    Forecast,
    Forecaster,
    Frozen,
    Objective,
    Observed,
    Query,
    SearchContext,
    Start,
    Thaw,
)
from autotune.plugins.trials import Trials
from autotune.space import Space
from common.tables import FloatArray, Table

LENGTH = 2000
"""Observations and queries of the paper together."""

SIZES = (400, 800, 1000, 1400, 1800)
"""Numbers of observations in the published table."""

SCALED = Objective("value", "maximize", "curve", bounds=(0.0, 1.0))
"""What forecasters are told of the scaled metric."""

_ATTEMPTS = 1000
"""Draws before a table is called too small."""


@dataclass(frozen=True)
class Drawn:
    """One draw: `rows` are the configurations in the order of their observations, (length,)."""

    table: Table
    rows: NDArray[np.intp]
    seed: int


RESOLUTION = 1000
"""Likelihoods and tails are taken over so many equal cells of [0, 1]: the paper's bars. Values
that fall on one another (a run that diverged, a curve that is finished) then win no forecast an
unbounded density."""

LEAST = 1e-16
"""The least probability of a cell that is told from none."""


@dataclass(frozen=True)
class Scores:
    """Of every query, shape (queries,): log-likelihood in units of the scaled metric, squared
    error of the mean, and how much of the outcome's cell lies under the 5 % and above the 95 %
    quantile (for a forecast that is right, .05 on average each, whatever its atoms)."""

    log_likelihood: FloatArray
    squared_error: FloatArray
    below_5: FloatArray
    above_95: FloatArray


@dataclass
class Seen:
    """A forecaster after some observations, and what it is to be asked.

    Args:
        queries, outcomes: what is asked, and the true values, scaled, more is better.
    """

    forecaster: Forecaster
    context: SearchContext
    state: object
    trials: Trials
    queries: list[Query]
    outcomes: FloatArray

    def ask(self) -> Forecast:
        """The forecast of the queries."""
        return self.forecaster.forecast(self.context, self.state, self.trials, self.queries)

    def scored(self, forecast: Forecast) -> Scores:
        """Holds a forecast of the queries against what happened."""
        outcomes = self.outcomes
        cell = np.minimum(np.floor(outcomes * RESOLUTION), RESOLUTION - 1)
        low, high = cell / RESOLUTION, (cell + 1) / RESOLUTION
        # A forecast is of the negated metric: P(metric < a) = 1 - P(negated < -a).
        under = np.where(cell == 0, 0.0, 1.0 - forecast.probability_below(-low))
        upto = np.where(cell == RESOLUTION - 1, 1.0, 1.0 - forecast.probability_below(-high))
        inside = np.maximum(upto - under, LEAST)
        return Scores(
            np.log(inside) + math.log(RESOLUTION),
            (-forecast.mean() - outcomes) ** 2,
            np.clip((0.05 - under) / inside, 0.0, 1.0),
            np.clip((upto - 0.95) / inside, 0.0, 1.0),
        )


def draw(table: Table, index: int) -> Drawn:
    """The draw number `index` of a table, the same for every forecaster.

    Tables with fewer than 2,000 (configuration, unit) are drawn from as far as they go.
    """
    seed = zlib.crc32(f"{table.name} {index}".encode())
    generator = np.random.default_rng(seed)
    count = min(1000, len(table))
    length = min(LENGTH, count * table.units)
    shuffled = generator.permutation(len(table))[:count]
    for _ in range(_ATTEMPTS):
        levels = min(round(10 ** generator.uniform(0, 3)), table.units)
        shape = 10 ** generator.uniform(-4, -1)
        weights = generator.gamma(shape, shape, count) + 1e-9
        if count * levels >= length:
            break
    # Successive draws by weight without replacement are the smallest of exponential times.
    times = generator.exponential(size=(count, levels)) / weights[:, None]
    order = np.argsort(times, axis=None)[:length]
    return Drawn(table, shuffled[order // levels], seed)


def folded(
    drawn: Drawn, forecaster: Forecaster, sizes: Sequence[int]
) -> Iterator[tuple[int, Seen]]:
    """(observations, what is seen) at each of `sizes` that leaves something to ask; the
    forecaster goes on between them."""
    table = drawn.table
    context = SearchContext(
        table.space(), Space({}), (SCALED,), table.units, Budget(), drawn.seed % 2**31
    )
    trials = Trials(context.space, context.objectives)
    state = forecaster.initial(context)
    numbers: dict[int, int] = {}
    sizes = [size for size in sizes if size < len(drawn.rows)]
    for count, row in enumerate(drawn.rows[: max(sizes, default=0)].tolist(), 1):
        for event in _events(drawn.table, context, trials, numbers, row):
            trials.observe(event)
            state = forecaster.observe(state, event, trials)
        if count in sizes:
            asked = sorted(numbers.values())[: len(drawn.rows) - count]
            of = {number: known for known, number in numbers.items()}
            outcomes = np.array([table.curves[of[number], -1] for number in asked])
            queries = [Query(table.units, trial=number) for number in asked]
            yield count, Seen(forecaster, context, state, trials, queries, outcomes)


def _events(
    table: Table, context: SearchContext, trials: Trials, numbers: dict[int, int], row: int
) -> Iterator[Decided | Observed | Frozen]:
    """One more unit of a configuration."""
    if row not in numbers:
        numbers[row] = len(trials)
        number, step = numbers[row], 1
        start = Start(number, context.space.configuration(row), table.units, 1)
        yield Decided(trials.decisions, start)
    else:
        number, step = numbers[row], trials[numbers[row]].last + 1
        yield Decided(trials.decisions, Thaw(number, step))
    yield Observed(number, step, {SCALED.name: float(table.curves[row, step - 1])}, 1.0)
    yield Frozen(number, step, f"{number}-{step}")

"""The time of one forecast at a stated size, on one thread and on two."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from autotune.plugins.search import Forecaster, Query
from common.contexts import SCALED, Drawn, Seen, folded
from common.tables import Table

CURVES, OBSERVATIONS, QUERIES, UNITS, DIMENSIONS = 200, 1000, 300, 50, 8


def _seen(forecaster: Forecaster) -> Seen:
    """A forecaster that has seen `OBSERVATIONS` of `CURVES` curves that rise by a power law, and
    is asked for the ends of all of them and of new configurations."""
    generator = np.random.default_rng(0)
    points = generator.random((2 * CURVES, DIMENSIONS))
    ends = 0.4 + 0.5 * points[:, :1] * (1 - points[:, 1:2])
    falls = np.arange(1, UNITS + 1) ** -generator.uniform(0.3, 1.5, (2 * CURVES, 1))
    curves = ends - 0.35 * falls + 0.005 * generator.normal(size=falls.shape)
    curves = np.clip(curves, 0.0, 1.0)
    active = np.ones(points.shape, dtype=bool)
    table = Table("speed", "speed", SCALED, points, active, curves, curves)
    # Every curve is seen at least once; the rest falls to chance, more to some.
    counts = np.ones(CURVES, dtype=int)
    share = generator.dirichlet(np.full(CURVES, 0.3))
    while counts.sum() < OBSERVATIONS:
        row = generator.choice(CURVES, p=share)
        counts[row] += counts[row] < UNITS
    rows = generator.permutation(np.repeat(np.arange(CURVES), counts))
    *_, (_, seen) = folded(Drawn(table, np.append(rows, 0), 0), forecaster, (OBSERVATIONS,))
    seen.queries = [Query(UNITS, trial=number) for number in range(CURVES)]
    seen.queries += [
        Query(UNITS, configuration=seen.context.space.configuration(CURVES + row))
        for row in range(QUERIES - CURVES)
    ]
    return seen


def show(names: Sequence[str], forecaster_named: Callable[[str], Forecaster], repeats: int) -> None:
    """Prints, for every forecaster, milliseconds of folding all observations, of the first
    forecast (which learns what is due) and, the median of `repeats`, of the next ones."""
    print(
        f"{f'{CURVES} curves, {OBSERVATIONS} observations, {QUERIES} queries, ms':46}"
        f"{'folding':>9}{'first':>9}{'1 thread':>10}{'2 threads':>10}"
    )
    for name in names:
        with threadpool_limits(1):
            torch.set_num_threads(1)
            started = time.perf_counter()
            seen = _seen(forecaster_named(name))
            folding = time.perf_counter() - started
        times = {}
        started = time.perf_counter()
        seen.ask().quantile(0.5)
        first = time.perf_counter() - started
        for threads in (1, 2):
            with threadpool_limits(threads):
                torch.set_num_threads(threads)
                times[threads] = statistics.median(_timed(seen) for _ in range(repeats))
        print(
            f"{name:46}{1e3 * folding:9.0f}{1e3 * first:9.0f}"
            f"{1e3 * times[1]:10.1f}{1e3 * times[2]:10.1f}",
            flush=True,
        )


def _timed(seen: Seen) -> float:
    started = time.perf_counter()
    seen.ask()
    return time.perf_counter() - started

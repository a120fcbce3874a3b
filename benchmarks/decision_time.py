"""How long one decision of the freeze-thaw search takes, and its forecast alone.

    python benchmarks/decision_time.py
    python benchmarks/decision_time.py --forecaster parametric
    python benchmarks/decision_time.py --smoke

A search is shown so many curves of a made-up task (eight hyperparameters, up to 50 units each),
and asked what to train next, with the default proposer, on two threads. The table gives medians,
in milliseconds, of the decision, of the forecasts made for it, and of their ratio. The aims:
under 100 ms and at most 1.5 times the forecast at 200 curves; under 500 ms at 2,000 curves with
100,000 observations.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from autotune.decide import Search, build_search
from autotune.header import SEARCH_DEFAULTS
from autotune.plugins.discovery import Catalogue
from autotune.plugins.search import (
    Budget,
    Decided,
    Frozen,
    Key,
    Observed,
    SearchContext,
    Start,
    known_objectives,
)
from autotune.space import Categorical, Float, Integer, Space

UNITS = 50
THREADS = 2
SIZES = ((30, 10), (200, 10), (2000, 50))
"""Curves, and units of each."""

SPACE = Space(
    {
        "learning_rate": Float(1e-5, 1.0, log=True),
        "weight_decay": Float(1e-6, 1.0, log=True),
        "momentum": Float(0.0, 0.99),
        "dropout": Float(0.0, 0.5),
        "width": Integer(16, 1024, log=True),
        "depth": Integer(1, 8),
        "activation": Categorical(("relu", "gelu", "tanh")),
        "schedule": Categorical(("constant", "cosine")),
    }
)


def shown(forecaster: str, curves: int, units: int) -> Search:
    """A search that has seen `curves` curves of `units` units, all frozen, none at its end."""
    context = SearchContext(
        SPACE,
        Space({}),
        (known_objectives()["validation_loss"],),
        UNITS + 1,
        Budget(units=10**7),
        0,
    )
    names = {**SEARCH_DEFAULTS, "policy": "freeze_thaw", "forecaster": forecaster}
    parts: dict[str, dict[str, Any]] = {kind: {"name": name} for kind, name in names.items()}
    # Without an opening race, which forecasts nothing.
    parts["policy"]["opening"] = 1
    search = build_search(context, parts, Catalogue().get)
    generator = np.random.default_rng(0)
    for trial in range(curves):
        configuration = SPACE.sample(generator)
        places, _ = SPACE.encode(configuration)
        end = 0.2 + float(((places[:5] - 0.4) ** 2).sum())
        search.observe(Decided(trial, Start(trial, configuration, UNITS + 1, units)))
        for step in range(1, units + 1):
            loss = end + 2.0 / (1 + step) + 0.01 * float(generator.normal())
            search.observe(Observed(trial, step, {"validation_loss": loss}, 1.0))
        search.observe(Frozen(trial, units, f"{trial}-{units}"))
    return search


def measured(search: Search, repeats: int) -> tuple[float, float, float]:
    """Medians of milliseconds a decision, of its forecasts, and of their ratio, after one decision
    that warms up."""
    inner = search._forecast
    spent: list[float] = []

    def timed(queries: object) -> object:
        began = time.perf_counter()
        found = inner(queries)
        spent.append(time.perf_counter() - began)
        return found

    search._forecast = timed  # type: ignore[method-assign, assignment]
    rows = []
    for number in range(repeats + 1):
        spent.clear()
        began = time.perf_counter()
        search.decide(Key(0, len(search.trials) + number))
        rows.append((time.perf_counter() - began, sum(spent)))
    search._forecast = inner  # type: ignore[method-assign]
    rows = rows[1:]
    decision, forecast = (1e3 * statistics.median(column) for column in zip(*rows, strict=True))
    return decision, forecast, statistics.median(whole / part for whole, part in rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--forecaster", default=SEARCH_DEFAULTS["forecaster"])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--smoke", action="store_true", help="two small sizes, one decision each")
    options = parser.parse_args(arguments)
    sizes, repeats = (((12, 10), (30, 10)), 1) if options.smoke else (SIZES, options.repeats)
    torch.set_num_threads(THREADS)
    print(f"{options.forecaster}, {THREADS} threads; medians of {repeats}, milliseconds")
    print(f"{'curves':>8}{'observations':>14}{'decision':>10}{'forecast':>10}{'ratio':>8}")
    with threadpool_limits(THREADS):
        for curves, units in sizes:
            decision, forecast, ratio = measured(shown(options.forecaster, curves, units), repeats)
            print(
                f"{curves:8}{curves * units:14}{decision:10.1f}{forecast:10.1f}{ratio:8.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()

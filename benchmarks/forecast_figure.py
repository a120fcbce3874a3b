"""Draws forecasts with their bands on real curves: what the forecaster knew, what it expected,
and what happened.

For every table drawn, 60 trials are observed up to log-uniform lengths; of those of
which a tenth to a third was observed, the one that ends best is shown.

    python benchmarks/forecast_figure.py --output docs/forecasts.png    # needs matplotlib
    python benchmarks/forecast_figure.py --smoke                        # forecasts, draws nothing
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from common import contexts, tables
from common.tables import FloatArray, Table

from autotune.plugins.discovery import get
from autotune.plugins.search import (
    Budget,
    Decided,
    Forecaster,
    Frozen,
    Observed,
    Query,
    SearchContext,
    Start,
)
from autotune.plugins.trials import Trials
from autotune.space import Space

FILES = (
    "taskset_patch32_LSTM128_bs128",
    "lcbench_surrogate_167149",
    "deepobs_fmnist_2c2d",
    "taskset_patch32_GRU64_avg_bs128",
    "lcbench_surrogate_189908",
    "arlbench_ppo_brax_halfcheetah",
)
TRIALS = 60
BANDS = ((0.05, 0.95), (0.25, 0.75))


@dataclass(frozen=True)
class Shown:
    """One curve, scaled to [0, 1], more is better; `bands` holds a lower and an upper quantile
    at each unit after `seen`, (bands, 2, units - seen), `median` (units - seen,)."""

    name: str
    curve: FloatArray
    seen: int
    median: FloatArray
    bands: FloatArray


def forecast(table: Table, name: str, seed: int = 0) -> Shown:
    """Observe a part of the table, and forecast one of its curves to the end."""
    generator = np.random.default_rng(seed)
    space, units = table.space(), table.units
    context = SearchContext(space, Space({}), (contexts.SCALED,), units, Budget(), seed)
    forecaster = get("forecaster", name)()
    assert isinstance(forecaster, Forecaster)
    state, trials = forecaster.initial(context), Trials(space, context.objectives)
    rows = generator.permutation(len(table))[:TRIALS]
    lengths = np.maximum(1, np.floor(units ** generator.random(len(rows)))).astype(int)
    partly = np.flatnonzero((lengths >= max(2, units // 10)) & (lengths <= units // 3))
    chosen = int(partly[np.argmax(table.curves[rows[partly], -1])])
    for number, (row, length) in enumerate(zip(rows.tolist(), lengths.tolist(), strict=True)):
        values = table.curves[row, :length].tolist()
        events = [
            Decided(number, Start(number, space.configuration(row), units, length)),
            *(Observed(number, step, {"value": v}, 1.0) for step, v in enumerate(values, 1)),
            Frozen(number, length, f"{number}"),
        ]
        for event in events:
            trials.observe(event)
            state = forecaster.observe(state, event, trials)
    seen = int(lengths[chosen])
    queries = [Query(step, trial=chosen) for step in range(seen + 1, units + 1)]
    found = forecaster.forecast(context, state, trials, queries)
    # Forecasts are of the negated metric.
    bands = np.array([[-found.quantile(1 - low), -found.quantile(1 - high)] for low, high in BANDS])
    return Shown(table.name, table.curves[rows[chosen]], seen, -found.quantile(0.5), bands)


def draw(shown: list[Shown], output: Path) -> None:
    """Small multiples: observed, band, and what happened."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 3, figsize=(11, 5.6), layout="constrained")
    for axis, one in zip(axes.flat, shown, strict=True):
        units = np.arange(1, len(one.curve) + 1)
        ahead = units[one.seen :]
        for (low, high), shade in zip(one.bands, ("#c9dcf2", "#93b8e2"), strict=True):
            axis.fill_between(ahead, low, high, color=shade, linewidth=0)
        axis.plot(ahead, one.median, color="#1f5fae", linewidth=1.6)
        axis.plot(ahead, one.curve[one.seen :], color="black", linewidth=1.2, linestyle=":")
        axis.plot(units[: one.seen], one.curve[: one.seen], color="black", linewidth=1.8)
        axis.axvline(one.seen, color="grey", linewidth=0.6)
        axis.set_title(one.name, fontsize=9)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("epochs", fontsize=9)
    figure.supylabel("validation metric, scaled (more is better)", fontsize=9)
    lines = [
        pyplot.Line2D([], [], color="black", linewidth=1.8, label="observed"),
        pyplot.Line2D([], [], color="black", linewidth=1.2, linestyle=":", label="what happened"),
        pyplot.Line2D([], [], color="#1f5fae", linewidth=1.6, label="median forecast"),
        pyplot.Rectangle((0, 0), 1, 1, color="#93b8e2", label="50 % band"),
        pyplot.Rectangle((0, 0), 1, 1, color="#c9dcf2", label="90 % band"),
    ]
    figure.legend(handles=lines, loc="outside upper center", ncols=5, fontsize=8, frameon=False)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=110)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--curves", type=Path, default=tables.FOLDER, help="folder of the tables")
    parser.add_argument("--forecaster", default="pfn")
    parser.add_argument("--output", type=Path, default=Path("docs/forecasts.png"))
    parser.add_argument("--smoke", action="store_true", help="two tables, no picture")
    arguments = parser.parse_args()
    if arguments.smoke and not any(arguments.curves.glob("*.npz")):
        print(f"nothing to forecast: there are no recorded tables in {arguments.curves}")
        return
    if not arguments.smoke and find_spec("matplotlib") is None:
        parser.error("matplotlib is not installed: pip install matplotlib")
    names = FILES[:2] if arguments.smoke else FILES
    missing = [name for name in names if not (arguments.curves / f"{name}.npz").exists()]
    if missing:
        parser.error(f"{arguments.curves} has no table {missing[0]}.npz")
    shown = [
        forecast(tables.load(arguments.curves / f"{name}.npz"), arguments.forecaster)
        for name in names
    ]
    for one in shown:
        low, high = one.bands[0, :, -1]
        print(
            f"{one.name:40} seen {one.seen:3} of {len(one.curve):3}: end {one.curve[-1]:.3f}, "
            f"forecast {one.median[-1]:.3f}, 90 % band {low:.3f} to {high:.3f}"
        )
    if not arguments.smoke:
        draw(shown, arguments.output)
        print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()

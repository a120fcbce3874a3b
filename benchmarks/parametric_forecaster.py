"""How well the parametric forecaster's uncertainty is calibrated, on recorded learning curves.

For every table and seed, 80 trials are observed up to log-uniform lengths, and later values of
the same curves are forecast, as well as values of 80 configurations that were not observed.
Printed for each table, of continued curves: the share of outcomes below the 5 % and above the
95 % quantile, the mean and median log-likelihood and, beside it, that of the last value with a
Gaussian error which grows with the logarithm of time (its two constants chosen in hindsight, for
each table), the root mean squared error of both; then the shares and log-likelihood of
unobserved configurations. Log-likelihoods and errors are on the forecaster's normalised scale
(0 the best observed, 1 about where trials start).

    python benchmarks/parametric_forecaster.py --curves FOLDER            # about four minutes
    python benchmarks/parametric_forecaster.py --curves FOLDER --smoke    # a smoke run
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autotune.decide.forecasters.parametric import Parametric
from autotune.plugins.search import (
    Budget,
    Decided,
    Frozen,
    Objective,
    Observed,
    Query,
    SearchContext,
    Start,
)
from autotune.plugins.trials import Trials
from autotune.space import Configuration, Float, Space

FloatArray = NDArray[np.float64]

CURVES = Path(__file__).parents[2] / "shared" / "curves"
TRIALS = 80
QUICK = ("taskset_patch32_LSTM128_bs128", "lcbench_surrogate_167104")


@dataclass(frozen=True)
class Table:
    """Recorded curves, and their configurations as points of the unit cube.

    Args:
        points: (configurations, hyperparameters); curves: (configurations, units).
    """

    name: str
    objective: Objective
    points: FloatArray
    curves: FloatArray

    @property
    def space(self) -> Space:
        return Space({f"x{index}": Float(0.0, 1.0) for index in range(self.points.shape[1])})

    def configuration(self, row: int) -> Configuration:
        return {f"x{index}": float(value) for index, value in enumerate(self.points[row])}


def load(path: Path) -> Table | None:
    """A table, or None if its configurations are not described by numbers."""
    with np.load(path, allow_pickle=False) as file:
        if "X" not in file.files:
            return None
        raw, curves = file["X"].astype(float), file["Y"].astype(float)
        log, metric, minimise = file["log"], str(file["metric"]), bool(file["minimise"])
        if float(file["fidelity"][0]) == 0:
            curves = curves[:, 1:]
    for column in range(raw.shape[1]):
        if log[column] and np.nanmin(raw[:, column]) > 0:
            raw[:, column] = np.log(raw[:, column])
    low, high = np.nanmin(raw, axis=0), np.nanmax(raw, axis=0)
    points = np.nan_to_num((raw - low) / np.where(high > low, high - low, 1.0), nan=0.5)
    objective = Objective(
        "value",
        "minimize" if minimise else "maximize",
        "curve",
        bounds=(0.0, 1.0) if "accuracy" in metric else None,
    )
    return Table(path.stem, objective, points, curves)


@dataclass(frozen=True)
class Outcomes:
    """Arrays of shape (forecasts,): probability below the outcome, log-likelihood of the
    outcome, error of the median, error of the last value, and log of the time ratio."""

    below: FloatArray
    likelihood: FloatArray
    error: FloatArray
    last_error: FloatArray
    distance: FloatArray

    def shares(self) -> tuple[float, float]:
        return float((self.below < 0.05).mean()), float((self.below > 0.95).mean())

    def last_value_likelihood(self) -> float:
        best = -math.inf
        for slope in (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8):
            for floor in (0.003, 0.01, 0.03, 0.1, 0.3):
                deviation = np.hypot(slope * self.distance, floor)
                terms = -0.5 * (self.last_error / deviation) ** 2 - np.log(deviation)
                best = max(best, float(terms.mean()) - 0.5 * math.log(2 * math.pi))
        return best


def measure(table: Table, seed: int) -> tuple[Outcomes, Outcomes]:
    """Outcomes for continued curves, and for configurations that were not observed."""
    generator = np.random.default_rng(seed)
    whole = np.flatnonzero(np.isfinite(table.curves).all(axis=1))
    rows = generator.permutation(whole)[: 2 * TRIALS]
    seen, unseen = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    horizon = table.curves.shape[1]
    context = SearchContext(
        table.space, Space({}), (table.objective,), horizon, Budget(units=1), seed
    )
    forecaster = Parametric()
    state, trials = forecaster.initial(context), Trials(context.space, context.objectives)
    lengths = np.floor(horizon ** generator.random(len(seen))).astype(int)
    for number, (row, length) in enumerate(zip(seen, lengths, strict=True)):
        events = [
            Decided(number, Start(number, table.configuration(row), horizon, int(length))),
            *(
                Observed(number, step, {"value": float(table.curves[row, step - 1])}, 1.0)
                for step in range(1, length + 1)
            ),
            Frozen(number, int(length), "checkpoint"),
        ]
        for event in events:
            trials.observe(event)
            state = forecaster.observe(state, event, trials)
    continued: list[tuple[Query, int, int]] = []
    for number, (row, length) in enumerate(zip(seen, lengths, strict=True)):
        left = horizon - length
        for step in {length + 1, length + left // 4, length + left // 2, horizon}:
            if length < step <= horizon:
                continued.append((Query(int(step), trial=number), int(row), int(length)))
    fresh = [
        (Query(int(step), configuration=table.configuration(row)), int(row), 0)
        for row in unseen
        for step in {1, horizon // 4, horizon}
        if step >= 1
    ]

    def outcomes(asked: list[tuple[Query, int, int]]) -> Outcomes:
        forecast = forecaster.forecast(context, state, trials, [query for query, _, _ in asked])
        sign = table.objective.sign
        values = sign * np.array([table.curves[row, query.step - 1] for query, row, _ in asked])
        last = sign * np.array([table.curves[row, max(length - 1, 0)] for _, row, length in asked])
        z = state.scale.normalise(values)
        distance = [math.log(query.step / max(length, 1)) for query, _, length in asked]
        return Outcomes(
            forecast.probability_below(values),
            forecast.log_density(values) - state.scale.log_slope(values),
            state.scale.normalise(forecast.quantile(0.5)) - z,
            state.scale.normalise(last) - z,
            np.array(distance),
        )

    return outcomes(continued), outcomes(fresh)


def joined(parts: list[Outcomes]) -> Outcomes:
    names = list(Outcomes.__dataclass_fields__)
    return Outcomes(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--curves", type=Path, default=CURVES, help="folder of the tables")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--smoke", action="store_true", help="two tables, one seed")
    arguments = parser.parse_args()
    paths = sorted(arguments.curves.glob("*.npz"))
    if arguments.smoke:
        paths = [path for path in paths if path.stem in QUICK]
    if not paths and arguments.smoke:
        print(f"nothing to measure: there are no recorded tables in {arguments.curves}")
        return
    if not paths:
        parser.error(f"no tables in {arguments.curves}")
    heading = ("<5%", ">95%", "LL", "median", "last LL", "RMSE", "last", "<5%", ">95%", "LL")
    print(f"{'':42}{'continued curves':>56}{'new configurations':>24}")
    print(f"{'table':42}" + "".join(f"{name:>8}" for name in heading))
    rows = []
    for path in paths:
        table = load(path)
        if table is None:
            continue
        seeds = range(1 if arguments.smoke else arguments.seeds)
        measured = [measure(table, seed) for seed in seeds]
        continued = joined([part for part, _ in measured])
        fresh = joined([part for _, part in measured])
        row = [
            *continued.shares(),
            float(continued.likelihood.mean()),
            float(np.median(continued.likelihood)),
            continued.last_value_likelihood(),
            float(np.sqrt((continued.error**2).mean())),
            float(np.sqrt((continued.last_error**2).mean())),
            *fresh.shares(),
            float(fresh.likelihood.mean()),
        ]
        rows.append(row)
        print(f"{table.name:42}" + "".join(f"{value:8.3f}" for value in row), flush=True)
    mean = np.mean(rows, axis=0)
    print(f"{'mean':42}" + "".join(f"{value:8.3f}" for value in mean))


if __name__ == "__main__":
    main()

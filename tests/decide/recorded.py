"""Recorded learning curves as a search problem whose only configurations are the table's rows."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from autotune.plugins.search import FloatArray, Objective
from autotune.space import Configuration, Float, Space

CURVES = Path(os.environ.get("AUTOTUNE_CURVES", Path(__file__).parents[3] / "shared" / "curves"))


class RowSpace(Space):
    """A space that proposes, encodes and varies rows of a table only. Decoding gives the
    nearest row; a neighbour is one of the nearest, nearer ones more often."""

    def __init__(self, points: FloatArray, mask: np.ndarray) -> None:
        super().__init__({f"x{index}": Float(0.0, 1.0) for index in range(points.shape[1])})
        self.points, self.mask = points, mask
        self._rows = {tuple(point): row for row, point in enumerate(points.tolist())}

    def configuration(self, row: int) -> Configuration:
        return {f"x{index}": value for index, value in enumerate(self.points[row].tolist())}

    def row(self, configuration: Mapping[str, Any]) -> int:
        return self._rows[tuple(configuration.values())]

    def default(self, given: Mapping[str, Any] | None = None) -> Configuration:
        return self.configuration(0)

    def sample(
        self,
        rng: np.random.Generator,
        prior: bool = False,
        given: Mapping[str, Any] | None = None,
    ) -> Configuration:
        return self.configuration(int(rng.integers(len(self.points))))

    def encode(self, configuration: Mapping[str, Any]) -> tuple[FloatArray, np.ndarray]:
        row = self.row(configuration)
        return self.points[row], self.mask[row]

    def decode(self, values: Any) -> Configuration:
        return self.configuration(int(self._distances(np.asarray(values)).argmin()))

    def neighbour(
        self, configuration: Mapping[str, Any], rng: np.random.Generator
    ) -> Configuration:
        order = np.argsort(self._distances(self.points[self.row(configuration)]), kind="stable")
        return self.configuration(int(order[min(int(rng.geometric(0.1)), len(order) - 1)]))

    def _distances(self, point: FloatArray) -> FloatArray:
        return np.asarray(((self.points - point) ** 2).sum(axis=1))


def load(name: str, seed: int) -> tuple[RowSpace, FloatArray, Objective]:
    """A table with its rows in an order that depends on the seed (the first is the default):
    space, curves (rows, units) and objective."""
    with np.load(CURVES / f"{name}.npz", allow_pickle=False) as file:
        raw, curves = file["X"].astype(float), file["Y"].astype(float)
        log, metric, minimise = file["log"], str(file["metric"]), bool(file["minimise"])
        if float(file["fidelity"][0]) == 0:
            curves = curves[:, 1:]
    for column in range(raw.shape[1]):
        if log[column] and np.nanmin(raw[:, column]) > 0:
            raw[:, column] = np.log(raw[:, column])
    low, high = np.nanmin(raw, axis=0), np.nanmax(raw, axis=0)
    points = (raw - low) / np.where(high > low, high - low, 1.0)
    mask = np.isfinite(points)
    order = np.random.default_rng(seed).permutation(len(points))
    bounds = (0.0, 1.0) if "accuracy" in metric else None
    objective = Objective("value", "minimize" if minimise else "maximize", "curve", bounds=bounds)
    return RowSpace(np.where(mask, points, 0.0)[order], mask[order]), curves[order], objective


def regret(values: FloatArray, curves: FloatArray, sign: float) -> FloatArray:
    """Best value so far, 0 at the table's best and 1 at the median row's best."""
    finite = np.where(np.isfinite(curves), sign * curves, np.inf)
    best = float(finite.min())
    typical = float(np.median(finite.min(axis=1)))
    oriented = np.where(np.isfinite(values), sign * values, np.inf)
    return np.asarray(np.clip((np.minimum.accumulate(oriented) - best) / (typical - best), 0, 2))

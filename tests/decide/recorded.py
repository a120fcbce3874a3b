"""Recorded learning curves as a search problem whose only configurations are the table's rows."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np

from autotune.plugins.search import FloatArray, Objective

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from common.tables import RowSpace

CURVES = Path(os.environ.get("AUTOTUNE_CURVES", Path(__file__).parents[3] / "shared" / "curves"))


def load(name: str, seed: int) -> tuple[RowSpace, FloatArray, Objective]:
    """A table with its rows in an order that depends on the seed:
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

"""What a search over several objectives has found: the hypervolume of its trials as they stand."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from common.tables import FloatArray, Table

from autotune.pareto import hypervolume
from replayed.ledger import Ledger, Scale, entries


def missing(ledger: Ledger, budgets: tuple[int, ...]) -> Mapping[int, float]:
    """By budget, the share of the hypervolume that could be had but was not found.

    A trial stands at its value of the last epoch it reached. Every objective is scaled: a curve
    as regret is (0 the table's best, 1 the median after one epoch), what is measured once
    logarithmically from 0, the table's least, to 1, its most; the reference point is 1 in all.
    What could be had is every row of the table at its best epoch.
    """
    table = ledger.table
    curves, static = scaled(table)
    most = _volume(curves.min(axis=1), static)
    found = {}
    for budget in budgets:
        last: dict[int, float] = {}
        for place in range(entries(ledger, budget)):
            row, step = ledger.rows[place], ledger.steps[place]
            last[row] = float(curves[row, step - 1])
        rows = list(last)
        values = np.array([last[row] for row in rows])
        found[budget] = 1.0 - _volume(values, static[rows]) / most
    return found


def scaled(table: Table) -> tuple[FloatArray, FloatArray]:
    """The curves (n, T) and what is measured once (n, objectives), less is better, the reference
    point at 1; a curve is infinite where it diverged."""
    oriented = table.objective.sign * table.raw
    scale = Scale.of(oriented)
    curves = np.where(
        np.isfinite(oriented), (oriented - scale.best) / (scale.start - scale.best), np.inf
    )
    columns = [np.log(values) for _, values in table.static]
    static = np.stack([(line - line.min()) / np.ptp(line) for line in columns], axis=1)
    return curves, static


def _volume(values: FloatArray, static: FloatArray) -> float:
    points = np.column_stack([values, static])
    return hypervolume(points, [1.0] * points.shape[1]) if len(points) else 0.0

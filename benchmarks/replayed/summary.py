"""Searches compared: mean regret and rank by budget, and paired intervals of differences.

A mean is taken over seeds within a table, over tables within a suite, and over suites, so that
every suite counts alike however many tables it has. Only methods with all cells of a grid are
compared on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from common.tables import FloatArray, suite_of

from replayed.cells import Cell

DRAWS = 4000
"""Bootstrap samples of an interval."""


@dataclass(frozen=True)
class Comparison:
    """Complete results on one grid.

    Args:
        suites: the suite of each file, in the order of the files.
        values: by method, regrets of shape (files, seeds, budgets).
        incomplete: by method, how many of the grid's cells it has, if not all.
    """

    files: tuple[str, ...]
    suites: tuple[str, ...]
    seeds: tuple[int, ...]
    budgets: tuple[int, ...]
    values: Mapping[str, FloatArray]
    incomplete: Mapping[str, int]

    @property
    def cells(self) -> int:
        """Cells of the grid for one method."""
        return len(self.files) * len(self.seeds)

    def means(self) -> dict[str, FloatArray]:
        """Mean regret by method, (budgets,)."""
        return {name: weighted(values.mean(1), self.suites) for name, values in self.values.items()}

    def ranks(self) -> dict[str, FloatArray]:
        """Mean rank by method (1 the best; equals share the mean of their ranks), (budgets,)."""
        names = list(self.values)
        stacked = np.stack([self.values[name] for name in names])
        less = (stacked[None] < stacked[:, None]).sum(1)
        equal = (stacked[None] == stacked[:, None]).sum(1)
        ranks = 1 + less + (equal - 1) / 2
        return {
            name: weighted(rank.mean(1), self.suites)
            for name, rank in zip(names, ranks, strict=True)
        }

    def against(self, method: str, other: str) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Mean difference in regret, method minus other, and the ends of its 95 % interval, each
        (budgets,): both are compared on the same tables and seeds, of which tables are drawn
        anew within their suite, then seeds within their table."""
        differences = self.values[method] - self.values[other]
        rng = np.random.default_rng(0)
        draws = np.stack([self._drawn(differences, rng) for _ in range(DRAWS)])
        low, high = np.quantile(draws, (0.025, 0.975), axis=0)
        return weighted(differences.mean(1), self.suites), low, high

    def _drawn(self, differences: FloatArray, rng: np.random.Generator) -> FloatArray:
        means = []
        for suite in dict.fromkeys(self.suites):
            places = np.flatnonzero(np.array(self.suites) == suite)
            tables = rng.choice(places, len(places))
            seeds = rng.integers(len(self.seeds), size=(len(tables), len(self.seeds)))
            means.append(differences[tables[:, None], seeds].mean(axis=(0, 1)))
        return np.mean(means, axis=0)


def weighted(values: FloatArray, suites: Sequence[str]) -> FloatArray:
    """Mean over suites of the means over their files; `values` (files, ...)."""
    names = np.array(suites)
    return np.mean([values[names == suite].mean(0) for suite in dict.fromkeys(suites)], axis=0)


def compared(
    cells: Sequence[Cell],
    methods: Sequence[str],
    files: Sequence[str],
    seeds: Sequence[int],
    budgets: Sequence[int],
    test: bool = False,
) -> Comparison:
    """The cells of a grid by method; with `test`, the regret on the test split."""
    found = {(cell.method, cell.file, cell.seed): cell for cell in cells}
    values: dict[str, FloatArray] = {}
    incomplete: dict[str, int] = {}
    for method in methods:
        present = [(method, f, s) in found for f in files for s in seeds]
        if not all(present):
            incomplete[method] = sum(present)
            continue
        rows = [
            [_values(found[method, file, seed], budgets, test) for seed in seeds] for file in files
        ]
        values[method] = np.array(rows)
    suites = tuple(suite_of(file) for file in files)
    return Comparison(tuple(files), suites, tuple(seeds), tuple(budgets), values, incomplete)


def _values(cell: Cell, budgets: Sequence[int], test: bool) -> list[float]:
    regrets = cell.test_regret if test else cell.regret
    return [regrets[budget] for budget in budgets]


def text(
    comparison: Comparison,
    title: str,
    reference: str = "autotune",
    measured: str = "normalised regret",
) -> str:
    """Tables of means, ranks and paired differences from the reference, for people."""
    heading = f"{'':30}" + "".join(f"{budget:>9}" for budget in comparison.budgets)
    suites = len(set(comparison.suites))
    lines = [
        "",
        f"{title}: {len(comparison.files)} tables of {suites} suites, "
        f"{len(comparison.seeds)} seeds",
        "",
        f"mean {measured}",
        heading,
    ]
    means, ranks = comparison.means(), comparison.ranks() if comparison.values else {}
    order = sorted(means, key=lambda name: float(means[name].mean()))
    lines += [f"{name:30}" + "".join(f"{v:9.3f}" for v in means[name]) for name in order]
    peers = [name for name in order if not name.startswith(reference)]
    if reference in means and peers:
        best = np.min([means[name] for name in peers], axis=0)
        share = means[reference] / np.maximum(best, 1e-12)
        lines.append(f"{f'{reference} / best peer':30}" + "".join(f"{v:9.2f}" for v in share))
    lines += ["", "mean rank", heading]
    lines += [f"{name:30}" + "".join(f"{v:9.2f}" for v in ranks[name]) for name in order]
    if reference in means and len(means) > 1:
        lines += ["", f"{reference} minus the other, with the paired 95 % interval"]
        lines += [f"{'':30}" + "".join(f"{budget:>25}" for budget in comparison.budgets)]
        for name in order:
            if name != reference:
                parts = zip(*comparison.against(reference, name), strict=True)
                cells = [f"{m:+.3f} [{low:+.3f}, {high:+.3f}]" for m, low, high in parts]
                lines.append(f"{name:30}" + "".join(f"{cell:>25}" for cell in cells))
    for name, count in comparison.incomplete.items():
        lines.append(f"not compared: {name} has {count} of {comparison.cells} searches")
    return "\n".join(lines)

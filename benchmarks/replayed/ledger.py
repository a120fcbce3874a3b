"""What one search trains on one recorded table, epoch by epoch, and what it has found by then.

Every method trains through a ledger, so that all pay alike: an epoch costs one epoch (or its
recorded seconds) whoever asks for it, a run that diverges costs what it trained, and a run that
goes on does not pay again for what it has. What a method cannot resume it begins anew.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from common.tables import FloatArray, Table

BUDGETS = (25, 50, 100, 200, 300, 500, 1000)
"""Epochs at which searches are compared."""


def generator_seed(file: str, seed: int) -> int:
    """What a method's random numbers start from: the same for every method, another for every
    file, so that an unlucky first draw of one seed is not repeated on all tables."""
    return zlib.crc32(f"{file} {seed}".encode()) % 2**31


class Spent(Exception):
    """The budget does not pay for another epoch: the search is over."""


@dataclass(frozen=True)
class Limit:
    """How much a search may spend.

    Args:
        epochs: in epochs, or
        clock: ``epochs``; or ``seconds``: so many times the table's mean seconds an epoch.
    """

    epochs: int
    clock: str = "epochs"

    def seconds(self, table: Table) -> float | None:
        """The limit in seconds, if that is what the budget counts."""
        return self.epochs * mean_epoch(table) if self.clock == "seconds" else None


@dataclass
class Ledger:
    """The books of one search.

    Attributes:
        spent: after each epoch, what was spent, in the unit of the limit.
        rows, steps: the configuration trained and the epoch it reached, one entry an epoch.
        values: the validation metric, less is better; not finite where the run diverged.
        used: rows that were begun.
    """

    table: Table
    limit: Limit
    spent: list[float] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    used: set[int] = field(default_factory=set)

    def begin(self, row: int) -> Training:
        """A new run of a row."""
        self.used.add(row)
        return Training(self, row)

    def nearest_unused(self, point: FloatArray) -> int:
        """The row nearest to a point (d,) of the unit cube among those not begun yet.

        Raises:
            Spent: every row was begun; nothing new is left to train.
        """
        distances = self.table.distances(point)
        distances[list(self.used)] = np.inf
        row = int(distances.argmin())
        if math.isinf(distances[row]):
            raise Spent
        return row

    def pay(self, row: int, step: int) -> float:
        """Book an epoch; its seconds.

        Raises:
            Spent: it does not fit into the budget.
        """
        seconds = epoch_seconds(self.table, row, step)
        before = self.spent[-1] if self.spent else 0.0
        total = self.limit.seconds(self.table)
        cost, most = (1.0, float(self.limit.epochs)) if total is None else (seconds, total)
        if before + cost > most * (1 + 1e-9):
            raise Spent
        self.spent.append(before + cost)
        self.rows.append(row)
        self.steps.append(step)
        self.values.append(self.table.objective.sign * float(self.table.raw[row, step - 1]))
        return seconds


@dataclass
class Training:
    """One run of one row, trained epoch by epoch; it may rest in between as long as it likes."""

    ledger: Ledger
    row: int
    step: int = 0
    diverged: bool = False

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to train."""
        return self.diverged or self.step >= self.ledger.table.units

    def epoch(self) -> float:
        """Train one more epoch; the validation metric, less is better, infinite if it diverged.

        Raises:
            Spent: it does not fit into the budget.
        """
        if self.finished:
            raise ValueError(f"row {self.row} is finished at epoch {self.step}")
        self.ledger.pay(self.row, self.step + 1)
        self.step += 1
        value = self.ledger.values[-1]
        self.diverged = not math.isfinite(value)
        return math.inf if self.diverged else value


def epoch_seconds(table: Table, row: int, step: int) -> float:
    """What epoch `step` (from 1) of a row had cost; 1 where the table has no times."""
    if table.seconds is None:
        return 1.0
    before = float(table.seconds[row, step - 2]) if step > 1 else 0.0
    return float(table.seconds[row, step - 1]) - before


def mean_epoch(table: Table) -> float:
    """Mean seconds an epoch over all rows."""
    if table.seconds is None:
        raise ValueError(f"{table.name} has no times")
    return float(table.seconds[:, -1].mean()) / table.units


@dataclass(frozen=True)
class Scale:
    """Regret from 0, the best value in the whole table, to 1, the median over configurations of
    the value after one epoch (and for everything worse).

    The ifBO paper (arXiv 2404.16795; `plotting_utils.py` of its repository) puts 1 at the
    worst first and 0 at the best last incumbent of all runs that are compared. These ends are of
    the same kind, but do not depend on who takes part, nor on one loss of 10^24.
    """

    best: float
    start: float

    @classmethod
    def of(cls, oriented: FloatArray) -> Scale:
        """The scale of curves (n, T) of which less is better."""
        finite = np.isfinite(oriented)
        return cls(float(oriented[finite].min()), float(np.median(oriented[finite[:, 0], 0])))

    def regret(self, value: float) -> float:
        """Of one value; 1 if nothing finite was seen."""
        if not math.isfinite(value):
            return 1.0
        if self.start <= self.best:  # half of all configurations are perfect from the first epoch
            return float(value > self.best)
        return float(min(1.0, max(0.0, (value - self.best) / (self.start - self.best))))


def regrets(ledger: Ledger, budgets: tuple[int, ...]) -> Mapping[int, float]:
    """Normalised regret of the best validation value seen, by budget."""
    scale = Scale.of(ledger.table.objective.sign * ledger.table.raw)
    return {
        budget: scale.regret(math.inf if place is None else ledger.values[place])
        for budget, place in incumbents(ledger, budgets).items()
    }


def test_regrets(ledger: Ledger, budgets: tuple[int, ...]) -> Mapping[int, float]:
    """The same of the test value of the run and epoch with the best validation value, between
    the test values' own ends; empty where there are none."""
    table = ledger.table
    if table.test is None:
        return {}
    oriented = table.objective.sign * table.test
    scale = Scale.of(oriented)
    return {
        budget: scale.regret(
            math.inf if place is None else oriented[ledger.rows[place], ledger.steps[place] - 1]
        )
        for budget, place in incumbents(ledger, budgets).items()
    }


def incumbents(ledger: Ledger, budgets: tuple[int, ...]) -> Mapping[int, int | None]:
    """The entry with the best finite validation value within each budget, the first of equals.
    A search that ended early keeps its last."""
    values = np.array([v if math.isfinite(v) else math.inf for v in ledger.values])
    found: dict[int, int | None] = {}
    for budget in budgets:
        count = entries(ledger, budget)
        place = int(values[:count].argmin()) if count else None
        found[budget] = place if place is not None and math.isfinite(values[place]) else None
    return found


def entries(ledger: Ledger, budget: int) -> int:
    """How many entries a budget pays for."""
    seconds = Limit(budget, ledger.limit.clock).seconds(ledger.table)
    limit = float(budget) if seconds is None else seconds
    return int(np.searchsorted(np.array(ledger.spent), limit * (1 + 1e-9), side="right"))

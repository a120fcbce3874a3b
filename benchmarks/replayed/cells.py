"""Results of single searches, kept in files so that nothing is searched twice.

``--json FILE`` holds what the comparison is about, a line for each (file, method, seed, budget).
Beside it, ``FILE`` with the ending ``.cells.jsonl`` holds all that is known of each search, with
the version of its method, so that a changed method is searched anew and no other. Lines are
appended; the last of equal cells counts.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common.tables import Table

from replayed.ledger import BUDGETS, Ledger, Limit, Spent, generator_seed, regrets, test_regrets


@dataclass(frozen=True)
class Task:
    """One search: a method on a file with a seed, within a limit."""

    file: str
    method: str
    seed: int
    limit: Limit


@dataclass(frozen=True)
class Cell:
    """What a search found.

    Args:
        version: of the method (`peers.Method.version`).
        epochs: the limit; `clock` says of what.
        regret, test_regret: by budget; the latter is empty where the table has no test values.
        trained: epochs that were trained; `configurations`: rows that were begun.
        wall: seconds that the search itself took.
    """

    file: str
    method: str
    seed: int
    clock: str
    epochs: int
    version: str
    regret: Mapping[int, float]
    test_regret: Mapping[int, float]
    trained: int
    configurations: int
    wall: float

    @property
    def key(self) -> tuple[str, str, int, str]:
        """What it is the result of."""
        return self.file, self.method, self.seed, self.clock

    def lines(self) -> Iterator[dict[str, Any]]:
        """Its lines for ``--json``: epochs only, seconds being another comparison."""
        if self.clock == "epochs":
            for budget, regret in self.regret.items():
                yield {
                    "file": self.file,
                    "method": self.method,
                    "seed": self.seed,
                    "budget": budget,
                    "regret": regret,
                }


Measure = Callable[[Ledger, tuple[int, ...]], Mapping[int, float]]
"""What is said of a search at each budget: from 0 (nothing better was possible) to 1."""


def searched(
    task: Task,
    table: Table,
    method: Any,
    measure: Measure = regrets,
    test_measure: Measure = test_regrets,
) -> Cell:
    """Run a search."""
    ledger = Ledger(table, task.limit)
    begun = time.perf_counter()
    try:
        method.run(table, ledger, generator_seed(task.file, task.seed))
    except Spent:
        raise AssertionError(f"{method.name}: its driver let Spent through") from None
    wall = time.perf_counter() - begun
    budgets = tuple(budget for budget in BUDGETS if budget <= task.limit.epochs)
    return Cell(
        task.file,
        task.method,
        task.seed,
        task.limit.clock,
        task.limit.epochs,
        method.version(),
        {budget: round(value, 6) for budget, value in measure(ledger, budgets).items()},
        {budget: round(value, 6) for budget, value in test_measure(ledger, budgets).items()},
        len(ledger.values),
        len(ledger.used),
        round(wall, 2),
    )


class Store:
    """The files behind ``--json FILE``; without one, cells live as long as the process."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._cells: dict[tuple[str, str, int, str], dict[int, Cell]] = {}
        self._read()

    def find(self, task: Task, version: str) -> Cell | None:
        """The result of a task, or of a longer search, by this version of its method."""
        key = (task.file, task.method, task.seed, task.limit.clock)
        for epochs, cell in self._cells.get(key, {}).items():
            if epochs >= task.limit.epochs and cell.version == version:
                return cell
        return None

    def versions(self, methods: Iterable[str]) -> dict[str, str]:
        """The version of each method's newest result, of those that have any."""
        cells = [cell for kept in self._cells.values() for cell in kept.values()]
        return {cell.method: cell.version for cell in cells if cell.method in set(methods)}

    def add(self, cell: Cell) -> None:
        """Keep a result."""
        self._keep(cell)
        if self.path is not None:
            _append(self._beside(self.path), [asdict(cell)])
            _append(self.path, cell.lines())

    def tidy(self, versions: Mapping[str, str]) -> None:
        """Write the five-key file anew from the cells, one line for each (file, method, seed,
        budget): of a method that is not in `versions`, those of its newest version."""
        if self.path is None:
            return
        self._read()  # another process may have added to it
        cells = [cell for kept in self._cells.values() for cell in kept.values()]
        newest = {cell.method: cell.version for cell in cells} | dict(versions)
        lines: dict[tuple[Any, ...], dict[str, Any]] = {}
        for cell in cells:
            for line in cell.lines() if cell.version == newest[cell.method] else ():
                lines[tuple(line[k] for k in ("file", "method", "seed", "budget"))] = line
        temporary = self.path.with_name(self.path.name + ".new")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines.values()))
        os.replace(temporary, self.path)

    def _read(self) -> None:
        if self.path is None or not self._beside(self.path).exists():
            return
        text = self._beside(self.path).read_text(encoding="utf-8")
        for number, line in enumerate(text.splitlines(), start=1):
            try:
                self._keep(_cell(json.loads(line)))
            except json.JSONDecodeError:
                where = f"{self._beside(self.path)}, line {number}"
                print(f"{where}: torn; that search is run again", file=sys.stderr)

    def _keep(self, cell: Cell) -> None:
        kept = self._cells.pop(cell.key, {})
        self._cells[cell.key] = {**kept, cell.epochs: cell}  # the newest stands last

    @staticmethod
    def _beside(path: Path) -> Path:
        return path.with_suffix(".cells.jsonl")


def _append(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    text = "".join(json.dumps(line) + "\n" for line in lines)
    if text:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            end = file.seek(0, os.SEEK_END)
            if end and (file.seek(end - 1), file.read(1))[1] != b"\n":
                text = "\n" + text  # a writer was killed within its last line
            file.write(text.encode())


def _cell(plain: dict[str, Any]) -> Cell:
    for name in ("regret", "test_regret"):
        plain[name] = {int(budget): value for budget, value in plain[name].items()}
    return Cell(**plain)

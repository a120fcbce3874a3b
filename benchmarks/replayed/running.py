"""Runs the searches of a comparison, many at once; what is known is not searched again."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context

from peers import Method

from replayed.cells import Cell, Store, Task
from replayed.ledger import BUDGETS, Limit


@dataclass(frozen=True)
class Grid:
    """What is compared with what: all methods on all files and seeds, to the last budget."""

    title: str
    files: tuple[str, ...]
    seeds: tuple[int, ...]
    epochs: int
    methods: tuple[Method, ...]
    clock: str = "epochs"

    @property
    def budgets(self) -> tuple[int, ...]:
        return tuple(budget for budget in BUDGETS if budget <= self.epochs)

    def tasks(self) -> Iterator[tuple[Task, Method]]:
        for seed in self.seeds:
            for method in self.methods:
                for file in self.files:
                    yield Task(file, method.name, seed, Limit(self.epochs, self.clock)), method


def unknown_tasks(wanted: Sequence[Grid], store: Store, versions: Mapping[str, str]) -> list[Task]:
    """The searches that no known result answers for, the longest first, for it answers for the
    shorter ones too."""
    missing: dict[Task, None] = {}
    covered: set[tuple[str, str, int, str]] = set()
    for grid in sorted(wanted, key=lambda grid: -grid.epochs):
        for task, method in grid.tasks():
            key = (task.file, task.method, task.seed, task.limit.clock)
            if key not in covered and store.find(task, versions[method.name]) is None:
                missing[task] = None
                covered.add(key)
    return list(missing)


def ensure(tasks: Sequence[Task], work: Callable[[Task], Cell], parallel: int, store: Store) -> int:
    """Search what is not known yet, so many at once, in processes that are handed `work`; results
    are kept as they come. Returns how many searches failed, each of which is named."""
    failed = 0
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = "1"  # of the processes begun below
    with ProcessPoolExecutor(parallel, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(work, task): task for task in tasks}
        for count, future in enumerate(as_completed(futures), start=1):
            try:
                cell = future.result()
            except BrokenProcessPool:
                raise
            except Exception as error:
                failed += 1
                trace = "".join(traceback.format_exception(error))
                print(f"failed: {futures[future]}\n{trace}", file=sys.stderr, flush=True)
                continue
            store.add(cell)
            print(
                f"[{count}/{len(tasks)}] {cell.method} {cell.file} seed {cell.seed}: "
                f"{cell.regret[max(cell.regret)]:.3f} after {max(cell.regret)} {cell.clock}"
                f"{' (mean epochs)' if cell.clock == 'seconds' else ''} ({cell.wall:.0f} s)",
                file=sys.stderr,
                flush=True,
            )
    return failed


def installed(chosen: Sequence[Method]) -> list[Method]:
    print("methods, and how each is driven:")
    present = []
    for method in chosen:
        lacking = method.missing()
        print(f"  {method.name:30}{method.how if lacking is None else f'left out: no {lacking}'}")
        if lacking is None:
            present.append(method)
    return present

"""How fast a front is found: autotune's freeze-thaw for several objectives and its peers on
recorded learning curves, replayed.

Mean share of the hypervolume that was not found yet after 25 to 500 epochs, with paired intervals
of autotune's difference from each other method. The tables are those with more than one objective:
`peft_metamathqa` (accuracy curve; peak memory, trainable parameters and time of the full run) and
`lcbench_surrogate_*` (balanced-accuracy curve; time of the full run). All methods see the same
candidates and pay through the same ledger (`benchmarks/README.md`); `replayed.front` says how
hypervolume is counted, `peers.front_methods` who takes part.

The method was chosen on `TUNED_ON`; what is printed for the others was not looked at until then.

    python benchmarks/hypervolume.py --json hypervolume.jsonl        # everything, hours
    python benchmarks/hypervolume.py --json hypervolume.jsonl --quick
    python benchmarks/hypervolume.py --smoke                         # seconds
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path

from common.tables import FOLDER, Table, suite_of, with_objectives
from peers import Method, front_methods
from replayed.cells import Cell, Store, Task, searched
from replayed.front import missing
from replayed.ledger import Ledger
from replayed.running import Grid, ensure, installed, unknown_tasks
from replayed.summary import compared, text

EPOCHS = 500
SUITES = ("lcbench_surrogate", "peft")
TUNED_ON = (
    "lcbench_surrogate_167161",
    "lcbench_surrogate_167200",
    "lcbench_surrogate_168868",
    "lcbench_surrogate_189905",
    "lcbench_surrogate_34539",
    "lcbench_surrogate_7593",
)
"""Tables on which the acquisition was chosen: reported apart from the others."""

SMOKE = ("autotune", "optuna_nsga2")


def grids(
    files: Sequence[str], methods: Sequence[Method], seeds: int, quick: bool, smoke: bool
) -> list[Grid]:
    """The comparisons to make: the suites apart, and the tables the method was chosen on."""
    every = tuple(range(seeds))
    chosen = tuple(methods)
    unseen = tuple(file for file in files if file not in TUNED_ON)
    lcbench = tuple(file for file in unseen if suite_of(file) == "lcbench_surrogate")
    peft = tuple(file for file in unseen if suite_of(file) == "peft")
    if smoke:
        return [Grid("smoke run", (peft or lcbench)[:1], (0,), 25, chosen)]
    if quick:
        lcbench = lcbench[::3]
    found = [
        Grid("four objectives", peft, every, EPOCHS, chosen),
        Grid("two objectives", lcbench, every, EPOCHS, chosen),
    ]
    tuned = tuple(file for file in files if file in TUNED_ON)
    if not quick:
        found.append(Grid("two objectives, chosen on these", tuned, every, EPOCHS, chosen))
    return [grid for grid in found if grid.files]


@cache
def _table(path: Path) -> Table:
    return with_objectives(path)


def _work(folder: Path, task: Task) -> Cell:
    table = _table(folder / f"{task.file}.npz")
    return searched(task, table, front_methods()[task.method], missing, _nothing)


def _nothing(ledger: Ledger, budgets: tuple[int, ...]) -> Mapping[int, float]:
    return {}


def main() -> None:
    parser = _parser()
    given = parser.parse_args()
    every = front_methods()
    names = given.methods or (list(SMOKE) if given.smoke else list(every))
    if strange := [name for name in names if name not in every]:
        parser.error(f"there is no method {strange[0]!r}; there are {', '.join(every)}")
    if given.seeds < 1 or given.parallel < 1:
        parser.error("--seeds and --parallel: expected at least 1")
    files = [
        path.stem for path in sorted(given.curves.glob("*.npz")) if suite_of(path.stem) in SUITES
    ]
    if not files:
        message = f"there are no recorded tables with several objectives in {given.curves}"
        if given.smoke:
            print(f"nothing to measure: {message}")
            return
        parser.error(message)
    chosen = installed([every[name] for name in names])
    store = Store(given.json)
    wanted = grids(files, chosen, given.seeds, given.quick, given.smoke)
    versions = {method.name: method.version() for method in chosen}
    unknown = unknown_tasks(wanted, store, versions)
    failed = ensure(unknown, partial(_work, given.curves), given.parallel, store)
    store.tidy(versions)
    for grid in wanted:
        cells = [store.find(task, versions[method.name]) for task, method in grid.tasks()]
        known = [cell for cell in cells if cell is not None]
        result = compared(known, names, grid.files, grid.seeds, grid.budgets)
        print(text(result, grid.title, measured="share of the hypervolume that is missing"))
    if failed:
        sys.exit(f"{failed} searches failed; the same command tries them again")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--curves", type=Path, default=FOLDER, help="folder of the tables")
    parser.add_argument("--json", type=Path, help="file of results, added to and resumed from")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="only these")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--parallel", type=int, default=2, help="searches at once")
    parser.add_argument("--quick", action="store_true", help="a third of the tables")
    parser.add_argument("--smoke", action="store_true", help="one table, 25 epochs, two methods")
    return parser


if __name__ == "__main__":
    main()

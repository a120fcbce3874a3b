"""How little a search needs: autotune and its peers on recorded learning curves, replayed.

Mean normalised regret and rank after 25 to 1000 epochs, suites weighted equally, with paired
intervals of autotune's difference from each other method; the same on the test split and in
seconds where the tables have them. `peers` says who takes part and how each is driven,
`replayed.ledger` what an epoch costs and how regret is scaled. `benchmarks/README.md` says how to
install the peers; methods that are not installed are named and left out.

    python benchmarks/search.py                                      # everything, hours
    python benchmarks/search.py --quick                              # within 45 minutes
    python benchmarks/search.py --report --seeds 1                   # what is known, at once
    python benchmarks/search.py --smoke                              # seconds

Results are kept in ``benchmarks/results/search.jsonl`` unless ``--json`` names another file, and
nothing that is known of the methods as they are now is searched again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path

from common.tables import FOLDER, Table, load, load_all, suite_of
from peers import Method, methods
from replayed.cells import Cell, Store, Task, searched
from replayed.ledger import BUDGETS
from replayed.plot import draw
from replayed.running import Grid, ensure, installed, unknown_tasks
from replayed.summary import Comparison, compared, text

NAMED = (
    "taskset_patch128_LSTM128_bs64",
    "taskset_patch32_LSTM128_bs128",
    "lcbench_surrogate_167104",
    "lcbench_surrogate_189873",
    "arlbench_ppo_cc_cartpole",
    "arlbench_sac_brax_hopper",
    "deepobs_fmnist_2c2d",
    "deepobs_svhn_wrn164",
)
"""Two tables of each suite, for the slow peers and for ``--quick`` (`few_of` elsewhere)."""

RESULTS = Path(__file__).parent / "results" / "search.jsonl"

SLOW_SEEDS, SLOW_EPOCHS = 3, 300
SMOKE = ("autotune", "autotune_random", "autotune_asha", "optuna_tpe_hyperband")


def grids(
    files: Sequence[str], chosen: Sequence[Method], seeds: int, quick: bool, smoke: bool
) -> list[Grid]:
    """The comparisons to make."""
    fast = tuple(method for method in chosen if not method.slow)
    named = few_of(files)
    if smoke:
        return [Grid("smoke run", named[::4], (0,), 50, fast)]
    few = tuple(range(min(seeds, SLOW_SEEDS)))
    if quick:
        timed = tuple(file for file in named if suite_of(file) == "lcbench_surrogate")
        return [
            Grid("quick", named, few[:2], 500, fast),
            Grid("quick, seconds", timed, few[:2], 200, fast, "seconds"),
            Grid("quick, slow peers", named, few[:2], 100, tuple(chosen)),
        ]
    timed = tuple(file for file in files if suite_of(file) == "lcbench_surrogate")
    every = tuple(range(seeds))
    return [
        Grid("named tables, all methods", named, few, SLOW_EPOCHS, tuple(chosen)),
        Grid("all tables", tuple(files), every, BUDGETS[-1], fast),
        Grid("all tables with times, seconds", timed, every, 300, fast, "seconds"),
    ]


def few_of(files: Sequence[str]) -> tuple[str, ...]:
    """Two tables of each suite: the named ones, or in a folder without them the first."""
    found: list[str] = []
    for suite in dict.fromkeys(suite_of(file) for file in files):
        own = [file for file in files if suite_of(file) == suite]
        found += sorted(own, key=lambda file: file not in NAMED)[:2]
    return tuple(found)


# --- running --------------------------------------------------------------------------------


@cache
def _table(path: Path) -> Table:
    return load(path)


def _work(folder: Path, task: Task) -> Cell:
    return searched(task, _table(folder / f"{task.file}.npz"), methods()[task.method])


def main() -> None:
    parser = _parser()
    given = parser.parse_args()
    every = methods()
    names = given.methods or (list(SMOKE) if given.smoke else list(every))
    if strange := [name for name in names if name not in every]:
        parser.error(f"there is no method {strange[0]!r}; there are {', '.join(every)}")
    if given.seeds < 1 or given.parallel < 1:
        parser.error("--seeds and --parallel: expected at least 1")
    if given.plot is not None and find_spec("matplotlib") is None:
        parser.error("--plot: matplotlib is not installed (benchmarks/README.md)")
    files = [table.name for table in load_all(given.curves)]
    if not files:
        message = f"there are no recorded tables in {given.curves}"
        if given.smoke:
            print(f"nothing to measure: {message}")
            return
        parser.error(message)
    store = Store(None if given.smoke and given.json == RESULTS else given.json)
    present = installed([every[name] for name in names])
    versions = {method.name: method.version() for method in present}
    if given.report:
        versions = store.versions(names) | versions
    chosen = [every[name] for name in names if name in versions]
    if not chosen:
        sys.exit("none of these methods is installed (benchmarks/README.md)")
    wanted = grids(files, chosen, given.seeds, given.quick, given.smoke)
    failed = 0
    if not given.report:
        missing = unknown_tasks(wanted, store, versions)
        failed = ensure(missing, partial(_work, given.curves), given.parallel, store)
        store.tidy(versions)
    report(wanted, store, versions, given.plot)
    if failed:
        sys.exit(f"{failed} searches failed; the same command tries them again")


def report(
    wanted: Sequence[Grid], store: Store, versions: Mapping[str, str], plot: Path | None
) -> None:
    """Print every comparison, and draw the largest in which the default takes part."""
    drawn: dict[int, Comparison] = {}
    for grid in wanted:
        if not grid.methods or not grid.files:
            continue
        cells = []
        for task, method in grid.tasks():
            cell = store.find(task, versions[method.name])
            if cell is not None:
                cells.append(cell)
        names = [method.name for method in grid.methods]
        result = compared(cells, names, grid.files, grid.seeds, grid.budgets)
        title = grid.title
        if grid.clock == "seconds":
            title += "; budgets are in mean seconds of the table's epochs"
        print(text(result, title))
        tested = [f for f in grid.files if all(c.test_regret for c in cells if c.file == f)]
        if tested and grid.clock == "epochs":
            measured = compared(cells, names, tested, grid.seeds, grid.budgets, test=True)
            print(text(measured, f"{grid.title}, regret on the test split"))
        if "autotune" in result.values and grid.clock == "epochs":
            drawn[len(grid.files) * grid.epochs] = result
    if plot is not None and drawn:
        draw(drawn[max(drawn)], plot)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--curves", type=Path, default=FOLDER, help="folder of the tables")
    parser.add_argument(
        "--json", type=Path, default=RESULTS, help="file of results, added to and resumed from"
    )
    parser.add_argument(
        "--report",
        action="store_true",
        help="search nothing; of methods that are not installed, what is known of the last version",
    )
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="only these")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--parallel", type=int, default=2, help="searches at once")
    parser.add_argument("--plot", type=Path, help="draw the regret as a PNG file")
    parser.add_argument("--quick", action="store_true", help="eight tables, two seeds")
    parser.add_argument("--smoke", action="store_true", help="two tables, 50 epochs, few methods")
    return parser


if __name__ == "__main__":
    main()

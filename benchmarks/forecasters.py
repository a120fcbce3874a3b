"""How well every forecaster predicts recorded learning curves, and how sure it rightly is.

As in table 1 of the ifBO paper (arXiv 2404.16795): contexts of 400 to 1,800 observations, drawn as
the paper draws them (`common/contexts.py`), on metrics scaled as the paper scales them
(`common/tables.py`); asked is the last value of every curve seen. Every forecaster that is
installed is asked about the same contexts; one that cannot be used is named with its reason.

A case is a file, a forecaster and a number of observations: the mean and the median over
`CONTEXTS` draws of the mean log-likelihood and squared error of a draw; the share of outcomes
under the 5 % and above the 95 % quantile; milliseconds of one forecast on one thread. Cases are
written to the JSON file as they are found, one a line, and those that stand there are not
measured again: after changing a forecaster remove its lines. `--quick` measures the same cases,
of fewer files and sizes.

The table printed at the end has the published figures beside ours. They are medians over all
contexts of a suite, LCBench's on the recorded tables (ours are surrogates of them), TaskSet's on
twelve tasks of two search spaces (ours are six of one).

    python benchmarks/forecasters.py --curves FOLDER --json FILE            # hours
    python benchmarks/forecasters.py --curves FOLDER --json FILE --quick    # 45 minutes at most
    python benchmarks/forecasters.py --curves FOLDER --smoke                # seconds
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, fields
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from common import contexts, published, speed, tables
from threadpoolctl import threadpool_limits

from autotune.plugins.base import PluginError
from autotune.plugins.discovery import get, records
from autotune.plugins.search import Forecaster

CONTEXTS = 6
"""Draws a case."""

QUICK_SIZES = (400, 1000, 1800)
QUICK_FILES = 2
"""`--quick` measures so many files a suite, evenly spaced, and three times as many of the two
suites that the paper has."""

PUBLISHED_SUITES = ("taskset", "lcbench_surrogate")


@dataclass(frozen=True)
class Case:
    """One line of the JSON file."""

    file: str
    forecaster: str
    observations: int
    log_likelihood_mean: float
    log_likelihood_median: float
    squared_error_mean: float
    squared_error_median: float
    below_5: float
    above_95: float
    milliseconds: float

    @property
    def key(self) -> tuple[str, str, int]:
        return self.file, self.forecaster, self.observations


def measured(path: Path, name: str, sizes: Sequence[int], draws: int) -> list[Case]:
    """The cases of a file and a forecaster, one for each of `sizes` that the file holds."""
    table = tables.load(path)
    found: dict[int, list[tuple[contexts.Scores, float]]] = {}
    with threadpool_limits(1):
        torch.set_num_threads(1)
        for index in range(draws):
            drawn = contexts.draw(table, index)
            for size, seen in contexts.folded(drawn, forecaster_named(name), sizes):
                started = time.perf_counter()
                forecast = seen.ask()
                milliseconds = 1e3 * (time.perf_counter() - started)
                found.setdefault(size, []).append((seen.scored(forecast), milliseconds))
    return [_case(table.name, name, size, parts) for size, parts in found.items()]


def _case(file: str, name: str, size: int, parts: list[tuple[contexts.Scores, float]]) -> Case:
    likelihoods = [float(scores.log_likelihood.mean()) for scores, _ in parts]
    errors = [float(scores.squared_error.mean()) for scores, _ in parts]
    below = np.concatenate([scores.below_5 for scores, _ in parts])
    above = np.concatenate([scores.above_95 for scores, _ in parts])
    return Case(
        file,
        name,
        size,
        statistics.mean(likelihoods),
        statistics.median(likelihoods),
        statistics.mean(errors),
        statistics.median(errors),
        float(below.mean()),
        float(above.mean()),
        statistics.median(milliseconds for _, milliseconds in parts),
    )


def forecaster_named(name: str) -> Forecaster:
    """A new forecaster. Raises PluginError if it is not installed or cannot be used."""
    made = get("forecaster", name)()
    assert isinstance(made, Forecaster)
    return made


def usable(names: Sequence[str] | None) -> list[str]:
    """The forecasters asked for, or all installed; says which of all cannot be used. One that
    is asked for by name must be usable."""
    found = []
    for name in names or [record.name for record in records("forecaster")]:
        try:
            forecaster_named(name)
            found.append(name)
        except PluginError as error:
            if names:
                raise
            print(f"not measured: {name}: {error}")
    return found


def read(file: Path | None) -> dict[tuple[str, str, int], Case]:
    """The cases that were measured before."""
    if file is None or not file.exists():
        return {}
    lines = file.read_text(encoding="utf-8").splitlines()
    return {case.key: case for case in (Case(**json.loads(line)) for line in lines if line)}


def chosen(folder: Path, suites: Sequence[str] | None, quick: bool) -> list[Path]:
    """The files to measure."""
    by_suite: dict[str, list[Path]] = {}
    for table in tables.load_all(folder):
        if not suites or table.suite in suites:
            by_suite.setdefault(table.suite, []).append(folder / f"{table.name}.npz")
    if not quick:
        return [path for paths in by_suite.values() for path in paths]
    return [path for suite, paths in by_suite.items() for path in _spaced(suite, paths)]


def _spaced(suite: str, paths: list[Path]) -> list[Path]:
    count = QUICK_FILES * (3 if suite in PUBLISHED_SUITES else 1)
    places = np.linspace(0, len(paths) - 1, min(count, len(paths))).round().astype(int)
    return [paths[place] for place in places]


def run(
    work: Iterable[tuple[Path, str, Sequence[int]]], draws: int, processes: int
) -> Iterator[list[Case]]:
    """The cases of every (file, forecaster, sizes), as they are found."""
    jobs = list(work)
    if processes == 1:
        for path, name, sizes in jobs:
            yield measured(path, name, sizes, draws)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(measured, *job, draws) for job in jobs]
        for future in as_completed(futures):
            yield future.result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--curves", type=Path, default=tables.FOLDER, help="folder of the tables")
    parser.add_argument("--json", type=Path, help="file of the cases, added to")
    parser.add_argument("--forecasters", nargs="+", metavar="NAME", help="all, if not given")
    parser.add_argument("--suites", nargs="+", metavar="SUITE", help="all, if not given")
    parser.add_argument("--parallel", type=int, default=2, metavar="N", help="processes")
    parser.add_argument("--quick", action="store_true", help="fewer files and sizes")
    parser.add_argument("--smoke", action="store_true", help="one file, one draw, to see it run")
    arguments = parser.parse_args()
    names = usable(arguments.forecasters)
    paths = chosen(arguments.curves, arguments.suites, arguments.quick)
    if not paths:
        if not arguments.smoke:
            parser.error(f"no tables in {arguments.curves}")
        print(f"no recorded tables in {arguments.curves}: only the time of a forecast is measured")
    sizes = QUICK_SIZES if arguments.quick else contexts.SIZES
    draws, known = CONTEXTS, read(arguments.json)
    if arguments.smoke:
        paths, sizes, draws, known = paths[:1], (400,), 1, {}
    work = []
    for path in paths:
        for name in names:
            missing = [size for size in sizes if (path.stem, name, size) not in known]
            if missing:
                work.append((path, name, missing))
    started = time.monotonic()
    for count, cases in enumerate(
        run(work, draws, 1 if arguments.smoke else arguments.parallel), 1
    ):
        known |= {case.key: case for case in cases}
        if arguments.json is not None and not arguments.smoke:
            with arguments.json.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(asdict(case)) + "\n" for case in cases)
        print(f"{count} of {len(work)}, {time.monotonic() - started:.0f} s", flush=True)
    files = {path.stem for path in paths}
    show([c for c in known.values() if c.file in files and c.forecaster in names])
    print()
    speed.show(names, forecaster_named, repeats=1 if arguments.smoke else 5)


def show(cases: list[Case]) -> None:
    """A table a suite: means over its files, the median column the median over its files."""
    suites = sorted({tables.suite_of(case.file) for case in cases})
    heading = ("LL mean", "median", "SE mean", "median", "<5%", ">95%", "ms", "files")
    for suite in suites:
        print(f"\n{suite:36}" + "".join(f"{title:>9}" for title in heading))
        inside = [case for case in cases if tables.suite_of(case.file) == suite]
        for size in sorted({case.observations for case in inside}):
            for name in sorted({case.forecaster for case in inside}):
                rows = [c for c in inside if (c.observations, c.forecaster) == (size, name)]
                if rows:
                    print(_row(size, name, rows))
            for name, figures in published.of(suite, size).items():
                print(
                    f"{size:6} {name + ' (published)':28}{'':9}{figures.log_likelihood:9.3f}"
                    f"{'':9}{figures.squared_error:9.4f}{'':18}{1e3 * figures.seconds:9.0f}"
                )


def _row(size: int, name: str, rows: list[Case]) -> str:
    columns = {f.name: [getattr(row, f.name) for row in rows] for f in fields(Case)}
    return (
        f"{size:6} {name:28}"
        f"{statistics.mean(columns['log_likelihood_mean']):9.3f}"
        f"{statistics.median(columns['log_likelihood_median']):9.3f}"
        f"{statistics.mean(columns['squared_error_mean']):9.4f}"
        f"{statistics.median(columns['squared_error_median']):9.4f}"
        f"{statistics.mean(columns['below_5']):9.3f}"
        f"{statistics.mean(columns['above_95']):9.3f}"
        f"{statistics.mean(columns['milliseconds']):9.0f}"
        f"{len(rows):9}"
    )


if __name__ == "__main__":
    main()

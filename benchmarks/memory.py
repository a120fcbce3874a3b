"""How much memory a driver takes at 3,000 trials and a million observations, and what checkpoints
take of a study's byte budget.

    python benchmarks/memory.py --json memory.jsonl        # ten minutes
    python benchmarks/memory.py --smoke

A generated table of learning curves is searched through `autotune.tune` with the replay executor:
the real driver, record, trials, default proposer and forecaster, and the console's progress. The
policy trains every trial to its horizon, the only one that reaches a million observations with
3,000 trials. Then another process takes the same study up as `autotune resume` does, with the
freeze-thaw policy, and takes one decision.

A small study is run first in each process, so that all imports are done; resident memory is read
every 50 ms, and the table gives its peak above what it was then. The aim: under 300 MB. The record
lies in memory where the system has /dev/shm, because a million synced commits are not what is
measured; it is left out of the figures, as it would lie on a disk.

Then a study is run on two local workers whose checkpoints, 3 MB each, have a byte budget of ten of
them. Their folder is looked at every 2 ms, and the second table gives the most that lay there at
any moment, unfinished files included. The aim: never above the budget.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import segment_overhead

import autotune
from autotune.decide import build_search
from autotune.execute.recorded_table import RecordedTable
from autotune.execute.store import checkpoint_bytes
from autotune.header import Header
from autotune.plugins.discovery import get
from autotune.plugins.search import Evicted, Frozen, Key
from autotune.record import Record
from autotune.space import Plugins, Space

AIM = 300.0
"""MB (10**6 bytes)."""

KEPT = 10
"""Checkpoints that the byte budget has room for."""

NAMES = ("learning_rate", "weight_decay", "momentum", "dropout", "width", "depth")


@dataclass
class Peak:
    """Resident memory: what it was at first, and the most since, in MB."""

    before: float
    most: float

    @property
    def above(self) -> float:
        return self.most - self.before


def resident() -> float:
    """Of this process, in MB, what files share excluded."""
    fields = Path("/proc/self/statm").read_text().split()
    return (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGE_SIZE") / 1e6


@contextlib.contextmanager
def watched() -> Iterator[Peak]:
    """The peak of resident memory while the body runs."""
    over = threading.Event()
    peak = Peak(resident(), 0.0)

    def watch() -> None:
        while not over.wait(0.05):
            peak.most = max(peak.most, resident())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        over.set()
        watcher.join()
        peak.most = max(peak.most, resident())


def table(trials: int, units: int) -> RecordedTable:
    """Curves of so many configurations, with three metrics each."""
    generator = np.random.default_rng(0)
    rows = generator.uniform(size=(trials, len(NAMES)))
    step = np.arange(1, units + 1)
    ends = 0.2 + ((rows[:, :3] - 0.4) ** 2).sum(axis=1, keepdims=True)
    loss = ends + (1 + rows[:, 3:4]) * step ** -(0.3 + rows[:, 4:5])
    return RecordedTable(
        rows,
        NAMES,
        (False,) * len(NAMES),
        loss,
        others={"validation_accuracy": np.exp(-loss), "train_loss": loss * 0.9},
    )


def study(folder: Path, recorded: RecordedTable, trials: int) -> autotune.Result:
    """Search the table to the end of every trial."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        return autotune.tune(
            recorded,
            recorded.space,
            objectives=[recorded.objective],
            budget={"trials": trials},
            horizon=recorded.horizon,
            executor="replay",
            search={"policy": "random_search"},
            final=False,
            workers=4,
            folder=folder,
            name=f"trials-{trials}",
        )


def taken_up(folder: Path) -> None:
    """What `autotune resume` does until its first decision, with the freeze-thaw policy."""
    log = Record(folder)
    try:
        header = Header.from_plain(log.meta["header"])
        parts = {**header.search, "policy": {"name": "freeze_thaw"}}
        search = build_search(header.context(), parts, get, log.events)
        for event in log.events():
            search.observe(event)
        search.decide(Key(header.seed, search.trials.decisions))
    finally:
        log.close()


@dataclass(frozen=True)
class Kept:
    """Bytes of checkpoints: the budget, the most at any moment, and all that were written; how
    many were evicted for the budget."""

    budget: int
    most: int
    written: int
    evicted: int


def checkpoints(folder: Path, trials: int) -> Kept:
    """A study whose checkpoints have a byte budget."""
    task = f"{Path(segment_overhead.__file__).resolve()}:megabyte"
    options = {
        "space": Space({"optimizer": Plugins("optimizer", include=("adamw",))}),
        "objectives": ["validation_loss"],
        "search": {"policy": "asha", "proposer": "random"},
        "final": False,
        "folder": folder,
        "progress": False,
    }
    one = autotune.tune(task, budget={"trials": 1}, horizon=1, name="one", workers=1, **options)
    budget = KEPT * max(checkpoint_bytes(one.folder), 1)
    over, most = threading.Event(), [0]

    def watch() -> None:
        while not over.wait(0.002):
            most[0] = max(most[0], checkpoint_bytes(folder / "kept"))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        limits = {"checkpoint_gb": budget / 1e9}
        result = autotune.tune(
            task, budget={"trials": trials}, horizon=9, name="kept", limits=limits, **options
        )
    finally:
        over.set()
        watcher.join()
    events = result.view.events
    written = sum(event.size for event in events if isinstance(event, Frozen))
    gone = sum(isinstance(event, Evicted) and event.cause == "budget" for event in events)
    return Kept(budget, most[0], written, gone)


# --- in a process of its own ----------------------------------------------------------------


def measure(what: str, folder: Path, trials: int, units: int) -> dict[str, float]:
    """One process' figures."""
    small = table(12, 12)
    study(folder / f"small-{what}", small, 12)
    taken_up(folder / f"small-{what}" / "trials-12")
    recorded = table(trials, units)
    began = time.monotonic()
    with watched() as peak:
        if what == "run":
            study(folder, recorded, trials)
        else:
            taken_up(folder / f"trials-{trials}")
    view = autotune.load(folder / f"trials-{trials}")
    return {
        "trials": len(view.trials),
        "observations": view.trials.units,
        "imports": peak.before,
        "above": peak.above,
        "seconds": time.monotonic() - began,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="100 trials, some seconds")
    parser.add_argument("--trials", type=int, default=3000)
    parser.add_argument("--units", type=int, default=334, help="observations of each")
    parser.add_argument("--json", type=Path, help="append the results here, one line each")
    parser.add_argument("--measure", nargs=2, metavar=("WHAT", "FOLDER"), help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    trials, units = (100, 30) if asked.smoke else (asked.trials, asked.units)
    held = 30 if asked.smoke else 300
    if asked.measure:
        what, place = asked.measure
        print(json.dumps(measure(what, Path(place), trials, units)))
        return 0
    print("| process | trials | observations | imports, MB | above, MB | seconds |")
    print("|---|---|---|---|---|---|")
    memory = Path("/dev/shm")
    worst = 0.0
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        for what in ("run", "resume"):
            command = [sys.executable, __file__, "--measure", what, name]
            command += ["--trials", str(trials), "--units", str(units)]
            told = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            row = {"process": what, **json.loads(told.splitlines()[-1])}
            worst = max(worst, row["above"])
            print(
                f"| {what} | {row['trials']} | {row['observations']} | {row['imports']:.0f} | "
                f"{row['above']:.0f} | {row['seconds']:.0f} |",
                flush=True,
            )
            if asked.json:
                with asked.json.open("a") as file:
                    file.write(json.dumps(row) + "\n")
        kept = checkpoints(Path(name), held)
    print("\n| checkpoints, MB | byte budget | most on disk | written in all | evicted |")
    print("|---|---|---|---|---|")
    print(
        f"| {held} trials, 2 workers | {kept.budget / 1e6:.2f} | {kept.most / 1e6:.2f} | "
        f"{kept.written / 1e6:.0f} | {kept.evicted} |"
    )
    if asked.json:
        with asked.json.open("a") as file:
            file.write(json.dumps({"process": "checkpoints", **asdict(kept)}) + "\n")
    return int(worst > AIM or kept.most > kept.budget)


if __name__ == "__main__":
    raise SystemExit(main())

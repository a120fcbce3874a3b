"""What a freeze-thaw segment costs beside its training: autotune's executors and Ray Tune.

    python benchmarks/segment_overhead.py                         # about 10 minutes on two cores
    python benchmarks/segment_overhead.py --trials 30 300 --json overhead.json
    python benchmarks/segment_overhead.py --smoke

The model has 1 MB of parameters and is trained by AdamW, so that a checkpoint holds 3 MB; a unit
of training is one step on four samples. Trials race by pausing and promotion (`asha`,
rungs at one and two units, random proposer) on one worker, in a real study: its record, its
checkpoints and its search as any user's. What they race for is the clock, earlier being better:
so it is always the oldest paused trial that is promoted, and never the one that the worker still
holds. Ray Tune's real `Tuner` runs the same race by a small `TrialScheduler` that pauses and
resumes, with the same state saved and loaded by a class `Trainable`, and `reuse_actors`; without,
where a resumed trial waits for a new actor, only at the smallest number of trials.

A segment's overhead is the time from the end of the segment before it to its own end, less what
its training took: deciding, recording, moving the job, opening the run, loading and saving its
state. Only segments that thaw a trial count, of the study's second half, in which most of its
trials exist. autotune flushes every checkpoint and every event to the disk
before it goes on, Ray Tune nothing; what a flush takes on this disk is printed beside, as it
differs a hundredfold between disks. The last column is the part of autotune's median that the
worker spends: the rest is the driver's and the way between.

The aims: under 10 ms (median) on local workers and under 25 ms on Ray; at 3,000 trials at most
1.5 times what it is at 30.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two processes share the cores

import numpy as np
import torch
from torch import nn
from torch.nn import functional

import autotune
from autotune.plugins.search import Decided, Event, Frozen, Objective, Observed, Thaw
from autotune.record import read
from autotune.space import Plugins, Space
from autotune.train import Data, TorchTask

WIDTH = 512
"""Of a square weight: 512 * 512 * 4 bytes are 1 MB."""

TRIALS = (30, 300, 3000)
REPEATS = {30: 5}
"""A study of few trials has few segments: it is run several times."""

AIMS = {"local": 10.0, "ray": 25.0}
GROWTH = 1.5


@autotune.task
def megabyte() -> TorchTask:
    """A linear map with 1 MB of parameters, on four samples; its curve is the clock."""
    inputs = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(0))
    samples = (inputs, torch.arange(4))
    return TorchTask(
        lambda architecture: nn.Linear(WIDTH, WIDTH, bias=False),
        Data(train=samples, validation=samples),
        functional.cross_entropy,
        metrics={"moment": lambda outputs, targets: time.time()},
    )


@dataclass(frozen=True)
class Row:
    """Overhead a segment in milliseconds, of so many segments; `worker`: what of it the worker
    spends, where that is known."""

    method: str
    trials: int
    segments: int
    median: float
    p95: float
    worker: float | None = None


@dataclass(frozen=True)
class Segment:
    """Seconds of overhead of one segment, and the part of them on the worker."""

    overhead: float
    worker: float


# --- autotune -----------------------------------------------------------------------------------


def study(executor: str, trials: int, seed: int, folder: Path) -> list[Segment]:
    """The segments that count, of one study."""
    result = autotune.tune(
        f"{Path(__file__).resolve()}:megabyte",
        Space({"optimizer": Plugins("optimizer", include=("adamw",))}),
        objectives=[Objective("moment", "minimize", "curve")],
        budget={"trials": trials},
        horizon=2,
        folder=folder,
        search={
            "policy": {"name": "asha", "reduction": 2},
            "proposer": "random",
        },
        executor={"name": executor, "threads": 1},
        workers=1,
        seed=seed,
        final=False,
        progress=False,
    )
    segments = list(thawed_in(read(result.folder)[0], trials // 2))
    shutil.rmtree(result.folder)
    return segments


def thawed_in(events: Iterable[Event], least: int) -> Iterator[Segment]:
    """The segments that thaw a trial once so many trials have been started."""
    ended, trained, started, thawed = 0.0, 0.0, 0, False
    for event in events:
        match event:
            case Decided(decision=decision):
                thawed = isinstance(decision, Thaw)
                started += not thawed
            case Observed(seconds=seconds):
                trained += seconds
            case Frozen(at=at, seconds=seconds):
                if thawed and started >= least:
                    yield Segment(at - ended - trained, seconds - trained)
                ended, trained = at, 0.0


# --- the disk -----------------------------------------------------------------------------------


def flushes(folder: Path, repeats: int = 50) -> list[Row]:
    """What this disk takes for a flush of a small and of a checkpoint's file, alone."""

    def appended(handle: int, data: bytes) -> None:
        os.write(handle, data)
        os.fsync(handle)

    rows = []
    for name, size in (("flush of 4 KB", 1 << 12), ("flush of 3 MB", 3 << 20)):
        data, seconds = os.urandom(size), []
        for number in range(repeats):
            path = folder / f"flush-{number}"
            handle = os.open(path, os.O_CREAT | os.O_WRONLY)
            seconds.append(timed(lambda: appended(handle, data)))  # noqa: B023
            os.close(handle)
            path.unlink()
            time.sleep(0.005)  # as in a study: a disk that is never left idle is faster
        rows.append(row(name, 0, seconds))
    return rows


def timed(call: Callable[[], None]) -> float:
    """Seconds that a call takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


# --- the table ----------------------------------------------------------------------------------


def row(
    method: str, trials: int, seconds: Sequence[float], worker: Sequence[float] | None = None
) -> Row:
    """A row of the table, from seconds."""
    if not seconds:
        raise SystemExit(f"{method} at {trials} trials: no segment was measured")
    median, p95 = 1e3 * np.quantile(seconds, [0.5, 0.95])
    part = None if worker is None else 1e3 * statistics.median(worker)
    return Row(method, trials, len(seconds), float(median), float(p95), part)


def show(found: Row) -> None:
    """Print a row."""
    trials = str(found.trials) if found.trials else ""
    worker = "" if found.worker is None else f"{found.worker:.1f}"
    print(
        f"{found.method:<28}{trials:>8}{found.segments:>10}{found.median:>10.1f}{found.p95:>8.1f}"
        f"{worker:>8}",
        flush=True,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table, and what was missed of the aims."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--trials", type=int, nargs="+", default=list(TRIALS))
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=("local", "ray", "ray_tune"),
        default=["local", "ray", "ray_tune"],
    )
    parser.add_argument("--folder", type=Path, help="on the disk to measure; a temporary one")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--smoke", action="store_true", help="twelve trials, local and Ray")
    options = parser.parse_args(arguments)
    if options.smoke:
        options.trials, options.methods = [12], ["local", "ray"]
    rows: list[Row] = []

    def add(found: Row) -> None:
        rows.append(found)
        show(found)

    print(
        f"{'milliseconds a segment':<28}{'trials':>8}{'segments':>10}{'median':>10}{'p95':>8}"
        f"{'worker':>8}"
    )
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        for flush in flushes(folder):
            add(flush)
        for trials in sorted(options.trials):
            repeats = 1 if options.smoke else REPEATS.get(trials, 1)
            for executor in AIMS:
                if executor in options.methods:
                    found = [
                        s for seed in range(repeats) for s in study(executor, trials, seed, folder)
                    ]
                    overheads, parts = [s.overhead for s in found], [s.worker for s in found]
                    add(row(executor, trials, overheads, parts))
            if "ray_tune" in options.methods:
                from peers.ray_tune_pausing import race

                add(row("Ray Tune, reuse_actors", trials, race(trials, True, folder)))
                if trials == min(options.trials):
                    add(row("Ray Tune, new actors", trials, race(trials, False, folder)))
    if options.json:
        options.json.write_text(json.dumps([asdict(found) for found in rows], indent=1) + "\n")
    for line in () if options.smoke else missed(rows):
        print(line)


def missed(rows: Sequence[Row]) -> Iterator[str]:
    """The aims that were missed, in words."""
    for method, aim in AIMS.items():
        medians = {found.trials: found.median for found in rows if found.method == method}
        for trials, median in medians.items():
            if median >= aim:
                yield f"missed: {method} at {trials} trials {median:.1f} ms; the aim is {aim:g} ms"
        if medians:
            growth = medians[max(medians)] / medians[min(medians)]
            if growth > GROWTH:
                yield f"missed: {method} grows {growth:.2f} times; the aim is {GROWTH:g}"


if __name__ == "__main__":
    main()

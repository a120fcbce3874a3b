"""A study whose processes are killed, again and again, at random moments.

    python benchmarks/chaos.py --kills 100 --json chaos.jsonl
    python benchmarks/chaos.py --kills 100 --executor ray --json chaos.jsonl
    python benchmarks/chaos.py --smoke

`autotune run` and `autotune resume` search with two workers. Each kill is a SIGKILL, of

- **worker**: the process that trained one of the last units;
- **driver**: `autotune` itself, a fifth of the times while it starts; it is resumed after;
- **node** (Ray, on a local cluster): one of its nodes, with all workers on it; another is added.

Which, and when (after so many more events, and a part of a unit), comes from the printed seed;
processes run as fast as the machine lets them, so the same seed kills alike but not at the same
instruction. After every kill the record is compared with what it held before. At the end: the
study has trained its whole budget; every observation that was ever recorded is there; what was
trained again gave the same bits; and all that any process has trained, recorded or not, is at most
one segment for each kill and worker more than the budget.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import autotune
from autotune import record
from autotune.plugins.search import Decided, Event, Frozen, Lost, Observed, Restarted, Start, Thaw
from autotune.record import backup

WORKERS = 2
UNIT_SECONDS = 0.03
NAME = "chaos"
LIMIT = 600.0
"""Seconds that a study may go without a new event: then something hangs."""

STUDY_FILE = """\
name: {name}
task: {task}:chaos
space:
  learning_rate: {{type: float, low: 1.0e-4, high: 1.0, log: true, default: 0.01}}
objectives: [validation_loss]
horizon: 9
budget: {{epochs: {epochs}}}
final: false
search: {{policy: asha, proposer: random}}
executor: {executor}
"""


@dataclass
class Tally:
    """What happened and what was lost.

    Args:
        kills: by what was killed.
        observed: observations in the record at the end.
        budget: units that were to be trained.
        trained: units that any process has trained.
        allowed: units of the segments that the kills cut short.
        faults: what may never happen, and did.
    """

    executor: str
    seed: int
    kills: Counter[str] = field(default_factory=Counter)
    budget: int = 0
    observed: int = 0
    trained: int = 0
    allowed: int = 0
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)


# --- the record beside a driver -------------------------------------------------------------


def events_of(study: Path) -> list[Event]:
    """What is recorded now; nothing before the study has begun."""
    return record.read(study)[0] if record.exists(study) else []


def digest(events: Sequence[Event]) -> str:
    """Of all that they say."""
    return hashlib.sha256(repr(events).encode()).hexdigest()


# --- the processes --------------------------------------------------------------------------


class Driver:
    """``autotune run`` or ``autotune resume``, in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.study = folder / "autotune_studies" / NAME
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        begun = record.exists(self.study)
        command = ["resume"] if begun else ["run", "chaos.yaml", "--name", NAME]
        with open(self.folder / "driver.log", "ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "autotune", *command, "--quiet"],
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill(self) -> None:
        """As the system would, and wait until nobody holds the study."""
        self.process.kill()
        self.process.wait()
        end = time.monotonic() + LIMIT
        while record.driver(self.study) is not None and time.monotonic() < end:
            time.sleep(0.01)

    def resume(self) -> None:
        """Another one goes on."""
        self.process = self._start()

    def said(self) -> str:
        """The end of what it printed."""
        return (self.folder / "driver.log").read_text(errors="replace")[-2000:]


def worker_to_kill(folder: Path, chosen: random.Random) -> int | None:
    """A process that trained one of the last units and is still there."""
    lines = (folder / "trained").read_text().splitlines()[-2 * WORKERS :]
    trained = sorted({int(line.split()[0]) for line in lines if line.count(" ") == 2})
    alive = [process for process in trained if Path(f"/proc/{process}/stat").exists()]
    return chosen.choice(alive) if alive else None


class Nodes:
    """A local Ray cluster: a head without room for workers, and nodes with room for one each."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "include_dashboard": False}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self._nodes = [self._cluster.add_node(num_cpus=1) for _ in range(WORKERS)]
        self.address: str = self._cluster.address

    def replace_one(self, chosen: random.Random) -> None:
        """Kill a node, then add another."""
        node = self._nodes.pop(chosen.randrange(len(self._nodes)))
        self._cluster.remove_node(node, allow_graceful=False)
        self._nodes.append(self._cluster.add_node(num_cpus=1))

    def close(self) -> None:
        """Stop the cluster."""
        self._cluster.shutdown()


@contextlib.contextmanager
def nodes_for(executor: str) -> Iterator[Nodes | None]:
    """The cluster, if there is to be one."""
    nodes = Nodes() if executor == "ray" else None
    try:
        yield nodes
    finally:
        if nodes is not None:
            nodes.close()


# --- the study ------------------------------------------------------------------------------


def run(executor: str, kills: int, seed: int, folder: Path) -> Tally:
    """Kill so often, let the study end, and look at what is left of it."""
    chosen = random.Random(seed)
    tally = Tally(executor, seed, budget=60 + 40 * kills)
    began = time.monotonic()
    # For the driver and its workers; those of a cluster inherit it from their node.
    os.environ |= {
        "CHAOS_SECONDS": str(UNIT_SECONDS),
        "CHAOS_LOG": str(folder / "trained"),
        "OMP_NUM_THREADS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    (folder / "trained").touch()
    with nodes_for(executor) as nodes:
        (folder / "chaos.yaml").write_text(
            STUDY_FILE.format(
                name=NAME,
                task=Path(__file__).parent / "common" / "chaos_task.py",
                epochs=tally.budget,
                executor=json.dumps(_executor(nodes)),
            )
        )
        driver = Driver(folder)
        try:
            snapshots = _kill(driver, nodes, kills, chosen, tally)
            driver.process.wait(LIMIT)
        finally:
            driver.kill()
    tally.seconds = time.monotonic() - began
    if driver.process.returncode:
        tally.faults.append(f"the driver left with {driver.process.returncode}: {driver.said()}")
    if record.exists(driver.study):
        _judge(driver.study, snapshots, tally)
    return tally


def _executor(nodes: Nodes | None) -> dict[str, Any]:
    if nodes is None:
        return {"name": "local", "workers": WORKERS}
    return {"name": "ray", "workers": WORKERS, "address": nodes.address, "min_workers": 1}


def _kill(
    driver: Driver, nodes: Nodes | None, kills: int, chosen: random.Random, tally: Tally
) -> list[tuple[int, str]]:
    """Every kill; returns how many events there were before each, and their digest."""
    snapshots = []
    kinds = ["worker", "driver", *(["node"] if nodes is not None else [])]
    for number in range(kills):
        kind = chosen.choice(kinds)
        starting = number == 0 or not _is_up(driver)
        if kind == "driver" and starting and chosen.random() < 0.4:
            time.sleep(chosen.uniform(0.0, 3.0))
        else:
            _wait(driver, chosen.randrange(1, 10))
            time.sleep(chosen.uniform(0.0, UNIT_SECONDS))
        if driver.process.poll() is not None:
            tally.faults.append(f"the driver left after {number} kills: {driver.said()}")
            break
        before = events_of(driver.study)
        snapshots.append((len(before), digest(before)))
        if kind == "worker":
            process = worker_to_kill(driver.folder, chosen)
            with contextlib.suppress(ProcessLookupError):
                if process is not None:
                    os.kill(process, signal.SIGKILL)
        elif kind == "driver":
            driver.kill()
        else:
            assert nodes is not None
            nodes.replace_one(chosen)
        tally.kills[kind] += 1
        after = events_of(driver.study)
        if digest(after[: len(before)]) != snapshots[-1][1]:
            tally.faults.append(f"kill {number} ({kind}): the record is not what it was before")
        if kind == "driver":
            driver.resume()
    return snapshots


def _is_up(driver: Driver) -> bool:
    return record.driver(driver.study) == driver.process.pid


def _wait(driver: Driver, more: int) -> None:
    """Until so many further events are recorded, or the driver has left."""
    recorded = driver.study / record.BACKUP
    begin = backup.length(recorded)
    end = time.monotonic() + LIMIT
    while driver.process.poll() is None and backup.length(recorded) < begin + more:
        if time.monotonic() > end:
            raise RuntimeError(f"no {more} events in {LIMIT:.0f} s: {driver.said()}")
        time.sleep(0.01)


def _judge(study: Path, snapshots: Sequence[tuple[int, str]], tally: Tally) -> None:
    view = autotune.load(study)
    events = view.events
    for number, (count, before) in enumerate(snapshots):
        if digest(events[:count]) != before:
            tally.faults.append(f"of the {count} events before kill {number}, some are lost")
    if not view.finished or view.trials.units != tally.budget:
        tally.faults.append(f"{view.trials.units} of {tally.budget} units were trained")
    seen: dict[tuple[int, int], Any] = {}
    for event in events:
        if isinstance(event, Observed):
            tally.observed += 1
            if seen.setdefault((event.trial, event.step), event.metrics) != event.metrics:
                tally.faults.append(f"trial {event.trial} gave other bits at step {event.step}")
    tally.trained = len((study.parents[1] / "trained").read_text().splitlines())
    tally.allowed = cut_short(events)
    if tally.trained - tally.budget > tally.allowed:
        tally.faults.append(f"{tally.trained - tally.budget} units were trained for nothing")


def cut_short(events: Sequence[Event]) -> int:
    """Units of the segments that were in flight when their worker or driver was killed. Of those
    that a driver had decided on, so many as there are workers, the longest: others it had decided
    ahead, and not begun."""
    running: dict[int, int] = {}
    frozen: dict[int, int] = {}
    total = 0
    for event in events:
        match event:
            case Decided(decision=Start() | Thaw() as decision):
                running[decision.trial] = decision.to - frozen.get(decision.trial, 0)
            case Frozen(trial=trial, step=step):
                frozen[trial] = step
                running.pop(trial)
            case Lost(trial=trial, evaluation=None, cause="withdrawn"):
                running.pop(trial)
            case Lost(trial=trial, evaluation=None):
                total += running.pop(trial)
            case Restarted():
                total += sum(sorted(running.values())[-WORKERS:])
                running.clear()
    return total


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="three kills")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--executor", choices=("local", "ray"), default="local")
    parser.add_argument("--seed", type=int, help="of the kills; a new one unless given")
    parser.add_argument("--json", type=Path, help="append the results here, one line each")
    asked = parser.parse_args(arguments)
    seed = asked.seed if asked.seed is not None else random.SystemRandom().randrange(2**32)
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        tally = run(asked.executor, 3 if asked.smoke else asked.kills, seed, Path(folder))
    killed = ", ".join(f"{count} of a {kind}" for kind, count in sorted(tally.kills.items()))
    print("| executor | kills | budget | observed | trained | beyond | allowed | seconds |")
    print("|---|---|---|---|---|---|---|---|")
    print(
        f"| {tally.executor} | {tally.kills.total()} ({killed}) | {tally.budget} | "
        f"{tally.observed} | {tally.trained} | {tally.trained - tally.budget} | {tally.allowed} | "
        f"{tally.seconds:.0f} |"
    )
    for fault in tally.faults:
        print(f"WRONG: {fault}", file=sys.stderr)
    if asked.json:
        with asked.json.open("a") as file:
            file.write(json.dumps(tally.__dict__) + "\n")
    return 1 if tally.faults else 0


if __name__ == "__main__":
    raise SystemExit(main())

"""kill -9 of the driver, at ten moments of one study: what was recorded stays, what was in
flight is trained again, nothing else is, and the study ends."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from studies import ADDRESS, check_repeats, check_replay

import autotune
from autotune import record
from autotune.plugins.search import Decided, Event, Frozen, Observed, Restarted, Start, Thaw

STUDY_FILE = f"""\
name: killed
task: {ADDRESS}
space:
  learning_rate: {{type: float, low: 1.0e-4, high: 1.0, log: true, default: 0.01}}
  width: {{type: integer, low: 1, high: 16, default: 4}}
  smoothing: {{type: float, low: 0.0, high: 1.0, default: 0.5, evaluation: true}}
objectives: [validation_loss, shifted_accuracy, parameters, latency_ms]
horizon: 9
budget: {{epochs: 90, evaluations: 12}}
search: {{policy: asha, proposer: random}}
executor: {{name: local, workers: 2}}
"""
WORKERS = 2
LIMIT = 30.0

Moment = Callable[[Path, float], bool]
"""Whether to kill now: given the study's folder and the seconds since the driver started."""


def rows(folder: Path) -> list[tuple[str, str]]:
    """Kind and text of all events, read beside the driver."""
    try:
        with closing(sqlite3.connect(f"file:{folder / record.FILE}?mode=ro", uri=True)) as file:
            return file.execute("SELECT kind, json FROM events ORDER BY seq").fetchall()
    except sqlite3.OperationalError:
        return []


def after_seconds(wait: float) -> Moment:
    return lambda folder, ran: ran >= wait


def after_file(name: str) -> Moment:
    return lambda folder, ran: (folder / name).exists()


def after_events(more: int) -> Moment:
    """When this driver has recorded so many events."""
    before: list[int] = []

    def now(folder: Path, ran: float) -> bool:
        count = len(rows(folder))
        if not before:
            before.append(count)
        return count >= before[0] + more

    return now


def after_decision(kind: str) -> Moment:
    """When this driver has decided on something of a kind."""
    before: list[int] = []

    def now(folder: Path, ran: float) -> bool:
        found = rows(folder)
        if not before:
            before.append(len(found))
        return any(
            what == "decided" and json.loads(text)["decision"]["kind"] == kind
            for what, text in found[before[0] :]
        )

    return now


def start(command: list[str], folder: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "autotune", *command, "--quiet"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def kill_at(moment: Moment, process: subprocess.Popen[bytes], study: Path) -> None:
    began = time.monotonic()
    while not moment(study, time.monotonic() - began):
        assert process.poll() is None, process.communicate()[0].decode()
        assert time.monotonic() - began < LIMIT
        time.sleep(0.003)
    process.kill()
    process.communicate()


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {
        **os.environ,
        "QUICK_SECONDS": "0.01",
        "QUICK_TESTS": str(tmp_path / "looks"),
        "OMP_NUM_THREADS": "1",
    }


def test_ten_kills_of_the_driver(tmp_path: Path, environment: dict[str, str]) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    chosen = random.Random(seed)
    moments = [
        ("starting", after_seconds(chosen.uniform(0.1, 0.6))),
        ("beginning the record", after_file(record.FILE)),
        ("starting its workers", after_file("logs/worker-0.log")),
        *((f"{n} events on", after_events(n)) for n in (1, chosen.randrange(2, 12))),
        *((f"{n} events on", after_events(n)) for n in sorted(chosen.sample(range(12, 45), 2))),
        ("evaluating", after_decision("evaluate")),
        ("measuring", after_decision("measure")),
        ("stopping", after_decision("stop")),
    ]
    assert len(moments) == 10
    (tmp_path / "killed.yaml").write_text(STUDY_FILE)
    study = tmp_path / "autotune_studies" / "killed"
    kept: list[Event] = []
    for name, moment in moments:
        begun = record.exists(study)
        command = ["resume"] if begun else ["run", "killed.yaml", "--name", "killed"]
        kill_at(moment, start(command, tmp_path, environment), study)
        assert study.exists() or not begun
        assert let_go(study)
        if not record.exists(study):
            assert not kept
            continue
        events, _ = record.read(study)
        assert events[: len(kept)] == kept, f"killed while {name}"
        print(f"killed while {name}: {len(events)} events")
        kept = events
    process = start(["resume"], tmp_path, environment)
    output = process.communicate(timeout=60)[0].decode()
    assert process.returncode == 0, output

    view = autotune.load(study)
    assert view.events[: len(kept)] == kept
    assert view.finished
    assert view.trials.units == 90
    assert sum(isinstance(event, Restarted) for event in view.events) >= 6
    assert check_replay(view) > 30
    repeats = check_repeats(view)
    assert repeats <= in_flight(view.events)
    best = view.result.best
    assert best is not None
    assert best.load_model().bias.item() == best.metrics["validation_loss"]  # type: ignore[union-attr, operator]
    looks = (tmp_path / "looks").read_text().splitlines()
    assert len(set(looks)) == 1, "the test split was shown to more than one point"
    assert len(looks) <= 2


def let_go(study: Path) -> bool:
    """Whether the lock is free; a worker that was just being forked may hold it for a moment."""
    end = time.monotonic() + 2
    while record.driver(study) is not None and time.monotonic() < end:
        time.sleep(0.01)
    return record.driver(study) is None


def in_flight(events: list[Event]) -> int:
    """Units that the segments in flight at each restart were to train."""
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
            case Restarted():
                assert len(running) <= WORKERS
                total += sum(running.values())
                running.clear()
    return total


def test_workers_do_not_outlive_a_killed_driver(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    (tmp_path / "killed.yaml").write_text(STUDY_FILE)
    study = tmp_path / "autotune_studies" / "killed"
    process = start(["run", "killed.yaml"], tmp_path, environment)
    workers: set[int] = set()

    def training(folder: Path, ran: float) -> bool:
        if not any(kind == "observed" for kind, _ in rows(folder)):
            return False
        workers.update(children(process.pid))
        return True

    kill_at(training, process, study)
    assert len(workers) >= WORKERS
    end = time.monotonic() + 5
    while (left := {pid for pid in workers if alive(pid)}) and time.monotonic() < end:
        time.sleep(0.02)
    assert not left


def children(parent: int) -> list[int]:
    task = Path(f"/proc/{parent}/task")
    return [int(pid) for t in task.iterdir() for pid in (t / "children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_with_its_code_and_a_way_back(
    tmp_path: Path, environment: dict[str, str], number: signal.Signals
) -> None:
    (tmp_path / "killed.yaml").write_text(STUDY_FILE)
    study = tmp_path / "autotune_studies" / "killed"
    process = start(["run", "killed.yaml"], tmp_path, environment)
    moment = after_events(10)
    began = time.monotonic()
    while not moment(study, 0.0):
        assert time.monotonic() - began < LIMIT
        time.sleep(0.01)
    process.send_signal(number)
    output = process.communicate(timeout=30)[0].decode()
    assert process.returncode == 128 + number
    assert "autotune resume --study killed" in output
    assert "Traceback" not in output
    view = autotune.load(study)
    assert view.trials.in_flight == {}
    observed = [(e.trial, e.step) for e in view.events if isinstance(e, Observed)]
    assert len(observed) == len(set(observed))
    assert all(trial.frozen == trial.last for trial in view.trials.all.values())

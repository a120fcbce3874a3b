"""What may befall a driver, seen from outside: clocks that jump, a second driver."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from studies import ADDRESS, check_replay, tune

import autotune
from autotune.plugins.search import Event, Failed, Observed
from autotune.record import RecordError
from autotune.study import Interrupted

STUDY_FILE = f"""\
name: hard
task: {ADDRESS}
space:
  learning_rate: {{type: float, low: 1.0e-4, high: 1.0, log: true, default: 0.01}}
objectives: [validation_loss]
horizon: 6
budget: {{epochs: 12}}
final: false
search: {{policy: asha, proposer: random}}
executor: {{name: local, workers: 1}}
"""


def command(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "autotune", *words, "--quiet"],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


def test_a_clock_that_jumps_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An hour forth, two back, at every look: a budget in seconds is spent in real ones."""
    jumps = itertools.cycle((3600.0, -7200.0))
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() + next(jumps))

    def stop(trials: Any, event: Event) -> None:
        if trials.units == 5 and isinstance(event, Observed):
            raise KeyboardInterrupt

    budget = {"epochs": 12, "seconds": 3000.0}
    with pytest.raises((KeyboardInterrupt, Interrupted)):
        tune(tmp_path, budget=budget, objectives=["validation_loss"], listeners=[stop])
    result = autotune.resume("study", folder=tmp_path, progress=False)
    assert result.trials.units == 12
    times = [event.at for event in result.view.events]
    assert times == sorted(times)
    assert 0 <= times[0] <= times[-1] < 1000
    assert check_replay(result.view) > 0


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """A folder that nothing can be written to: root may write to one without permissions."""
    bind = ["mount", "--bind", str(folder), str(folder)]
    mounted = subprocess.run(bind, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a folder: {mounted.stderr.strip()}")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_folder_of_checkpoints_that_is_read_only_is_said_and_loses_nothing(
    tmp_path: Path,
) -> None:
    (tmp_path / "hard.yaml").write_text(STUDY_FILE)
    assert command(tmp_path, "run", "hard.yaml").returncode == 0
    study = tmp_path / "autotune_studies" / "hard"
    before = autotune.load(study).events
    with read_only(study / "checkpoints"):
        stopped = command(tmp_path, "resume", "--budget", "epochs=20")
    assert stopped.returncode not in (0, -9)
    assert "no checkpoint can be written any more" in stopped.stderr
    assert "Read-only file system" in stopped.stderr
    assert f"go on with the study in {study.relative_to(tmp_path)}" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    between = autotune.load(study)
    assert between.events[: len(before)] == before
    assert not between.finished
    assert command(tmp_path, "resume").returncode == 0
    after = autotune.load(study)
    assert after.events[: between.count] == between.events
    assert after.trials.units == 20
    assert not [event for event in after.events if isinstance(event, Failed)]


@pytest.mark.parametrize("beside", ["-wal", "-journal"])
def test_a_killed_study_in_a_read_only_folder_says_where_its_events_lie(
    tmp_path: Path, beside: str
) -> None:
    study = tmp_path / "study"
    tune(tmp_path, budget={"epochs": 2}, objectives=["validation_loss"])
    events = autotune.load(study).events
    with read_only(study):
        assert autotune.load(study).events == events
    left = study / f"record.sqlite{beside}"
    left.touch()
    with read_only(study), pytest.raises(RecordError, match=f"whole only with {left.name}: copy"):
        autotune.load(study)
    assert autotune.load(study).events == events


def test_a_second_driver_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "hard.yaml").write_text(STUDY_FILE)
    first = subprocess.Popen(
        [sys.executable, "-m", "autotune", "run", "hard.yaml", "--quiet"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "QUICK_SECONDS": "2"},
        stderr=subprocess.PIPE,
    )
    study = tmp_path / "autotune_studies" / "hard"
    while not autotune.record.exists(study):
        assert first.poll() is None
        time.sleep(0.02)
    second = command(tmp_path, "resume")
    assert second.returncode not in (0, -9)
    assert f"is being run by another driver (process {first.pid})" in second.stderr
    assert "Traceback" not in second.stderr
    first.kill()
    first.communicate()

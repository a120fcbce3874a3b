"""What may go wrong with workers and checkpoints while a study runs: it goes on, and says so."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from studies import check_replay, moods, space, tune

import autotune
from autotune.cli import main
from autotune.execute.store import CheckpointStore, checkpoint_bytes
from autotune.header import StudyError
from autotune.leases import PATIENCE, SILENCE, Lease, Leases
from autotune.plugins.execution import EvaluateJob, Limits, TrainJob
from autotune.plugins.search import (
    Decided,
    Evaluated,
    Evicted,
    Failed,
    Frozen,
    Lost,
    Observed,
    Stop,
)
from autotune.study import Interrupted

ONE = {"objectives": ["validation_loss"], "final": False}


def small() -> Any:
    """Without anything to evaluate."""
    return autotune.Space({n: p for n, p in space().parameters.items() if n != "smoothing"})


class Watch:
    """Looks at the folder of checkpoints all the time; what it takes at most."""

    def __init__(self, folder: Path) -> None:
        self.most, self._over = 0, threading.Event()
        self._thread = threading.Thread(target=self._look, args=(folder,))

    def _look(self, folder: Path) -> None:
        while not self._over.wait(0.002):
            self.most = max(self.most, checkpoint_bytes(folder))

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()


def test_checkpoints_never_take_more_than_their_budget(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limit = 100_000
    options = {**ONE, "space": small(), "budget": {"epochs": 60}, "horizon": 9, "workers": 2}
    with Watch(tmp_path / "study") as watch:
        result = tune(tmp_path, limits={"checkpoint_gb": limit / 1e9}, **options)
    assert limit / 2 < watch.most <= limit
    assert result.trials.units == 60
    gone = [e for e in result.view.events if isinstance(e, Evicted)]
    assert gone
    assert {e.cause for e in gone} == {"budget"}
    store = CheckpointStore(tmp_path / "study" / "checkpoints")
    kept = {name for t in result.trials.all.values() for name in t.checkpoints.values()}
    assert kept == {stored.name for stored in store.list()}
    assert result.best is not None
    assert result.best.metrics["validation_loss"] == min(
        result.trials[e.trial].metrics[e.step]["validation_loss"]
        for e in result.view.events
        if isinstance(e, Frozen)
    )
    store.load(result.best.checkpoint)
    assert check_replay(result.view) > 10
    assert main(["status", "--folder", str(tmp_path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)["checkpoints"]
    assert facts["bytes"] == sum(stored.size for stored in store.list())
    assert (facts["budget_bytes"], facts["evicted"]) == (limit, len(gone))
    assert main(["status", "--folder", str(tmp_path)]) == 0
    assert f" of 0.0001 GB, {len(gone)} evicted" in capsys.readouterr().out


def test_a_budget_that_holds_nothing_is_said_and_may_be_raised(tmp_path: Path) -> None:
    options = {**ONE, "space": small(), "budget": {"epochs": 3}}
    with pytest.raises(StudyError, match=r"--checkpoint-gb NUMBER.*checkpoint_gb"):
        tune(tmp_path, limits={"checkpoint_gb": 1e-6}, **options)
    result = autotune.resume("study", folder=tmp_path, limits={"checkpoint_gb": 2}, progress=False)
    assert result.trials.units == 3
    assert result.view.header.limits == Limits(None, 2 * 10**9)
    assert not [e for e in result.view.events if isinstance(e, Failed | Lost)]


def test_damaged_and_missing_checkpoints_end_no_study(tmp_path: Path) -> None:
    """Every checkpoint that is there at one moment is damaged; later, the best two are missing."""
    harmed: list[str] = []

    def harm(trials: Any, event: Any) -> None:
        if isinstance(event, Observed) and trials.units == 12 and not harmed:
            for path in (tmp_path / "study" / "checkpoints").glob("trial-*.safetensors"):
                path.write_bytes(b"x" * path.stat().st_size)
                harmed.append(path.name)
        # once: what was lost is trained again, and a second signal leaves at once
        if isinstance(event, Observed) and trials.units == 24 and "stopped" not in harmed:
            harmed.append("stopped")
            os.kill(os.getpid(), signal.SIGTERM)

    options = {"budget": {"epochs": 40, "evaluations": 4}, "horizon": 9, "workers": 2}
    with pytest.raises(Interrupted):
        tune(tmp_path, listeners=[harm], **options)
    assert harmed
    view = autotune.load("study", tmp_path)
    kept = [n for t in view.trials.all.values() for n in t.checkpoints.values()]
    missing = [name for name in kept if name not in harmed][:2]
    for name in missing:
        (tmp_path / "study" / "checkpoints" / name).unlink()
    result = autotune.resume("study", folder=tmp_path, progress=False)
    assert result.trials.units == 40
    gone = [e for e in result.view.events if isinstance(e, Evicted)]
    assert {e.cause for e in gone} == {"damaged"}
    assert sum(e.message == "it is missing" for e in gone) == len(missing)
    lost = [e for e in result.view.events if isinstance(e, Lost)]
    assert all(e.cause == "checkpoint" for e in lost)
    assert not [e for e in result.view.events if isinstance(e, Failed)]
    assert result.test is not None
    assert result.best is not None
    assert result.best.load_model() is not None
    assert check_replay(result.view) > 10


def test_a_winner_whose_checkpoint_is_damaged_gives_way_to_the_next(tmp_path: Path) -> None:
    def harm(trials: Any, event: Any) -> None:
        if isinstance(event, Decided) and isinstance(event.decision, Stop):
            _, number, step = trials.best
            name = trials[number].checkpoints[step]
            (tmp_path / "study" / "checkpoints" / name).write_bytes(b"x")

    result = tune(tmp_path, **ONE, space=small(), budget={"epochs": 6}, listeners=[harm])
    (gone,) = [e for e in result.view.events if isinstance(e, Evicted)]
    assert gone.cause == "damaged"
    assert result.test is not None
    assert result.best is not None
    assert (result.best.trial, result.best.step) != (gone.trial, gone.step)


def test_storage_that_is_not_there_damages_no_checkpoint(tmp_path: Path) -> None:
    options = {**ONE, "space": small(), "budget": {"epochs": 3}}
    tune(tmp_path, **options)
    folder, away = tmp_path / "study" / "checkpoints", tmp_path / "unmounted"
    folder.rename(away)
    more = {"folder": tmp_path, "budget": {"epochs": 5}, "progress": False}
    for _ in range(2):
        with pytest.raises(StudyError, match=f"checkpoints is in {folder}; is the storage mount"):
            autotune.resume("study", **more)
        assert not folder.exists()
    away.rename(folder)
    result = autotune.resume("study", **more)
    assert result.trials.units == 5
    assert not [e for e in result.view.events if isinstance(e, Evicted)]


def test_a_segment_that_takes_too_long_is_ended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = tune(
        tmp_path,
        **ONE,
        space=space(mood=moods("hang")),
        first=[{"mood": "hang"}],
        budget={"trials": 2, "evaluations": 1},
        limits={"segment_minutes": 8 / 60},
    )
    (failed,) = [e for e in result.view.events if isinstance(e, Failed) and e.trial == 1]
    assert failed.cause == "timeout"
    assert "it took more than 8 s (limits: segment_minutes); worker 0 (process" in failed.message
    assert result.best is not None
    assert result.best.configuration["mood"] == "good"
    assert main(["status", "--folder", str(tmp_path), "--failed"]) == 0
    assert "(timeout): it took more than 8 s" in capsys.readouterr().out


def test_who_says_nothing_for_long_hangs() -> None:
    leases = Leases(Limits())
    job = TrainJob(0, 0, {}, 0, 9, 0, 3, None)
    lease = Lease(job, None, "worker 0", begun=0.0, heard=0.0)
    leases.take(lease)
    assert leases.overdue(1e9) == [], "nothing is known yet"
    leases.observe(Observed(5, 1, {}, seconds=1.0))
    assert leases.overdue(SILENCE) == []
    (overdue,) = leases.overdue(SILENCE + 1)
    assert (overdue.lease, overdue.for_good) == (lease, False)
    assert "worker 0 said nothing for 900 s" in overdue.message
    leases.hear(0, SILENCE)
    assert leases.overdue(SILENCE + 1) == []
    leases.observe(Observed(0, 1, {}, seconds=SILENCE))
    assert leases.overdue(SILENCE * (PATIENCE + 0.9)) == [], "its own units are slow"
    assert leases.overdue(SILENCE * (PATIENCE + 1.1))
    lease.wants = 10
    assert leases.overdue(1e9) == [], "it waits for us"
    lease.go_on(1e9)
    assert leases.overdue(1e9 + SILENCE) == [], "the wait does not count"
    assert lease.begun == 1e9 - SILENCE
    with pytest.raises(RuntimeError, match="bug: trial 0 is trained by worker 0"):
        leases.take(Lease(job, None, "worker 1", 0.0, 0.0))


def test_an_evaluation_may_be_silent_however_long_it_takes() -> None:
    for limits in (Limits(), Limits(segment_seconds=2 * SILENCE * PATIENCE)):
        leases = Leases(limits)
        leases.observe(Observed(0, 1, {}, seconds=1.0))
        leases.observe(Evaluated(0, 1, {}, {}, {}, seconds=1.0))
        job = EvaluateJob(0, 0, {}, 0, 9, 1, "checkpoint", {}, "stream")
        leases.take(Lease(job, None, "worker 0", begun=0.0, heard=0.0))
        assert leases.overdue(SILENCE * PATIENCE) == []
    (overdue,) = leases.overdue(2 * SILENCE * PATIENCE + 1)
    assert overdue.for_good


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"segment_minute": 3}, "expected a mapping of any of segment_minutes, checkpoint_gb"),
        ({"segment_minutes": 0}, "limits: segment_minutes is 0; expected a number above 0"),
        ({"checkpoint_gb": "much"}, "limits: checkpoint_gb is 'much'; expected a number above 0"),
        (3, "limits: is 3; expected a mapping"),
    ],
)
def test_mistakes_about_limits_are_named(tmp_path: Path, limits: Any, message: str) -> None:
    with pytest.raises(StudyError, match=message):
        tune(tmp_path, limits=limits)

"""Going on with a study: what is compared, what is refused, what may change."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from studies import ADDRESS, check_repeats, check_replay, space, tune
from study_tasks import Quick, QuickRun

import autotune
from autotune import record
from autotune.api import other_executor
from autotune.begin import _Recorded
from autotune.cli import main
from autotune.header import Header, StudyError, differences
from autotune.plugins.search import (
    Decided,
    Extended,
    Failed,
    Objective,
    Observed,
    Restarted,
    Stop,
)
from autotune.record import Record
from autotune.report import write_report
from autotune.space import Integer, Plugins, Space
from autotune.study import Interrupted


def stop_at(units: int) -> Callable[[Any, Any], None]:
    def stop(trials: Any, event: Any) -> None:
        if trials.units == units and isinstance(event, Observed):
            os.kill(os.getpid(), signal.SIGTERM)

    return stop


def interrupted(folder: Path, task: Any = ADDRESS, **options: Any) -> Path:
    with pytest.raises(Interrupted):
        tune(folder, task, listeners=[stop_at(5)], **options)
    return folder / "study"


def rewrite(folder: Path, change: Callable[[Header], Header]) -> None:
    """As if the study had been begun otherwise."""
    log = Record(folder)
    log.set_meta("header", change(Header.from_plain(log.meta["header"])).to_plain())
    log.close()


def test_a_header_survives_its_record(tmp_path: Path) -> None:
    folder = interrupted(
        tmp_path,
        space=space(optimizer=Plugins("optimizer")),
        objectives=["validation_loss", Objective("noise", "maximize", "curve", bounds=(-1, 1))],
        first=[{"width": 7}],
    )
    header = autotune.load(folder).header
    assert Header.from_plain(header.to_plain()) == header
    assert header.first[0]["width"] == 7
    assert header.objectives[1].bounds == (-1, 1)
    assert differences(header, header) == []
    # as it was written while `asha` had its earlier name
    assert header.search["policy"]["name"] == "asha"
    earlier = json.loads(json.dumps(header.to_plain()).replace('"asha"', '"successive_halving"'))
    assert Header.from_plain(earlier) == Header.from_plain(
        json.loads(json.dumps(header.to_plain()))
    )


def test_a_changed_fingerprint_is_refused_unless_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = interrupted(tmp_path)
    monkeypatch.setenv("QUICK_DATA", "other data")
    with pytest.raises(StudyError) as caught:
        autotune.resume(folder, progress=False)
    message = str(caught.value)
    assert "data: the task's fingerprint was quick data, now other data" in message
    assert "--accept-changes" in message
    result = autotune.resume(folder, accept_changes=True, progress=False)
    assert result.trials.units == 30
    assert result.view.meta["accepted"] == [
        ["data: the task's fingerprint was quick data, now other data"]
    ]
    assert result.view.header.fingerprint == "other data"
    assert autotune.resume(folder, progress=False).test == result.test


def test_another_plugin_version_is_refused_and_a_missing_plugin_always(tmp_path: Path) -> None:
    folder = interrupted(tmp_path, space=space(schedule=Plugins("schedule")))
    rewrite(
        folder,
        lambda header: replace(
            header,
            plugins=tuple(
                (*row[:3], "0.0.9") if row[1] == "cosine" else row for row in header.plugins
            ),
        ),
    )
    with pytest.raises(StudyError, match=r"schedule 'cosine': was of autotune-torch 0\.0\.9, now"):
        autotune.resume(folder, progress=False)
    rewrite(
        folder,
        lambda header: replace(
            header, plugins=(*header.plugins, ("schedule", "stairs", "their-plugins", "1.2"))
        ),
    )
    with pytest.raises(StudyError, match=r"'stairs': was of their-plugins 1\.2, now missing"):
        autotune.resume(folder, accept_changes=True, progress=False)


def test_a_plugin_that_was_installed_since_does_not_matter(tmp_path: Path) -> None:
    folder = interrupted(tmp_path, space=space(schedule=Plugins("schedule")))
    names = ("constant", "cosine")

    def without(header: Header) -> Header:
        kept = Plugins("schedule", include=names)
        resolved = space(schedule=kept).resolve(autotune.begin.Catalogue())
        rows = [row for row in header.plugins if row[0] != "schedule" or row[1] in names]
        return replace(header, resolved=resolved, plugins=tuple(rows))

    log = Record(folder)
    header = without(Header.from_plain(log.meta["header"]))
    log.close()
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    log = Record(fresh)
    log.set_meta("header", header.to_plain())
    log.close()
    result = autotune.resume(fresh, progress=False)
    chosen = {t.configuration["schedule"]["name"] for t in result.trials.all.values()}
    assert chosen == set(names)


def test_a_changed_space_is_refused_and_named(tmp_path: Path) -> None:
    folder = interrupted(tmp_path)
    rewrite(folder, lambda h: replace(h, space=space(width=Integer(1, 32, default=4))))
    with pytest.raises(StudyError, match=r"space: .*width.*high: was 16, now 32"):
        autotune.resume(folder, progress=False)


def test_a_task_given_as_an_object_is_given_again(tmp_path: Path) -> None:
    folder = interrupted(tmp_path, Quick())
    with pytest.raises(StudyError, match=r"autotune\.resume\('.*study', task=task\)"):
        autotune.resume(folder, progress=False)
    result = autotune.resume(folder, Quick(), progress=False)
    assert result.best is not None
    assert result.best.load_model() is not None


def test_another_task_is_refused(tmp_path: Path) -> None:
    folder = interrupted(tmp_path)
    with pytest.raises(StudyError, match=r"task: was .*study_tasks\.py:quick, now given as an obj"):
        autotune.resume(folder, Quick(), progress=False)


def test_a_finished_study_is_not_run_again(tmp_path: Path) -> None:
    first = tune(tmp_path)
    again = autotune.resume("study", folder=tmp_path, progress=False)
    assert again.view.events == first.view.events
    assert not any(isinstance(event, Restarted) for event in again.view.events)
    assert again.test == first.test
    assert again.reason == first.reason


def test_resuming_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="there is no study 'nothing'"):
        autotune.resume("nothing", folder=tmp_path)
    interrupted(tmp_path)
    with pytest.raises(StudyError, match="there are: study"):
        autotune.resume("nothing", folder=tmp_path)


def test_other_workers_may_go_on_with_a_study(tmp_path: Path) -> None:
    folder = interrupted(tmp_path)
    result = autotune.resume(folder, workers=2, progress=False)
    assert result.trials.units == 30
    assert result.view.header.workers == 1
    assert check_replay(result.view) > 0


class Slow(Quick):
    """Dies at the first look at the test split."""

    def open(self, configuration: Mapping[str, Any], context: Any) -> QuickRun:
        return SlowRun(configuration, context)


class SlowRun(QuickRun):
    def test(self, evaluation: Mapping[str, Any]) -> Mapping[str, float]:
        flag = Path(os.environ["QUICK_FLAG"])
        if not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().test(evaluation)


def test_a_worker_that_dies_while_scoring_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUICK_FLAG", str(tmp_path / "flag"))
    result = tune(tmp_path / "studies", Slow())
    assert (tmp_path / "flag").exists()
    assert result.test is not None


def test_a_study_stopped_between_its_end_and_its_score_is_scored_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUICK_TESTS", str(tmp_path / "looks"))

    def stop(trials: Any, event: Any) -> None:
        if isinstance(event, Decided) and isinstance(event.decision, Stop):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        tune(tmp_path, listeners=[stop])
    folder = tmp_path / "study"
    assert not autotune.load(folder).finished
    looks = tmp_path / "looks"
    before = len(looks.read_text().splitlines()) if looks.exists() else 0
    result = autotune.resume(folder, progress=False)
    assert result.test is not None
    assert len(looks.read_text().splitlines()) == 1
    assert before in (0, 1)
    autotune.resume(folder, progress=False)
    assert len(looks.read_text().splitlines()) == 1


def test_checkpoints_that_nobody_recorded_are_cleared_away(tmp_path: Path) -> None:
    folder = interrupted(tmp_path)
    checkpoints = folder / "checkpoints"
    (checkpoints / ".unfinished-1-ab").write_bytes(b"torn")
    stray = checkpoints / f"trial-00077-step-000003-{'0' * 32}.safetensors"
    stray.write_bytes(b"killed before it was recorded")
    result = autotune.resume(folder, progress=False)
    assert not stray.exists()
    assert not list(checkpoints.glob(".unfinished*"))
    assert result.best is not None


def test_a_damaged_record_goes_on_from_its_copy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = interrupted(tmp_path)
    whole = (folder / record.FILE).read_bytes()
    (folder / record.FILE).write_bytes(whole[: len(whole) // 2])
    result = autotune.resume(folder)
    assert "was damaged" in capsys.readouterr().err
    assert result.trials.units == 30
    assert check_replay(result.view) > 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_stops_the_driver_and_loses_nothing(small_disk: Path) -> None:
    with pytest.raises((StudyError, record.RecordError), match="disk") as caught:
        tune(small_disk)
    assert "Traceback" not in str(caught.value)
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    before = autotune.load("study", small_disk)
    assert not before.finished
    result = autotune.resume("study", folder=small_disk, progress=False)
    assert result.view.events[: len(before.events)] == before.events
    assert result.trials.units == 30
    assert not [event for event in result.view.events if isinstance(event, Failed)]
    assert check_replay(result.view) > 0
    assert check_repeats(result.view) >= 0


def test_what_was_excluded_may_have_been_left_out_as_well() -> None:
    own = [("schedule", "constant", "autotune-torch", "0")]
    schedules = Space({"schedule": Plugins("schedule", exclude=("norm_test",))})
    resolved = schedules.resolve(_Recorded(None, own))
    assert list(resolved.parameters["schedule"].options) == ["constant"]


def test_an_ended_study_goes_on_with_a_larger_budget_and_horizon(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From its checkpoints; what was recorded stays as it is."""
    before = tune(tmp_path, name="more", final={"candidates": 1, "seeds": 1, "share": 0.5})
    ended = {number: trial.last for number, trial in before.trials.all.items()}
    folder = ["--folder", str(tmp_path), "--study", "more"]
    assert main(["resume", *folder, "--budget", "epochs=60", "--horizon", "9", "--quiet"]) == 0
    after = autotune.load("more", folder=tmp_path)
    (said,) = [event for event in after.events if isinstance(event, Extended)]
    assert (said.budget.units, said.budget.evaluations, said.horizon) == (60, 6, 9)
    assert after.events[: len(before.view.events)] == before.view.events
    assert after.header == before.view.header
    assert (after.context.budget, after.context.horizon) == (said.budget, 9)
    assert 30 < after.trials.units <= 60
    again = {e.trial for e in after.events[len(before.view.events) :] if isinstance(e, Observed)}
    assert any(after.trials[number].last > 6 for number in again & set(ended))
    assert len(after.meta["earlier_winners"]) == 1
    assert after.result.test is not None
    assert check_replay(after) > 10
    assert check_repeats(after) == 0
    capsys.readouterr()
    assert main(["status", *folder]) == 0
    assert "of 60 epochs" in capsys.readouterr().out
    page = write_report(after, after.result.report).read_text()
    assert "looked at 2 times" in page


def test_what_cannot_be_is_refused_and_leaves_the_study_to_others(tmp_path: Path) -> None:
    done = tune(tmp_path, Quick(), name="less", budget={"epochs": 8}, final=False)
    count = len(done.view.events)
    for wrong, message in (
        ({"budget": {"steps": 90}}, "is in steps, but the task counts epochs"),
        ({"budget": {"epochs": 0}}, "expected a whole number above 0"),
        ({"budget": {"epochs": None}}, "expected at least one of epochs"),
        ({"horizon": 5}, "the study's is 6 already"),
        ({"limits": {"checkpoint_gb": 0}}, "checkpoint_gb is 0; expected a number above 0"),
        ({"executor": {"threads": 1}}, r"executor: is {'threads': 1}; expected a name, or a"),
    ):
        with pytest.raises(autotune.StudyError, match=message):
            autotune.resume("less", Quick(), folder=tmp_path, progress=False, **wrong)  # type: ignore[arg-type]
    same = autotune.resume("less", Quick(), folder=tmp_path, budget={"epochs": 8}, progress=False)
    assert len(same.view.events) == count


def test_options_of_the_same_executor_stay_unless_given_anew() -> None:
    described = {"name": "ray", "num_cpus": 0.5, "address": "here:1"}
    assert other_executor(None, described) == described
    assert other_executor("ray", described) == described
    moved = other_executor({"name": "ray", "address": "there:2"}, described)
    assert moved == {"name": "ray", "num_cpus": 0.5, "address": "there:2"}
    assert other_executor("local", described) == {"name": "local"}

import dataclasses
import errno
import gc
import weakref
from pathlib import Path

import pytest
import torch
from execute_tasks import SmallRun, SmallTask, small
from jobs import evaluate, go_on, train, without_times

from autotune.execute import worker
from autotune.execute.store import CheckpointStore, StoreFull
from autotune.execute.worker import JobRunner, cause_of, resolve_device
from autotune.plugins.execution import Broken, Done, Unit
from autotune.train.task import NotFinite, TaskError


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    store = CheckpointStore(tmp_path / "checkpoints")
    store.prepare()
    return store


@pytest.fixture
def runner(store: CheckpointStore, tmp_path: Path) -> JobRunner:
    return JobRunner(small, store, "cpu", tmp_path, "loss")


def run(runner: JobRunner, job) -> list:
    return list(runner.run(job))


@pytest.mark.parametrize(
    ("bad", "cause", "message"),
    [
        ("raise", "error", "ValueError: the model is broken"),
        ("not_finite", "not_finite", "loss is nan"),
        ("out_of_memory", "out_of_memory", "CUDA out of memory. Tried to allocate 20 GiB"),
        ("allocate", "out_of_memory", "allocate"),
        ("exit", "error", "SystemExit: 3"),
        ("disk", "disk", "No space left on device"),
    ],
)
def test_what_goes_wrong_ends_one_segment_with_its_cause(
    runner: JobRunner, bad: str, cause: str, message: str
) -> None:
    *units, broken = run(runner, train(0, 4, bad=bad, at=3))
    assert [type(unit) for unit in units] == [Unit, Unit]
    assert isinstance(broken, Broken)
    assert (broken.cause, broken.step) == (cause, 2)
    assert message in broken.message
    assert "\n" not in broken.message
    assert "misbehave" in broken.traceback
    assert isinstance(run(runner, train(1, 2))[-1], Done), "the worker goes on"


def test_a_failing_factory_is_an_error_at_the_start(runner: JobRunner) -> None:
    (broken,) = run(runner, train(0, 4, bad="open"))
    assert (broken.cause, broken.step) == ("error", 0)
    assert broken.message == "ValueError: no such architecture"


@pytest.mark.parametrize(
    ("metrics", "cause", "message"),
    [
        ({"accuracy": 1.0}, "error", "reported accuracy, but the objective is 'loss'"),
        ({}, "error", "reported no metric"),
        ({"loss": float("nan")}, "not_finite", "loss is nan at step 1"),
        ({"loss": float("-inf")}, "not_finite", "loss is -inf"),
        ({"loss": "low"}, "error", "metric 'loss' of train is 'low', not a number"),
        (None, "error", "train returned NoneType, not a mapping"),
    ],
)
def test_metrics_that_cannot_be_used_are_said(
    runner: JobRunner, metrics, cause: str, message: str
) -> None:
    (broken,) = run(runner, train(0, 2, bad="metrics", metrics=metrics))
    assert broken.cause == cause
    assert message in broken.message


def test_only_the_objective_must_be_finite(runner: JobRunner) -> None:
    metrics = {"loss": 1.0, "perplexity": float("inf"), "count": torch.tensor(3)}
    unit, done = run(runner, train(0, 1, bad="metrics", metrics=metrics))
    assert unit.metrics == {"loss": 1.0, "perplexity": float("inf"), "count": 3.0}
    assert done.step == 1


def test_causes_are_found_behind_what_was_raised_from_them() -> None:
    def chained(cause: BaseException) -> BaseException:
        try:
            try:
                raise cause
            except BaseException as error:
                raise RuntimeError("while training") from error
        except RuntimeError as error:
            return error

    assert cause_of(chained(NotFinite("x"))) == "not_finite"
    assert cause_of(chained(MemoryError())) == "out_of_memory"
    assert cause_of(RuntimeError("CUDA error: out of memory")) == "out_of_memory"
    assert cause_of(chained(OSError(errno.EDQUOT, "quota"))) == "disk"
    assert cause_of(chained(KeyError("x"))) == "error"
    assert cause_of(OSError(errno.ENOENT, "no file")) == "error"


def test_a_full_disk_when_freezing_ends_the_segment(
    runner: JobRunner, store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> str:
        raise StoreFull("the disk under here is full")

    monkeypatch.setattr(store, "save", full)
    *_, broken = run(runner, train(0, 2))
    assert (broken.cause, broken.step, broken.message) == (
        "disk",
        2,
        "the disk under here is full",
    )


def test_a_state_that_cannot_be_kept_names_its_key(
    runner: JobRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SmallRun, "freeze", lambda self: {"a": {"sampler": object()}})
    *_, broken = run(runner, train(0, 1))
    assert broken.cause == "error"
    assert "checkpoint['state']['a']['sampler'] is a builtins.object" in broken.message


def test_a_damaged_or_foreign_checkpoint_is_not_trained_on(
    runner: JobRunner, store: CheckpointStore
) -> None:
    job = train(0, 2)
    done = run(runner, job)[-1]
    other = train(1, 2)
    other_done = run(runner, other)[-1]
    (broken,) = run(
        runner, dataclasses.replace(go_on(job, done, 4), checkpoint=other_done.checkpoint)
    )
    assert broken.cause == "checkpoint"
    assert "is of trial 1 at 2" in broken.message
    store.path(done.checkpoint).write_bytes(b"torn")
    (broken,) = run(runner, go_on(job, done, 4))
    assert (broken.cause, broken.step) == ("checkpoint", 2)
    assert "does not match the digest" in broken.message


def test_a_run_that_does_not_count_its_units_is_refused(
    runner: JobRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_unit = SmallRun.train

    def twice(self: SmallRun):
        train_unit(self)
        return train_unit(self)

    monkeypatch.setattr(SmallRun, "train", twice)
    (broken,) = run(runner, train(0, 2))
    assert broken.message == "the run stands at step 2 after one unit from 0"


def test_interrupt_freezes_after_the_unit(store: CheckpointStore, tmp_path: Path) -> None:
    asked: set[int] = set()
    runner = JobRunner(small, store, "cpu", tmp_path, "loss", asked.__contains__)
    job = train(0, 9)
    reports = runner.run(job)
    next(reports)
    asked.add(job.identifier)
    (done,) = reports
    assert done.step == 1
    (whole,) = [run(runner, train(0, 3))]
    rest = run(runner, go_on(job, done, 3))
    assert without_times(rest[:-1]) == without_times(whole[1:-1])


def test_a_thaw_elsewhere_is_marked_inexact(
    store: CheckpointStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = train(0, 1)
    done = run(JobRunner(small, store, "cpu", tmp_path), job)[-1]
    assert done.exact
    again = run(JobRunner(small, store, "cpu", tmp_path), go_on(job, done, 2))[-1]
    assert again.exact
    elsewhere = {**worker.environment("cpu"), "processor": "another"}
    monkeypatch.setattr(worker, "environment", lambda device: elsewhere)
    there = JobRunner(small, store, "cpu", tmp_path)
    assert not run(there, go_on(job, done, 2))[-1].exact
    assert not run(there, evaluate(job, done))[-1].exact


def test_warm_runs_are_not_opened_again_and_old_ones_are_let_go(
    store: CheckpointStore, tmp_path: Path
) -> None:
    opened: list[weakref.ref] = []

    class Counting(SmallTask):
        def open(self, configuration, context):
            run = super().open(configuration, context)
            opened.append(weakref.ref(run))
            return run

    runner = JobRunner(Counting(), store, "cpu", tmp_path)
    job = train(0, 1)
    done = run(runner, job)[-1]
    for to in (2, 3):
        done = run(runner, go_on(job, done, to))[-1]
    assert len(opened) == 1
    for shift in (0.0, 1.0, 2.0):
        run(runner, evaluate(job, done, shift=shift))
    assert len(opened) == 2, "one for all evaluations of a checkpoint"
    run(runner, train(1, 1))
    gc.collect()
    assert [reference() is not None for reference in opened] == [False, True, True]


def test_an_evaluation_that_does_not_fit_beside_the_warm_run_takes_its_place(
    store: CheckpointStore, tmp_path: Path
) -> None:
    class Tight(SmallTask):
        """Room for one run."""

        alive: weakref.ref = staticmethod(lambda: None)  # type: ignore[assignment]

        def open(self, configuration, context):
            if Tight.alive() is not None:
                raise torch.OutOfMemoryError("room for one")
            run = super().open(configuration, context)
            Tight.alive = weakref.ref(run)
            return run

    runner = JobRunner(Tight(), store, "cpu", tmp_path)
    job = train(0, 1)
    done = run(runner, job)[-1]
    assert isinstance(run(runner, evaluate(job, done))[-1], Done)


def test_cuda_is_only_used_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto", 0) == "cpu"
    with pytest.raises(TaskError, match="sees no CUDA device"):
        resolve_device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [resolve_device("auto", worker) for worker in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]

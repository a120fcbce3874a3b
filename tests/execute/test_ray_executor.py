"""One Ray cluster of this machine for the whole module: starting it takes seconds."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import execute_tasks
import pytest
import team_tasks
from jobs import context, evaluate, finish, go_on, train, without_times

from autotune.execute.local import Local
from autotune.execute.ray import Ray
from autotune.execute.ray_handle import Handle
from autotune.plugins import PluginError
from autotune.plugins.execution import Done, EvaluateJob, Oversize, TrainJob, Unit, WorkerLost
from autotune.train.task import TaskError

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def cluster():
    handler = signal.getsignal(signal.SIGTERM)
    first = Ray()
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        first.open(context(execute_tasks.small, Path(folder), workers=2))
        from ray._common.usage import usage_lib

        print(f"\nRay with two workers is up after {time.perf_counter() - begun:.1f} s")
        assert signal.getsignal(signal.SIGTERM) is handler
        assert not usage_lib.usage_stats_enabled()
        yield first
        session = Path(first._ray._private.worker._global_node.get_session_dir_path())
        assert not list(session.rglob("usage_stats.json"))
        first.close()
    assert not sys.modules["ray"].is_initialized(), "the cluster it started is stopped"


@pytest.fixture(scope="module")
def ray_workers(cluster: Ray, tmp_path_factory: pytest.TempPathFactory):
    """Another executor on the same cluster."""
    for worker in cluster._workers:
        worker.kill()
    executor = Ray()
    folder, share = tmp_path_factory.mktemp("study"), {"num_cpus": 0.5}
    url = f"local://{folder}/storage"
    executor.open(
        context(execute_tasks.small, folder, workers=2, options=share, checkpoint_url=url)
    )
    yield executor
    executor.close()
    assert cluster._ray.is_initialized(), "a cluster that it did not start goes on"


def test_a_cluster_that_is_not_there_is_said_at_once(tmp_path: Path) -> None:
    """Before the cluster of the other tests, which would be used instead, is up."""
    begun = time.monotonic()
    with pytest.raises(PluginError, match=r"no cluster at 127\.0\.0\.1:1: .*refused"):
        Ray().open(context(execute_tasks.small, tmp_path, options={"address": "127.0.0.1:1"}))
    assert time.monotonic() - begun < 30


def test_reports_are_those_of_local_workers(ray_workers: Ray, tmp_path: Path) -> None:
    local = Local()
    local.open(context(execute_tasks.small, tmp_path))
    try:
        told = []
        for executor in (ray_workers, local):
            starts = [train(0, 3), train(1, 4), train(2, 5, bad="raise", at=4)]
            first = finish(executor, *starts)
            again = [
                go_on(job, reports[-1], 6)
                for job, reports in zip(starts, first, strict=True)
                if isinstance(reports[-1], Done)
            ]
            told.append([without_times(reports) for reports in first + finish(executor, *again)])
        assert told[0] == told[1]
    finally:
        local.close()


def test_units_stream_and_an_interrupt_freezes(ray_workers: Ray) -> None:
    job = train(0, 18, bad="sleep", at=2, seconds=1.5)
    ray_workers.submit(job)
    first = ray_workers.poll(20.0)
    assert [type(report) for report in first] == [Unit]
    time.sleep(0.3)  # into the second unit
    ray_workers.interrupt()
    rest = ray_workers.poll(20.0)
    while not isinstance(rest[-1], Done):
        rest += ray_workers.poll(20.0)
    assert [(type(report), report.step) for report in rest] == [(Unit, 2), (Done, 2)]
    ((*_, done),) = finish(ray_workers, go_on(job, rest[-1], 3))
    assert (done.step, done.exact) == (3, True)


def test_a_trial_goes_on_where_it_is_warm(ray_workers: Ray) -> None:
    jobs = [train(0, 1), train(1, 1)]
    for _ in range(4):
        for job in jobs:
            ray_workers.submit(job)
        at = {worker.job.trial: worker.number for worker in ray_workers._workers}
        ends = {}
        while len(ends) < 2:
            ends |= {r.identifier: r for r in ray_workers.poll(5.0) if isinstance(r, Done)}
        # in the other order, so that whoever takes the first free worker changes places
        jobs = [go_on(job, ends[job.identifier], ends[job.identifier].step + 1) for job in jobs]
        jobs.reverse()
        assert at == {0: at[0], 1: 1 - at[0]}
        assert [w.holds[type(jobs[0])][0] for w in ray_workers._workers] == sorted(at, key=at.get)


def test_evaluations_run_beside_training(ray_workers: Ray) -> None:
    job = train(0, 2)
    ((*_, done),) = finish(ray_workers, job)
    ((stream,),) = finish(ray_workers, evaluate(job, done, shift=1.0))
    assert stream.report["shifted"] == pytest.approx(stream.select["shifted"] + 1)


def test_a_killed_actor_is_lost_and_replaced(ray_workers: Ray, tmp_path: Path) -> None:
    job = train(0, 4, bad="kill_once", at=3, flag=str(tmp_path / "flag"))
    ((*units, lost),) = finish(ray_workers, job)
    assert [unit.step for unit in units] == [1, 2]
    assert isinstance(lost, WorkerLost)
    assert "died" in lost.message
    (uninterrupted,) = finish(ray_workers, train(0, 4))
    again = train(0, 4, bad="kill_once", at=3, flag=str(tmp_path / "flag"))
    (reports,) = finish(ray_workers, again)
    assert without_times(reports) == without_times(uninterrupted)
    end = time.monotonic() + 60
    while ray_workers.free < 2 and time.monotonic() < end:
        ray_workers.poll(0.5)
    assert ray_workers.free == 2


def test_prints_go_to_the_studys_logs(ray_workers: Ray) -> None:
    finish(ray_workers, train(0, 2, bad="print"))
    logs = Path(ray_workers._context.folder) / "logs"
    assert "hello from the task" in "".join(p.read_text() for p in logs.iterdir())


def test_workers_without_the_folder_hand_their_checkpoints_over(
    ray_workers: Ray, tmp_path: Path
) -> None:
    executor = Ray()
    options = {"shared_folder": False, "num_cpus": 0.0}
    executor.open(context(execute_tasks.small, tmp_path, options=options))
    try:
        (uninterrupted,) = finish(executor, train(0, 4))
        job = train(0, 2)
        ((*first, done),) = finish(executor, job)
        names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
        assert done.checkpoint in names
        finish(executor, train(1, 1))
        ((*rest, last),) = finish(executor, go_on(job, done, 4))
        assert without_times([*first, *rest]) == without_times(uninterrupted[:-1])
        assert last.exact
        ((stream,),) = finish(executor, evaluate(job, done))
        assert "shifted" in stream.select
        # an evaluation may have cost the worker its warm run
        assert executor._workers[0].holds.keys() == {EvaluateJob}
        # weights made on a node come to the study's folder, and from there to other workers
        made = train(5, 1, bad="pretrain", at=1)
        finish(executor, made)
        kept = tmp_path / "pretrained" / "base.safetensors"
        assert kept.read_bytes() == b"made once"
        # a worker that made others by the same name meanwhile is given up, its job tried again
        base = "pretrained/base.safetensors"
        assert executor._handover.keep({base: b"made once"}, set()) is None
        assert executor._handover.keep({base: b"made twice"}, set()) == base
        hanging = train(6, 3, bad="sleep", seconds=60)
        executor.submit(hanging)
        assert [unit.step for unit in executor.poll(60.0)] == [1]
        process = executor._workers[0].process
        os.kill(process, signal.SIGSTOP)  # it does not hear that it is to end
        executor.revoke(hanging.identifier)
        assert not alive(process)
        # a checkpoint waits for room; the worker that hung is replaced
        large = dataclasses.replace(train(7, 1), room=100)
        ((*_, oversize, done),) = finish(executor, large)
        assert isinstance(oversize, Oversize)
        assert isinstance(done, Done)
        assert done.size == oversize.size
    finally:
        executor.close()


def alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def team_job(trial: int, to: int, **bad: Any) -> TrainJob:
    job = train(trial, to)
    optimizer = {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9}
    configuration = {"optimizer": optimizer, "batch_size": 8, "architecture": bad}
    return dataclasses.replace(job, configuration=configuration)


def test_a_team_trains_one_trial(
    ray_workers: Ray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one configuration, as one worker would; and falls and rises as one."""
    monkeypatch.setattr("autotune.execute.ray._GRACE", 3.0)
    team, alone = Ray(), Local()
    options = {"team": 2, "num_cpus": 0.25, "threads": 1}
    team.open(context(team_tasks.task(), tmp_path / "team", options=options))
    alone.open(context(team_tasks.task(), tmp_path / "alone"))
    try:
        (whole,), (by_one,) = finish(team, team_job(0, 4)), finish(alone, team_job(0, 4))
        for ours, other in zip(whole[:-1], by_one[:-1], strict=True):
            assert ours.metrics == pytest.approx(other.metrics, rel=1e-4)
        job = team_job(0, 2)
        ((*first, done),) = finish(team, job)
        finish(team, team_job(1, 1))  # so that the trial is thawed
        ((*rest, last),) = finish(team, go_on(job, done, 3))
        ((*warm, last),) = finish(team, go_on(job, last, 4))
        assert without_times([*first[:2], *rest, *warm]) == without_times(whole[:-1])
        assert last.exact
        # the first waits for the second, which is at fault
        ((broken,),) = finish(team, team_job(2, 2, bad="raise"))
        assert (broken.cause, broken.message) == ("error", "spoilt by the second")
        ((lost,),) = finish(team, team_job(3, 2, bad="kill"))
        assert isinstance(lost, WorkerLost)
        places = ray_workers._ray.util.placement_group_table().values()
        assert [place["state"] for place in places].count("CREATED") == 1
    finally:
        team.close()
        alone.close()


@pytest.mark.parametrize(
    ("option", "wrong", "expected"),
    [
        ("num_cpus", "two", "a number from 0 on"),
        ("num_gpus", True, "a number from 0 on"),
        ("address", 6379, "text such as 'HOST:PORT'"),
        ("shared_folder", "no", "true or false"),
        ("start_seconds", 0, "seconds above 0"),
    ],
)
def test_an_option_of_the_wrong_kind_is_said(
    tmp_path: Path, option: str, wrong: Any, expected: str
) -> None:
    with pytest.raises(PluginError, match=f"{option} is {wrong!r}; expected {expected}"):
        Ray().open(context(execute_tasks.small, tmp_path, options={option: wrong}))


def test_mistakes_are_said_when_it_opens(ray_workers: Ray, tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="no option 'cpus'"):
        Ray().open(context(execute_tasks.small, tmp_path, options={"cpus": 2}))
    with pytest.raises(PluginError, match=r"need 2000 CPUs; the cluster has"):
        Ray().open(context(execute_tasks.small, tmp_path, options={"num_cpus": 2000}))
    with pytest.raises(PluginError, match="min_workers is 3; expected a whole number from 1"):
        Ray().open(context(execute_tasks.small, tmp_path, options={"min_workers": 3}))
    with pytest.raises(TaskError, match="no_such_thing"):
        Ray().open(context("execute_tasks:no_such_thing", tmp_path, options={"num_cpus": 0.0}))


def test_overhead_of_a_segment(ray_workers: Ray) -> None:
    jobs = [train(trial, 1) for trial in range(3)]
    ends = [reports[-1] for reports in finish(ray_workers, *jobs)]
    begun, segments = time.perf_counter(), 0
    for _ in range(10):
        jobs = [go_on(job, end, end.step + 1) for job, end in zip(jobs, ends, strict=True)]
        ends = [reports[-1] for reports in finish(ray_workers, *jobs)]
        segments += 3
    overhead = (time.perf_counter() - begun) / segments * 1e3
    print(f"\nRay: {overhead:.1f} ms per one-unit segment with a thaw, two workers")
    assert overhead < 100


def test_nodes_come_and_go_under_it(tmp_path: Path) -> None:
    """It joins a cluster with room for one worker, uses a node that comes later, outlives that
    node, and leaves the cluster running. The data lies once on each node."""
    script = Path(__file__).with_name("changing_cluster.py")
    ended = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, timeout=280
    )
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout.splitlines()[-1]) == {
        "begun with": 1,
        "processes": 3,
        "shared": True,
        "copies": 2,
        "megabytes": 67,
        "lost": 2,
        "completed": 8,
        "exact": True,
        "left running": True,
    }


def test_a_worker_that_does_not_come_up_is_tried_again_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While others work; a node that joined may lack what they have."""
    executor, started = Ray(), []
    monkeypatch.setattr(executor, "_start", started.append)
    monkeypatch.setattr("autotune.execute.ray._PAUSE", 0.0)

    def worker(number: int, ready: bool) -> Any:
        rest = {"job": None, "overdue": float("inf"), "kill": lambda: None, "node_left": False}
        return SimpleNamespace(number=number, ready=ready, deadline=0.0, **rest)

    works = worker(0, ready=True)
    executor._begun, executor._workers = True, [works]
    for expected in ([1], [1, 1], [1, 1]):
        executor._workers.append(worker(1, ready=False))
        executor._bury(executor._workers[-1], "no such module")
        assert started == expected
    executor._workers.append(worker(2, ready=False))
    executor._check_deadlines()  # a worker that waits for a node may do so for ever
    assert started == [1, 1, 1]
    works.ready = False
    executor._request, executor._ray = {}, SimpleNamespace(available_resources=dict)
    with pytest.raises(PluginError, match="worker 0 did not come up in time"):
        executor._check_deadlines()
    executor._workers = [worker(1, ready=False)]
    with pytest.raises(PluginError, match="workers do not come up: no such module"):
        executor._bury(executor._workers[-1], "no such module")


def test_workers_that_die_with_their_nodes_are_started_again_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However often before they are ready: that says nothing about whether they can come up."""
    executor, started = Ray(), []
    monkeypatch.setattr(executor, "_start", started.append)
    worker = SimpleNamespace(number=0, ready=False, job=None, kill=lambda: None, node_left=True)
    for _ in range(10):
        executor._workers = [worker]
        executor._bury(worker, "its node has died")
    assert started == [0] * 10


def test_a_worker_knows_whether_a_node_has_left() -> None:
    nodes = [{"NodeID": "head", "Alive": True}, {"NodeID": "other", "Alive": True}]
    cluster = MagicMock()
    cluster.nodes.side_effect = lambda: nodes
    handle = Handle(cluster, 0, {"num_cpus": 1.0, "num_gpus": 0.0}, team=1)
    handle.open(1.0)
    nodes.append({"NodeID": "third", "Alive": True})
    assert not handle.node_left
    nodes[1] = {"NodeID": "other", "Alive": False}
    assert handle.node_left

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import execute_tasks
import psutil
import pytest
from jobs import context, evaluate, finish, go_on, train, without_times

from autotune.execute.local import Local
from autotune.plugins import PluginError
from autotune.plugins.execution import Broken, Done, Unit, WorkerLost
from autotune.train.task import TaskError


@pytest.fixture
def local(tmp_path: Path):
    executor = Local()
    executor.open(context(execute_tasks.small, tmp_path))
    yield executor
    executor.close()


def test_units_arrive_while_the_segment_runs(local: Local) -> None:
    job = train(0, 3, bad="sleep", at=3, seconds=1.0)
    local.submit(job)
    assert local.free == 0
    seen = []
    while len(seen) < 2:
        seen += local.poll(5.0)
    assert [report.step for report in seen] == [1, 2]
    assert all(isinstance(report, Unit) for report in seen)
    assert local.poll(0.0) == []
    rest = local.poll(5.0) + local.poll(1.0)
    assert [type(report) for report in rest] == [Unit, Done], rest
    assert local.free == 1


def test_a_frozen_trial_goes_on_as_if_it_had_not_been(local: Local, tmp_path: Path) -> None:
    whole = train(0, 6)
    (uninterrupted,) = finish(local, whole)
    job = train(0, 2)
    ((*first, done),) = finish(local, job)
    finish(local, train(1, 2))  # another trial takes the worker
    ((*rest, last),) = finish(local, go_on(job, done, 4))
    # and on from the warm run
    ((*end, _),) = finish(local, go_on(job, last, 6))
    assert without_times([*first, *rest, *end]) == without_times(uninterrupted[:-1])
    assert last.exact
    assert done.static == {"parameters": 9.0}
    assert last.static == {}


def test_an_evaluation_leaves_the_warm_run_alone(local: Local) -> None:
    (uninterrupted,) = finish(local, train(0, 4))
    job = train(0, 2)
    ((*first, done),) = finish(local, job)
    ((stream,),) = finish(local, evaluate(job, done, shift=2.0))
    assert stream.report["shifted"] == pytest.approx(stream.select["shifted"] + 1)
    ((alone,),) = finish(local, evaluate(job, done, "alone"))
    assert alone.select == alone.report == {"latency_ms": 1.5}
    assert alone.spread == {"latency_ms": 0.25}
    ((test,),) = finish(local, evaluate(job, done, "test"))
    assert set(test.report) == {"test_loss"}
    ((*rest, _),) = finish(local, go_on(job, done, 4))
    assert without_times([*first, *rest]) == without_times(uninterrupted[:-1])

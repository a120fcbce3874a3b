import dataclasses
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
from autotune.plugins.execution import Broken, Done, Oversize, Unit, WorkerLost
from autotune.train.task import TaskError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="module")
def local(folder: Path):
    executor = Local()
    executor.open(context(execute_tasks.small, folder))
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


def test_a_frozen_trial_goes_on_as_if_it_had_not_been(local: Local) -> None:
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


def test_what_is_held_warm_decides_the_worker(tmp_path: Path) -> None:
    executor = Local()
    executor.open(context(execute_tasks.small, tmp_path, workers=2))
    try:
        jobs = [train(trial, 1) for trial in range(2)]
        ends = [reports[-1] for reports in finish(executor, *jobs)]
        holders = {worker.holds[type(jobs[0])]: worker for worker in executor._workers}
        assert set(holders) == {0, 1}
        for trial in (1, 0, 0, 1):
            job = go_on(jobs[trial], ends[trial], ends[trial].step + 1)
            executor.submit(job)
            assert holders[trial].job is job
            while not isinstance(last := executor.poll(5.0)[-1], Done):
                pass
            ends[trial] = last
    finally:
        executor.close()


def test_an_interrupted_segment_freezes_after_its_unit(local: Local) -> None:
    job = train(0, 20, bad="sleep", at=2, seconds=1.0)
    local.submit(job)
    (first,) = local.poll(10.0)
    time.sleep(0.3)  # into the second unit
    local.interrupt()
    rest = local.poll(10.0)
    while not isinstance(rest[-1], Done):
        rest += local.poll(10.0)
    assert [(type(report), report.step) for report in [first, *rest]] == [
        (Unit, 1),
        (Unit, 2),
        (Done, 2),
    ]
    ((*_, done),) = finish(local, go_on(job, rest[-1], 5))
    assert done.step == 5, "an interrupt is of the job it was meant for"


@pytest.mark.parametrize("mark", ["raise", "not_finite", "out_of_memory", "disk", "exit"])
def test_a_bad_configuration_ends_its_segment_and_no_more(local: Local, mark: str) -> None:
    ((unit, broken), (*_, done)) = finish(local, train(0, 3, bad=mark), train(1, 2))
    assert isinstance(unit, Unit)
    assert isinstance(broken, Broken)
    assert broken.cause == {"raise": "error", "exit": "error"}.get(mark, mark)
    assert isinstance(done, Done)


def test_a_full_disk_breaks_the_segment_not_the_worker(tmp_path: Path) -> None:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)],
        capture_output=True,
        text=True,
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs: {mounted.stderr.strip()}")
    executor = Local()
    try:
        executor.open(context(execute_tasks.small, tmp_path))
        ballast = tmp_path / "ballast"
        try:
            ballast.write_bytes(bytes(1 << 21))
        except OSError:
            assert ballast.stat().st_size > 1 << 19
        job = train(0, 2)
        ((*units, broken),) = finish(executor, job)
        assert len(units) == 2
        assert (broken.cause, broken.step) == ("disk", 2)
        assert "is full" in broken.message
        assert list((tmp_path / "checkpoints").iterdir()) == []
        ballast.unlink()
        ((*_, done),) = finish(executor, job)
        assert done.step == 2
    finally:
        executor.close()
        subprocess.run(["umount", str(tmp_path)], check=True)


def alive(process: int) -> bool:
    return psutil.pid_exists(process) and psutil.Process(process).status() != "zombie"


def test_a_worker_killed_in_a_segment_is_lost_and_replaced(local: Local) -> None:
    job = train(0, 9, bad="sleep", at=3, seconds=60)
    local.submit(job)
    units = []
    while len(units) < 2:
        units += local.poll(10.0)
    (killed,) = local.processes
    os.kill(killed, signal.SIGKILL)
    begun = time.monotonic()
    (lost,) = local.poll(10.0)
    assert time.monotonic() - begun < 5
    assert isinstance(lost, WorkerLost)
    assert lost.identifier == job.identifier
    assert "was killed by SIGKILL" in lost.message
    assert "worker-0.log" in lost.message
    assert local.free == 0, "its replacement is not up yet"
    (uninterrupted,) = finish(local, train(1, 2))
    assert isinstance(uninterrupted[-1], Done)
    assert local.processes != [killed]
    assert not alive(killed)


def test_a_worker_that_dies_with_children_is_noticed_and_they_end_too(local: Local) -> None:
    (process,) = local.processes
    begun = time.monotonic()
    ((_, lost),) = finish(local, train(0, 3, bad="fork_and_kill"))
    assert time.monotonic() - begun < 20
    assert isinstance(lost, WorkerLost)
    end = time.monotonic() + 5
    while group(process) and time.monotonic() < end:
        time.sleep(0.05)
    assert not group(process)


def group(leader: int) -> list[int]:
    """Living processes of a process group."""
    members = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == leader and process.status() != "zombie":
                members.append(process.pid)
        except (ProcessLookupError, psutil.NoSuchProcess):
            pass
    return members


def await_worker(local: Local) -> None:
    """The test before may have had one replaced, which takes its time to come up."""
    end = time.monotonic() + 60
    while not local.free:
        assert time.monotonic() < end
        local.poll(1.0)


def test_a_revoked_job_is_heard_of_no_more(local: Local) -> None:
    hanging = train(0, 4, bad="sleep", at=3, seconds=60)
    await_worker(local)
    called = local.submit(hanging)
    (process,) = local.processes
    assert called == f"worker 0 (process {process})"
    units = 0
    while units < 2:
        units += len(local.poll(5.0))
    local.revoke(hanging.identifier)
    assert not group(process)
    assert local.free == 0, "its successor is still coming up"
    assert local.poll(60.0) == []
    ((*_, done),) = finish(local, train(1, 2))
    assert isinstance(done, Done), "its worker was replaced"


def checkpoints(folder: Path) -> set[str]:
    """Names of the whole ones: what killed workers left unfinished is swept away at any time."""
    return {path.name for path in (folder / "checkpoints").glob("trial-*")}


def test_a_checkpoint_larger_than_its_room_waits_for_more(local: Local, folder: Path) -> None:
    job = dataclasses.replace(train(0, 2), room=100)
    await_worker(local)
    local.submit(job)
    before = checkpoints(folder)
    reports = []
    while not any(isinstance(report, Oversize) for report in reports):
        reports += local.poll(5.0)
    oversize = reports[-1]
    assert (oversize.step, oversize.size > 100) == (2, True)
    assert checkpoints(folder) == before
    local.grant(job.identifier, oversize.size)
    (done,) = local.poll(30.0)
    assert isinstance(done, Done)
    assert done.size == oversize.size
    assert done.size == (folder / "checkpoints" / done.checkpoint).stat().st_size


def test_a_worker_killed_while_idle_is_replaced_without_a_word(local: Local) -> None:
    (killed,) = local.processes
    os.kill(killed, signal.SIGKILL)
    assert gone([killed])
    time.sleep(0.2)  # its threads end after it
    ((*_, done),) = finish(local, train(0, 1))
    assert isinstance(done, Done)


def test_a_crash_says_where_the_output_is(local: Local, folder: Path) -> None:
    ((unit, lost),) = finish(local, train(0, 3, bad="kill"))
    assert isinstance(unit, Unit)
    assert str(folder / "logs" / "worker-0.log") in lost.message


def test_prints_of_the_task_go_to_the_log(local: Local, folder: Path, capfd) -> None:
    finish(local, train(0, 2, bad="print"))
    assert "hello from the task" in (folder / "logs" / "worker-0.log").read_text()
    assert "hello" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("task", "error", "message"),
    [
        ("execute_tasks:smal", TaskError, "did you mean 'small'"),
        ("os:abort", TaskError, "is no task"),
        ("no_such_module_here:task", TaskError, "there is no module"),
        ("{folder}/dying.py:task", PluginError, "do not come up: worker 0 .* exit code 7"),
        ("{folder}/broken.py:task", TaskError, r"ZeroDivisionError.*worker-0\.log"),
    ],
)
def test_a_task_that_cannot_be_imported_is_said_once_when_it_opens(
    tmp_path: Path, task: str, error: type[Exception], message: str
) -> None:
    (tmp_path / "dying.py").write_text("import os; os._exit(7)")
    (tmp_path / "broken.py").write_text("1 / 0")
    executor = Local()
    with pytest.raises(error, match=message):
        executor.open(context(task.format(folder=tmp_path), tmp_path))
    assert executor.processes == []


def test_what_cannot_be_sent_or_set_is_said(tmp_path: Path) -> None:
    holding = execute_tasks.SmallTask()
    holding.file = (tmp_path / "open").open("w")
    with holding.file, pytest.raises(TaskError, match="cannot be sent to workers"):
        Local().open(context(holding, tmp_path))
    with pytest.raises(TaskError, match="is no task"):
        Local().open(context({"model": None}, tmp_path))
    with pytest.raises(PluginError, match="no option 'gpus'; it has threads"):
        Local().open(context(execute_tasks.small, tmp_path, options={"gpus": 1}))
    with pytest.raises(TaskError, match="sees no CUDA device"):
        Local().open(context(execute_tasks.small, tmp_path, device="cuda"))


def test_a_missing_plugin_is_said_when_it_opens(tmp_path: Path) -> None:
    wanted = dataclasses.replace(
        context(execute_tasks.small, tmp_path),
        plugins=[("optimizer", "adamw", "autotune-torch", "99.9")],
    )
    with pytest.raises(PluginError, match=r"99\.9"):
        Local().open(wanted)


def test_threads_are_shared_out(tmp_path: Path) -> None:
    from autotune.execute.environment import available_cores, threads_for

    cores = available_cores()
    assert threads_for(1) == cores
    assert threads_for(cores) == threads_for(10 * cores) == 1
    executor = Local()
    executor.open(context(execute_tasks.small, tmp_path, options={"threads": 1}))
    try:
        environ = psutil.Process(executor.processes[0]).environ()
        assert environ["OMP_NUM_THREADS"] == environ["MKL_NUM_THREADS"] == "1"
    finally:
        executor.close()


SCRIPT = """
import sys, os
from pathlib import Path
sys.path[:0] = {path!r}
from autotune.execute.local import Local
from jobs import context, train
from execute_tasks import SmallTask

rate = 3
class Mine(SmallTask):  # defined in the script itself, and a closure of it
    def open(self, configuration, context):
        return super().open({{**configuration, "rate": configuration["rate"] * rate}}, context)

executor = Local()
executor.open(context(Mine(), Path({folder!r}), workers=2))
executor.submit(train(0, 9, bad="sleep", at=2, seconds=100))
print(executor.poll(60.0), executor.processes, flush=True)
{then}
"""


def start(tmp_path: Path, then: str) -> tuple[subprocess.Popen, list[int]]:
    script = tmp_path / "script.py"
    path = [str(Path(__file__).parent)]
    script.write_text(
        textwrap.dedent(SCRIPT).format(path=path, folder=str(tmp_path / "study"), then=then)
    )
    (tmp_path / "study").mkdir()
    driver = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert driver.stdout is not None
    line = driver.stdout.readline()
    assert "Unit" in line
    workers = [int(number) for number in line.rpartition("[")[2].strip(" ]\n").split(",")]
    assert all(alive(worker) for worker in workers)
    return driver, workers


def gone(workers: list[int], seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while any(alive(worker) for worker in workers) and time.monotonic() < end:
        time.sleep(0.05)
    return not any(alive(worker) for worker in workers)


def test_no_worker_outlives_a_killed_driver(tmp_path: Path) -> None:
    driver, workers = start(tmp_path, "import time; time.sleep(100)")
    driver.kill()
    driver.wait()
    assert gone(workers)


def test_no_worker_outlives_a_killed_driver_whose_child_keeps_the_socket(tmp_path: Path) -> None:
    driver, workers = start(
        tmp_path,
        """
import time
if os.fork():
    print("forked", flush=True)
time.sleep(100)
""",
    )
    assert driver.stdout is not None
    assert driver.stdout.readline() == "forked\n"
    driver.kill()
    driver.wait()
    try:
        assert gone(workers)
    finally:
        os.killpg(driver.pid, signal.SIGKILL)


def test_a_driver_that_just_ends_takes_its_workers_along(tmp_path: Path) -> None:
    driver, workers = start(tmp_path, "")
    assert driver.wait(20) == 0
    assert gone(workers)


def test_ctrl_c_reaches_only_the_driver(tmp_path: Path) -> None:
    driver, workers = start(
        tmp_path,
        """
try:
    import time
    while True:
        time.sleep(0.1)  # in short: a signal that comes just before a sleep does not end it
except KeyboardInterrupt:
    print(executor.processes, executor.poll(1.0), flush=True)
    executor.close()
""",
    )
    time.sleep(1.0)  # until the driver, which has just spoken, is in its loop
    os.killpg(driver.pid, signal.SIGINT)  # as a terminal does
    assert driver.stdout is not None
    assert driver.stdout.readline().strip() == f"{workers} []", "no worker was lost"
    assert driver.wait(20) == 0
    assert gone(workers)


def test_close_is_idempotent_and_kills_what_runs(tmp_path: Path) -> None:
    executor = Local()
    executor.open(context(execute_tasks.small, tmp_path, workers=2))
    executor.submit(train(0, 3, bad="sleep", at=1, seconds=100))
    workers = executor.processes
    time.sleep(0.3)
    begun = time.monotonic()
    executor.close()
    executor.close()
    assert time.monotonic() - begun < 6
    assert gone(workers, 0.5)


def test_overhead_of_a_segment(local: Local) -> None:
    jobs = [train(trial, 1) for trial in range(3)]
    ends = [reports[-1] for reports in finish(local, *jobs)]
    for kind, trials in (("with a thaw", 3), ("warm", 1)):
        jobs, ends = jobs[-trials:], ends[-trials:]
        begun, segments = time.perf_counter(), 0
        while segments < 18:
            jobs = [go_on(job, end, end.step + 1) for job, end in zip(jobs, ends, strict=True)]
            ends = [reports[-1] for reports in finish(local, *jobs)]
            if ends[0].step >= 15:
                jobs = [train(job.trial, 1) for job in jobs]
                ends = [reports[-1] for reports in finish(local, *jobs)]
            segments += trials
        overhead = (time.perf_counter() - begun) / segments * 1e3
        print(f"\nlocal: {overhead:.1f} ms per one-unit segment {kind}")
        assert overhead < 50

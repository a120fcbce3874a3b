"""Workers as Ray actors, on this machine or on a cluster.

Resources belong to the actors and trials move between them, so a thaw costs a method call, not
a new process. Reports stream back through a generator while the segment runs.
"""

from __future__ import annotations

import logging
import math
import secrets
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

from autotune.execute.environment import threads_for
from autotune.execute.handover import Handover
from autotune.execute.messages import from_plain, to_plain
from autotune.execute.opening import address_or_parcel, check_options, opening, refusal
from autotune.execute.pool import Pool
from autotune.execute.ray_cluster import connect, import_ray, share_of_actor
from autotune.execute.ray_handle import Handle
from autotune.execute.remote_store import open_store
from autotune.execute.store import StoreError
from autotune.plugins import PluginError
from autotune.plugins.execution import (
    Broken,
    Done,
    EvaluateJob,
    ExecutionContext,
    Job,
    Report,
    TrainJob,
    WorkerLost,
)

_STARTS = 3
"""A worker that dies this often before it is ready, and no node with it, will not come up."""

_PAUSE = 30.0
"""Seconds before such a worker is tried again, while others work."""

_GRACE = 30.0
"""Seconds in which the others of a team must end once one has."""

_log = logging.getLogger(__name__)


class Ray(Pool[Handle]):
    """Segments in Ray actors.

    Options: ``address`` (of a running cluster; default: one is started on this machine and
    stopped at the end), ``num_cpus`` and ``num_gpus`` (of each worker; fractions share a
    device), ``team`` (actors of each worker, which train a trial together, each on its part of
    every batch and with resources of its own; default 1), ``min_workers`` (the study begins when
    so many are up; the others join when nodes with room for them do; default: all), ``threads``
    (of torch in each actor), ``shared_folder`` (whether workers see the study's folder; default:
    found out), ``start_seconds`` (how long the cluster may be without any worker that is up;
    default 300).

    A worker whose node leaves is started again where there is room, or waits for a node.
    """

    name: ClassVar[str] = "ray"
    summary: ClassVar[str] = "Ray actors, on this machine or a cluster"
    reference: ClassVar[str] = "Moritz et al., Ray, OSDI 2018; https://docs.ray.io"
    option_names: ClassVar[tuple[str, ...]] = (
        "address",
        "num_cpus",
        "num_gpus",
        "team",
        "min_workers",
        "threads",
        "shared_folder",
        "start_seconds",
    )

    def __init__(self, configuration: Mapping[str, Any] | None = None) -> None:
        super().__init__(configuration)
        self._started = False
        self._begun = False
        self._failed_starts: dict[int, int] = {}
        self._later: dict[int, float] = {}
        self._jobs = 0
        self._marker: Path | None = None

    def open(self, context: ExecutionContext) -> None:
        """Connect, start the actors, and wait until each has imported the task.

        Raises:
            TaskError: the task cannot be sent, or cannot be imported on a worker.
            PluginError: no cluster, no room in it, or a worker lacks a plugin.
        """
        check_options(type(self), context)
        at_once = _count(context, "min_workers", context.workers, context.workers)
        self._team = _count(context, "team", 1)
        self._context = context
        store = open_store(Path(context.folder), context.checkpoint_url)
        store.prepare()
        # checkpoints that every worker reaches are not handed over
        handed = None if context.checkpoint_url else store
        self._handover = Handover(Path(context.folder), handed)
        (Path(context.folder) / "logs").mkdir(parents=True, exist_ok=True)
        self._ray = import_ray()
        self._address, task = address_or_parcel(context.task, True, context.loaded)
        try:
            self._started = connect(self._ray, context.options.get("address"))
            self._request = share_of_actor(self._ray, context, at_once * self._team)
            whole = max(1, int(self._request["num_cpus"]))
            own = threads_for(context.workers * self._team) if self._started else whole
            self._threads = int(context.options.get("threads", own))
            # one copy on each node that has workers, which share it
            self._task_reference = self._ray.put(task)
            self._mark()
            for number in range(context.workers):
                self._start(number)
            while sum(worker.ready for worker in self._workers) < at_once:
                self._collect(1.0)
            self._begun = True
        except BaseException:
            self.close()
            raise

    @property
    def free(self) -> int:
        """Workers that are ready and idle."""
        return sum(worker.free for worker in self._workers)

    @property
    def gpus(self) -> float:
        """What its actors asked for."""
        return float(self._request["num_gpus"]) * self._team

    def submit(self, job: Job) -> str:
        """Hand the job to the free worker that holds its checkpoint, else to the one that was
        used longest ago."""
        free = [worker for worker in self._workers if worker.free]
        if not free:
            raise RuntimeError("submit() needs a free worker")
        wanted = (job.trial, job.checkpoint)
        worker = min(free, key=lambda w: (w.holds.get(type(job)) != wanted, w.used, w.number))
        self._jobs += 1
        worker.used = self._jobs
        worker.job = job
        called = f"Ray worker {worker.number} (process {worker.process} on {worker.node})"
        files: dict[str, bytes] = {}
        if not worker.shared:
            warm = worker.holds.get(type(job)) == wanted
            try:
                files = self._handover.files_for(job, warm, worker.files)
            except StoreError as error:
                worker.job = None
                step = job.start if isinstance(job, TrainJob) else job.step
                self._pending.append(Broken(job.identifier, step, "checkpoint", str(error)))
                return called
        worker.run(to_plain(job), files)
        return called

    def close(self) -> None:
        """Stop the actors, and the cluster if it was started here."""
        for worker in self._workers:
            worker.kill()
        self._workers = []
        self._pending = []
        if self._marker is not None:
            self._marker.unlink(missing_ok=True)
            self._marker = None
        if self._started:
            self._started = False
            self._ray.shutdown()

    @property
    def processes(self) -> list[int]:
        """Process ids of the actors, each on its node."""
        return [worker.process for worker in self._workers]

    # --- workers ----------------------------------------------------------------------------

    def _mark(self) -> None:
        """Leave a file by which workers know whether they see the study's folder."""
        if self._context.options.get("shared_folder") is False:
            return
        token = secrets.token_hex(16)
        self._marker = Path(self._context.folder).absolute() / f".seen-{token[:8]}"
        self._marker.write_text(token)
        self._token = token

    def _start(self, number: int) -> None:
        worker = Handle(self._ray, number, self._request, self._team)
        self._workers.append(worker)
        orders = asdict(opening(self._context, number, self._address, self._threads))
        marker = (str(self._marker), self._token) if self._marker is not None else None
        seconds = float(self._context.options.get("start_seconds", 300))
        worker.open(seconds, orders, self._task_reference, sys.path, marker)

    def _opened(self, worker: Handle, source: Any, answer: dict[str, Any]) -> None:
        if answer["type"] == "refused":
            called = f"Ray worker {worker.number} on {answer['node']}"
            error = refusal(answer["error"], answer["message"], called)
            if not self._begun:
                raise error
            # a node that joined later is not as the others are: the study goes on without it
            self._bury(worker, str(error))
            return
        if not worker.answered(source, answer):
            return
        self._failed_starts.pop(worker.number, None)
        if self._context.options.get("shared_folder") is True and not worker.shared:
            raise PluginError(
                f"executor ray: shared_folder is set, but worker {worker.number} on "
                f"{worker.node} does not see {self._context.folder}"
            )

    def _end(self, worker: Handle) -> None:
        worker.kill()
        worker.wait_until_dead()
        self._bury(worker, "")

    def _bury(self, worker: Handle, message: str) -> None:
        """End what lives on of a worker, report its job lost, and start another in its place."""
        self._workers.remove(worker)
        worker.kill()
        text = " ".join(message.split())[:500]
        if worker.job is not None:
            lost = (
                f"Ray worker {worker.number} (process {worker.process} on {worker.node}) "
                f"died: {text}"
            )
            self._pending.append(WorkerLost(worker.job.identifier, lost))
        if not worker.ready and not worker.node_left:
            failed = self._failed_starts[worker.number] = (
                self._failed_starts.get(worker.number, 0) + 1
            )
            if failed >= _STARTS:
                if not any(other.ready for other in self._workers):
                    raise PluginError(f"executor ray: workers do not come up: {text}")
                if failed == _STARTS:
                    _log.warning("worker %d does not come up: %s", worker.number, text)
                self._later[worker.number] = time.monotonic() + _PAUSE
                return
        self._start(worker.number)

    # --- reports ----------------------------------------------------------------------------

    def _collect(self, timeout: float) -> None:
        """Take in what has arrived, waiting up to `timeout` seconds for something to."""
        end = time.monotonic() + timeout
        while True:
            waiting: dict[Any, Handle] = {}
            for worker in self._workers:
                waiting |= dict.fromkeys(worker.awaited, worker)
            left = max(0.0, min(end, self._next_deadline()) - time.monotonic())
            ready: list[Any] = []
            if waiting:
                ready, _ = self._ray.wait(list(waiting), num_returns=1, timeout=left)
            elif left:
                time.sleep(left)
            for source in ready:
                self._take(waiting[source], source)
            self._check_deadlines()
            if not ready:
                return
            end = 0.0

    def _take(self, worker: Handle, source: Any) -> None:
        try:
            if not worker.ready:
                self._opened(worker, source, self._ray.get(source))
                return
            if worker.follows(source):
                worker.followed(source, self._ray.get(source))
                self._expect_end(worker)
                return
            message, files = self._ray.get(next(source))
        except self._ray.exceptions.RayActorError as error:
            self._bury(worker, str(error))
            return
        except (self._ray.exceptions.RayError, StopIteration) as error:
            # nothing of the task's gets here: the actor itself, or its node, is at fault
            self._bury(worker, f"{type(error).__name__}: {error}")
            return
        report = from_plain(message)
        if isinstance(report, Done | Broken):
            assert worker.job is not None
            kind, job = type(worker.job), worker.job
            if isinstance(report, Done):
                kept = self._keep(worker, report, files)
                if kept is None:
                    return
                report = kept
            held = isinstance(report, Done)
            worker.holds[kind] = (job.trial, report.checkpoint or job.checkpoint) if held else None
            if kind is EvaluateJob and not worker.shared:
                # it may have given up its warm run for room, and must then be sent the checkpoint
                worker.holds.pop(TrainJob, None)
            worker.job = None
            self._expect_end(worker)
        self._pending.append(report)

    def _keep(self, worker: Handle, done: Done, files: Mapping[str, bytes]) -> Report | None:
        """Keep what a worker made elsewhere: only then is the job done. None if the worker had
        to be given up."""
        try:
            other = self._handover.keep(files, worker.files)
        except StoreError as error:
            return Broken(done.identifier, done.step, "disk", str(error))
        if other is not None:
            self._bury(worker, f"another worker had made {other} first")
            return None
        return done

    def _next_deadline(self) -> float:
        ends = (worker.overdue for worker in self._workers)
        return min((*ends, *self._later.values()), default=math.inf)

    def _expect_end(self, worker: Handle) -> None:
        """Where one of a team has ended, or broken, the others do so now or wait for it for
        ever."""
        if worker.free:
            worker.overdue = math.inf
        elif worker.job is None or worker.failed is not None:
            worker.overdue = min(worker.overdue, time.monotonic() + _GRACE)

    def _check_deadlines(self) -> None:
        """Give up on a cluster that brings no worker up; try again what did not start."""
        now = time.monotonic()
        working = self._begun and any(worker.ready for worker in self._workers)
        for worker in list(self._workers):
            if not worker.ready and now > worker.deadline and not working:
                raise PluginError(
                    f"executor ray: worker {worker.number} did not come up in time; it asks for "
                    f"{self._request}, available now: {self._ray.available_resources()}"
                )
            if now > worker.overdue:
                if worker.job is not None:
                    assert worker.failed is not None
                    self._pending.append(from_plain(worker.failed))
                    worker.job = None
                self._bury(worker, "its team fell apart")
        for number in [number for number, due in self._later.items() if now >= due]:
            del self._later[number]
            self._start(number)


def _count(context: ExecutionContext, option: str, default: int, most: int | None = None) -> int:
    """An option that is a whole number from 1 on."""
    wanted = context.options.get(option, default)
    if type(wanted) is not int or wanted < 1 or (most is not None and wanted > most):
        limits = "from 1 on" if most is None else f"from 1 to workers ({most})"
        raise PluginError(f"executor ray: {option} is {wanted!r}; expected a whole number {limits}")
    return wanted

"""Workers as Ray actors, on this machine or on a cluster.

Resources belong to the actors and trials move between them, so a thaw costs a method call, not
a new process. Reports stream back through a generator while the segment runs.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

from autotune.execute.environment import available_cores, threads_for
from autotune.execute.messages import from_plain, to_plain
from autotune.execute.opening import address_or_bytes, check_options, hung, opening, refusal
from autotune.execute.ray_worker import PRETRAINED, RayWorker
from autotune.execute.store import CheckpointStore, StoreError
from autotune.plugins import PluginError
from autotune.plugins.execution import (
    Broken,
    Done,
    ExecutionContext,
    Executor,
    Job,
    Report,
    TrainJob,
    Unit,
    WorkerLost,
)

_STARTS = 3
"""A worker that dies this often before it is ready will not come up at all."""


def _import_ray() -> Any:
    """Ray, told before its import to send no usage statistics."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # keep CUDA_VISIBLE_DEVICES of actors without a GPU as Ray 3 will, and its warning away
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    return ray


def _check_listens(address: str) -> None:
    """Raise `PluginError` if nobody listens at ``host:port``: Ray itself would try for minutes.
    Other forms of address (``auto``, ``ray://...``) are Ray's to judge."""
    host, _, port = address.rpartition(":")
    if not port.isdigit() or "/" in host:
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise PluginError(
            f"executor ray: no cluster at {address}: {error}; start one with 'ray start --head', "
            "or leave the address out to have one on this machine"
        ) from error


class _Worker:
    """The driver's side of one actor."""

    def __init__(self, number: int, actor: Any, opening: Any, deadline: float) -> None:
        self.number = number
        self.actor = actor
        self.opening = opening
        self.deadline = deadline
        self.ready = False
        self.shared = True
        self.process = 0
        self.job: Job | None = None
        self.step = 0
        self.heard = 0.0
        self.reports: Any = None
        self.holds: dict[type, tuple[int, str | None] | None] = {}
        self.used = 0
        self.files: set[str] = set()


class Ray(Executor):
    """Segments in Ray actors.

    Options: ``address`` (of a running cluster; default: one is started on this machine and
    stopped at the end), ``num_cpus`` and ``num_gpus`` (of each worker; fractions share a
    device), ``threads`` (of torch in each worker), ``shared_folder`` (whether workers see the
    study's folder; default: found out), ``start_seconds`` (how long a worker may take to come
    up; default 300), ``unit_seconds`` (a unit, with the opening of its run, or an evaluation
    that takes longer hangs: its worker is ended, its trial has failed; default: no limit).
    """

    name: ClassVar[str] = "ray"
    summary: ClassVar[str] = "Ray actors, on this machine or a cluster"
    reference: ClassVar[str] = "Moritz et al., Ray, OSDI 2018; https://docs.ray.io"
    option_names: ClassVar[tuple[str, ...]] = (
        "address",
        "num_cpus",
        "num_gpus",
        "threads",
        "shared_folder",
        "start_seconds",
        "unit_seconds",
    )

    def __init__(self, configuration: Mapping[str, Any] | None = None) -> None:
        super().__init__(configuration)
        self._workers: list[_Worker] = []
        self._pending: list[Report] = []
        self._started = False
        self._failed_starts = 0
        self._jobs = 0
        self._marker: Path | None = None

    def open(self, context: ExecutionContext) -> None:
        """Connect, start the actors, and wait until each has imported the task.

        Raises:
            TaskError: the task cannot be sent, or cannot be imported on a worker.
            PluginError: no cluster, no room in it, or a worker lacks a plugin.
        """
        check_options(type(self), context)
        self._context = context
        self._store = CheckpointStore(Path(context.folder) / "checkpoints")
        self._store.prepare()
        (Path(context.folder) / "logs").mkdir(parents=True, exist_ok=True)
        self._ray = _import_ray()
        self._address, self._task = address_or_bytes(context.task)
        try:
            self._limit = float(context.options.get("unit_seconds", math.inf))
            self._connect()
            self._request = self._resources()
            whole = max(1, int(self._request["num_cpus"]))
            own = threads_for(context.workers) if self._started else whole
            self._threads = int(context.options.get("threads", own))
            self._task_reference = self._ray.put(self._task)
            self._mark()
            for number in range(context.workers):
                self._start(number)
            while not all(worker.ready for worker in self._workers):
                self._collect(1.0)
        except BaseException:
            self.close()
            raise

    @property
    def free(self) -> int:
        """Workers that are ready and idle."""
        return sum(worker.ready and worker.job is None for worker in self._workers)

    def submit(self, job: Job) -> None:
        """Hand the job to the free worker that holds its checkpoint, else to the one that was
        used longest ago."""
        free = [worker for worker in self._workers if worker.ready and worker.job is None]
        if not free:
            raise RuntimeError("submit() needs a free worker")
        wanted = (job.trial, job.checkpoint)
        worker = min(free, key=lambda w: (w.holds.get(type(job)) != wanted, w.used, w.number))
        self._jobs += 1
        worker.used = self._jobs
        worker.job = job
        worker.heard = time.monotonic()
        worker.step = job.start if isinstance(job, TrainJob) else job.step
        files: dict[str, bytes] = {}
        if not worker.shared:
            if job.checkpoint is not None and worker.holds.get(type(job)) != wanted:
                try:
                    files[job.checkpoint] = self._store.get(job.checkpoint)
                except StoreError as error:
                    worker.job = None
                    self._pending.append(Broken(job.identifier, worker.step, "disk", str(error)))
                    return
            files |= self._pretrained_for(worker)
        worker.reports = worker.actor.run.options(num_returns="streaming").remote(
            to_plain(job), files
        )

    def poll(self, timeout: float) -> list[Report]:
        """Reports that have arrived; waits up to `timeout` seconds for the first, or for a
        replaced worker to be free."""
        end = time.monotonic() + timeout
        free = self.free
        while True:
            self._collect(max(0.0, end - time.monotonic()) if not self._pending else 0.0)
            if self._pending or self.free > free or time.monotonic() >= end:
                reports, self._pending = self._pending, []
                return reports

    def interrupt(self) -> None:
        """Ask the segments in flight to freeze after the unit they are in."""
        for worker in self._workers:
            if worker.job is not None:
                worker.actor.interrupt.options(concurrency_group="control").remote(
                    worker.job.identifier
                )

    def close(self) -> None:
        """Stop the actors, and the cluster if it was started here."""
        for worker in self._workers:
            with suppress(Exception):  # a cluster that has gone cannot be told so
                self._ray.kill(worker.actor, no_restart=True)
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

    # --- the cluster ------------------------------------------------------------------------

    def _connect(self) -> None:
        """Use the connection that the user's program has, join the cluster that is named, or
        start one."""
        if self._ray.is_initialized():
            return
        address = self._context.options.get("address")
        rest: dict[str, Any] = {}
        if address is not None:
            _check_listens(address)
        else:
            rest = {"num_cpus": available_cores(), "include_dashboard": False}
        # Ray puts its own handler of SIGTERM in the place of the study's
        main_thread = threading.current_thread() is threading.main_thread()
        handler = signal.getsignal(signal.SIGTERM)
        try:
            self._ray.init(
                address=address or "local",
                logging_level=logging.ERROR,
                log_to_driver=False,
                configure_logging=True,
                **rest,
            )
        except Exception as error:
            where = f"at {address}" if address else "on this machine"
            raise PluginError(f"executor ray: no cluster {where}: {error}") from error
        finally:
            if main_thread and handler is not None:
                signal.signal(signal.SIGTERM, handler)
        self._started = True

    def _resources(self) -> dict[str, float]:
        """What each actor asks for."""
        total = self._ray.cluster_resources()
        workers, options = self._context.workers, self._context.options
        cpus, gpus = total.get("CPU", 0.0), total.get("GPU", 0.0)
        share = cpus / workers
        request = {"num_cpus": options.get("num_cpus", share if share < 1 else 1)}
        wants_gpu = self._context.device != "cpu" and (gpus or self._context.device != "auto")
        request["num_gpus"] = options.get("num_gpus", min(1.0, gpus / workers) if wants_gpu else 0)
        for key, kind, there in (("num_cpus", "CPU", cpus), ("num_gpus", "GPU", gpus)):
            if request[key] * workers > there + 1e-6:
                raise PluginError(
                    f"executor ray: {workers} workers with {key} {request[key]:g} need "
                    f"{request[key] * workers:g} {kind}s; the cluster has {there:g}"
                )
        return request

    def _mark(self) -> None:
        """Leave a file by which workers know whether they see the study's folder."""
        if self._context.options.get("shared_folder") is False:
            return
        token = secrets.token_hex(16)
        self._marker = Path(self._context.folder).absolute() / f".seen-{token[:8]}"
        self._marker.write_text(token)
        self._token = token

    def _start(self, number: int) -> None:
        remote = self._ray.remote(
            max_restarts=0, concurrency_groups={"control": 1}, **self._request
        )(RayWorker)
        actor = remote.remote()
        orders = asdict(opening(self._context, number, self._address, self._threads))
        marker = (str(self._marker), self._token) if self._marker is not None else None
        answer = actor.open.remote(orders, self._task_reference, sys.path, marker)
        wait = float(self._context.options.get("start_seconds", 300))
        self._workers.append(_Worker(number, actor, answer, time.monotonic() + wait))

    # --- reports ----------------------------------------------------------------------------

    def _collect(self, timeout: float) -> None:
        """Take in what has arrived, waiting up to `timeout` seconds for something to."""
        end = time.monotonic() + timeout
        while True:
            waiting = {}
            for worker in self._workers:
                if not worker.ready:
                    waiting[worker.opening] = worker
                elif worker.job is not None:
                    waiting[worker.reports] = worker
            left = max(0.0, min(end, self._next_deadline()) - time.monotonic())
            if not waiting:
                time.sleep(left)
                return
            ready, _ = self._ray.wait(list(waiting), num_returns=1, timeout=left)
            for source in ready:
                self._take(waiting[source], source)
            self._check_deadlines()
            if not ready:
                return
            end = 0.0

    def _take(self, worker: _Worker, source: Any) -> None:
        try:
            if not worker.ready:
                self._opened(worker, self._ray.get(source))
                return
            message, files = self._ray.get(next(source))
        except self._ray.exceptions.RayActorError as error:
            self._bury(worker, str(error))
            return
        except (self._ray.exceptions.RayError, StopIteration) as error:
            # nothing of the task's gets here: the actor itself is at fault
            self._ray.kill(worker.actor, no_restart=True)
            self._bury(worker, f"{type(error).__name__}: {error}")
            return
        report = from_plain(message)
        worker.heard = time.monotonic()
        if isinstance(report, Unit):
            worker.step = report.step
        elif isinstance(report, Done | Broken):
            assert worker.job is not None
            kind, job = type(worker.job), worker.job
            if isinstance(report, Done):
                kept = self._keep(worker, report, files)
                if kept is None:
                    return
                report = kept
            held = isinstance(report, Done)
            worker.holds[kind] = (job.trial, report.checkpoint or job.checkpoint) if held else None
            worker.job = worker.reports = None
        self._pending.append(report)

    def _opened(self, worker: _Worker, answer: dict[str, Any]) -> None:
        if answer["type"] == "refused":
            called = f"Ray worker {worker.number}"
            raise refusal(answer["error"], answer["message"], called)
        worker.ready, worker.shared = True, answer["shared"]
        worker.process = answer["process"]
        self._failed_starts = 0
        if self._context.options.get("shared_folder") is True and not worker.shared:
            raise PluginError(
                f"executor ray: shared_folder is set, but worker {worker.number} does not see "
                f"{self._context.folder}"
            )

    def _keep(self, worker: _Worker, done: Done, files: Mapping[str, bytes]) -> Report | None:
        """Put what a worker made elsewhere into the study's folder: only then is the job done.
        None if the worker had to be given up."""
        assert worker.job is not None
        try:
            for name, data in files.items():
                if "/" not in name:
                    self._store.put(name, data)
                elif not self._keep_pretrained(name, data):
                    self._ray.kill(worker.actor, no_restart=True)
                    self._bury(worker, f"another worker had made {name} first")
                    return None
                else:
                    worker.files.add(name)
        except StoreError as error:
            return Broken(done.identifier, done.step, "disk", str(error))
        return done

    def _pretrained_for(self, worker: _Worker) -> dict[str, bytes]:
        """Pretrained weights of the study that the worker has not got."""
        folder = Path(self._context.folder)
        names = {
            str(path.relative_to(folder)): path
            for path in (folder / PRETRAINED).rglob("*.safetensors")
        }
        new = {name: path.read_bytes() for name, path in names.items() if name not in worker.files}
        worker.files.update(new)
        return new

    def _keep_pretrained(self, name: str, data: bytes) -> bool:
        """Keep pretrained weights made on a node. False if the study has others by that name:
        checkpoints are kept as differences to them, so there can be only one."""
        path = Path(self._context.folder) / name
        if path.exists():
            return path.read_bytes() == data
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
        with temporary.open("xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.rename(path)
        return True

    def _bury(self, worker: _Worker, message: str) -> None:
        """Report the job of a dead actor lost, and start another in its place."""
        self._workers.remove(worker)
        text = " ".join(message.split())[:500]
        if not worker.ready:
            self._failed_starts += 1
            if self._failed_starts >= _STARTS:
                raise PluginError(f"executor ray: workers do not come up: {text}")
        if worker.job is not None:
            lost = f"Ray worker {worker.number} (process {worker.process}) died: {text}"
            self._pending.append(WorkerLost(worker.job.identifier, lost))
        self._start(worker.number)

    def _next_deadline(self) -> float:
        return min(
            (worker.heard + self._limit for worker in self._workers if worker.job is not None),
            default=math.inf,
        )

    def _check_deadlines(self) -> None:
        """Give up on a cluster that brings no worker up; end a worker that hangs."""
        now = time.monotonic()
        for worker in list(self._workers):
            if not worker.ready and now > worker.deadline:
                raise PluginError(
                    f"executor ray: worker {worker.number} did not come up in time; it asks for "
                    f"{self._request}, available now: {self._ray.available_resources()}"
                )
            if worker.job is not None and now > worker.heard + self._limit:
                self._pending.append(hung(worker.job, worker.step, self._limit))
                worker.job = None
                self._ray.kill(worker.actor, no_restart=True)
                self._bury(worker, "")

"""Worker processes on this machine: the default executor.

Plain subprocesses over socket pairs: no fork of a process that holds threads or CUDA, no main
guard in the user's script, and a kill of either side is seen by the other at once.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import torch

from autotune.execute.environment import threads_for
from autotune.execute.messages import FrameReader, frame, from_plain, to_plain
from autotune.execute.opening import address_or_parcel, check_options, opening, refusal
from autotune.execute.pool import Pool
from autotune.execute.remote_store import open_store
from autotune.plugins import PluginError
from autotune.plugins.execution import (
    Broken,
    Done,
    ExecutionContext,
    Job,
    WorkerLost,
)

_START = (
    "import sys; sys.path[:] = sys.argv[3:]; "
    "from autotune.execute.worker_process import main; main(int(sys.argv[1]), int(sys.argv[2]))"
)
_GRACE = 5.0
"""Seconds that an idle worker has to leave when the executor closes."""

_STARTS = 3
"""A worker that dies this often before it is ready will not come up at all."""

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class _Worker:
    """The driver's side of one worker process."""

    def __init__(self, number: int, log: Path, threads: int, opening: bytes) -> None:
        self.number = number
        self.log = log
        self.ready = False
        self.job: Job | None = None
        self.holds: dict[type, int | None] = {}
        self.used = 0
        self._reader = FrameReader()
        ours, theirs = socket.socketpair()
        environ = {**os.environ, **dict.fromkeys(_THREAD_VARIABLES, str(threads))}
        with theirs, log.open("ab") as output:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    _START,
                    str(theirs.fileno()),
                    str(os.getpid()),
                    *sys.path,
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environ,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        self.socket = ours
        self.death = os.pidfd_open(self.process.pid) if hasattr(os, "pidfd_open") else None
        self.send(opening)

    def send(self, data: bytes) -> None:
        """Send a frame; if the worker has died, its end of file will say so."""
        with suppress(BrokenPipeError, ConnectionResetError):
            self.socket.sendall(data)

    def tell(self, what: str, **told: Any) -> None:
        """Send word beside the job that it runs."""
        self.send(frame({"type": what, **told}))

    def receive(self) -> tuple[list[dict[str, Any]], bool]:
        """What has arrived, and whether the worker lives on."""
        messages: list[dict[str, Any]] = []
        while True:
            try:
                data = self.socket.recv(1 << 18, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return messages, self.process.poll() is None
            except ConnectionResetError:
                return messages, False
            if not data:
                return messages, False
            messages += [message for message, _ in self._reader.feed(data)]

    def kill(self) -> None:
        """End the process and its children, and release what the driver holds of it."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.socket.close()
        if self.death is not None:
            os.close(self.death)

    def epitaph(self) -> str:
        """How the worker ended, for people. Only after it has."""
        code = self.process.wait()
        if code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
            if -code == signal.SIGKILL:
                how += " (by someone, or by the system because memory ran out)"
        else:
            how = f"ended with exit code {code}"
            if words := self._last_words():
                how += f" ({words})"
        return (
            f"worker {self.number} (process {self.process.pid}) {how}; its output is in {self.log}"
        )

    def _last_words(self) -> str:
        """The last line of the log, where a traceback names the error."""
        with suppress(OSError), self.log.open("rb") as log:
            log.seek(-min(4096, log.seek(0, os.SEEK_END)), os.SEEK_END)
            lines = log.read().decode(errors="replace").split("\n")
            return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "")
        return ""


class Local(Pool[_Worker]):
    """Segments in processes of this machine, which share its cores.

    Option: ``threads`` (torch threads of each worker; default: cores divided by workers).
    """

    name: ClassVar[str] = "local"
    summary: ClassVar[str] = "worker processes on this machine"
    option_names: ClassVar[tuple[str, ...]] = ("threads",)
    reference: ClassVar[str] = ""

    def __init__(self, configuration: Mapping[str, Any] | None = None) -> None:
        super().__init__(configuration)
        self._failed_starts = 0
        self._jobs = 0
        self._selector: selectors.BaseSelector | None = None

    def open(self, context: ExecutionContext) -> None:
        """Start the workers and wait until each has imported the task.

        Raises:
            TaskError: the task cannot be sent, or cannot be imported on a worker.
            PluginError: a worker lacks a plugin, or does not come up.
        """
        check_options(type(self), context)
        self._context = context
        self._threads = int(context.options.get("threads", threads_for(context.workers)))
        self._address, (self._task, _) = address_or_parcel(context.task)
        open_store(context.folder, context.checkpoint_url).prepare()
        (context.folder / "logs").mkdir(parents=True, exist_ok=True)
        self._selector = selectors.DefaultSelector()
        try:
            for number in range(context.workers):
                self._start(number)
            while not all(worker.ready for worker in self._workers):
                self._collect(None)
        except BaseException:
            self.close()
            raise

    @property
    def free(self) -> int:
        """Workers that are ready, idle and, as of now, alive."""
        if self._selector is not None:
            self._collect(0.0)
        return sum(worker.ready and worker.job is None for worker in self._workers)

    @property
    def gpus(self) -> float:
        """Workers take turns at the GPUs that torch sees: one each, or an equal share."""
        if self._context.device == "cpu" or not torch.cuda.is_available():
            return 0.0
        return min(1.0, torch.cuda.device_count() / self._context.workers)

    def submit(self, job: Job) -> str:
        """Hand the job to the free worker that holds its trial, else to the one whose trial
        was used longest ago."""
        free = [worker for worker in self._workers if worker.ready and worker.job is None]
        if not free:
            raise RuntimeError("submit() needs a free worker")
        worker = min(free, key=lambda w: (w.holds.get(type(job)) != job.trial, w.used, w.number))
        self._jobs += 1
        worker.used = self._jobs
        worker.job = job
        worker.send(frame(to_plain(job)))
        return f"worker {worker.number} (process {worker.process.pid})"

    def close(self) -> None:
        """Let idle workers leave, kill the rest."""
        for worker in self._workers:
            if worker.job is None and worker.ready:
                worker.send(frame({"type": "close"}))
        end = time.monotonic() + _GRACE
        for worker in self._workers:
            if worker.job is None and worker.ready:
                with suppress(subprocess.TimeoutExpired):
                    worker.process.wait(max(0.0, end - time.monotonic()))
            worker.kill()
        self._workers = []
        if self._selector is not None:
            self._selector.close()
            self._selector = None

    @property
    def processes(self) -> list[int]:
        """Process ids of the workers."""
        return [worker.process.pid for worker in self._workers]

    # --- inside -----------------------------------------------------------------------------

    def _start(self, number: int) -> None:
        assert self._selector is not None
        log = self._context.folder / "logs" / f"worker-{number}.log"
        orders = asdict(opening(self._context, number, self._address, self._threads))
        message = frame({"type": "open", "opening": orders}, self._task)
        worker = _Worker(number, log, self._threads, message)
        self._workers.append(worker)
        self._selector.register(worker.socket, selectors.EVENT_READ, worker)
        if worker.death is not None:
            self._selector.register(worker.death, selectors.EVENT_READ, worker)

    def _collect(self, timeout: float | None) -> None:
        """Take in what has arrived, waiting up to `timeout` seconds (None: for ever)."""
        assert self._selector is not None
        if not hasattr(os, "pidfd_open") and (timeout is None or timeout > 1.0):
            timeout = 1.0  # where the kernel cannot wake us on a death, look for it
        events = self._selector.select(timeout)
        stirred = {key.data.number: key.data for key, _ in events}
        if not events and not hasattr(os, "pidfd_open"):
            stirred = {worker.number: worker for worker in self._workers}
        for worker in stirred.values():
            messages, alive = worker.receive()
            for message in messages:
                self._take(worker, message)
            if not alive:
                with suppress(subprocess.TimeoutExpired):
                    worker.process.wait(1.0)  # to hear its own exit code, not our kill's
                self._bury(worker)

    def _take(self, worker: _Worker, message: dict[str, Any]) -> None:
        if message["type"] == "ready":
            worker.ready = True
            self._failed_starts = 0
            return
        if message["type"] == "refused":
            called = f"worker {worker.number}, whose output is in {worker.log}"
            raise refusal(message["error"], message["message"], called)
        report = from_plain(message)
        self._pending.append(report)
        if isinstance(report, Done | Broken):
            assert worker.job is not None
            kind, trial = type(worker.job), worker.job.trial
            worker.holds[kind] = trial if isinstance(report, Done) else None
            worker.job = None

    def _end(self, worker: _Worker) -> None:
        self._bury(worker)

    def _bury(self, worker: _Worker) -> None:
        """Report the job of a dead worker lost, end what is left of it, and start another in
        its place."""
        assert self._selector is not None
        self._selector.unregister(worker.socket)
        if worker.death is not None:
            self._selector.unregister(worker.death)
        self._workers.remove(worker)
        worker.kill()
        if not worker.ready:
            self._failed_starts += 1
            if self._failed_starts >= _STARTS:
                raise PluginError(f"workers do not come up: {worker.epitaph()}")
        if worker.job is not None:
            self._pending.append(WorkerLost(worker.job.identifier, worker.epitaph()))
        self._start(worker.number)

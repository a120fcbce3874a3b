"""What executors with worker processes of their own have in common, wherever these live: each
worker has at most one job, and reports arrive whenever they do."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

from autotune.plugins.execution import Executor, Job, Report


class PooledWorker(Protocol):
    """The driver's side of a worker."""

    job: Job | None

    def tell(self, what: str, **told: Any) -> None:
        """Send word beside the job that it runs."""


W = TypeVar("W", bound=PooledWorker)


class Pool(Executor, Generic[W]):
    """Workers, and the reports of theirs that nobody has asked for yet."""

    def __init__(self, configuration: Mapping[str, Any] | None = None) -> None:
        super().__init__(configuration)
        self._workers: list[W] = []
        self._pending: list[Report] = []

    @abstractmethod
    def _collect(self, timeout: float) -> None:
        """Take in what has arrived, waiting up to `timeout` seconds for something to."""

    @abstractmethod
    def _end(self, worker: W) -> None:
        """End a worker, which writes nothing more when this returns, and start another."""

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
                worker.tell("interrupt", identifier=worker.job.identifier)

    def grant(self, identifier: int, room: int) -> None:
        """Tell the worker that waits for it."""
        for worker in self._holding(identifier):
            worker.tell("grant", identifier=identifier, room=room)

    def revoke(self, identifier: int) -> None:
        """End the job's worker with all that it has started, and start another."""
        self._pending = [r for r in self._pending if r.identifier != identifier]
        for worker in self._holding(identifier):
            worker.job = None
            self._end(worker)

    def _holding(self, identifier: int) -> Sequence[W]:
        """The worker that has a job, if one has."""
        return [w for w in self._workers if w.job is not None and w.job.identifier == identifier]

"""A record in memory, and workers that do what a test says: for the driver without either."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from autotune.plugins.execution import Executor, Job, Report, TrainJob
from autotune.plugins.search import Event
from autotune.record import event_from_plain, event_to_plain
from autotune.study import _GLANCE_SECONDS as GLANCE

WORKERS = 2


class Log:
    """A record in memory, whose events pass through JSON as they do on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.told: list[Event] = []
        self.committed = 0
        self.meta: dict[str, Any] = {}

    def append(self, event: Event) -> Event:
        plain = json.loads(json.dumps(event_to_plain(event)))
        self.told.append(event_from_plain(plain))
        return self.told[-1]

    def events(self) -> list[Event]:
        return list(self.told)

    @property
    def count(self) -> int:
        return len(self.told)

    def commit(self) -> None:
        self.committed = len(self.told)

    def set_meta(self, key: str, value: Any) -> None:
        self.meta[key] = value

    def back_up(self) -> None:
        pass


class Puppets(Executor):
    """Workers that do nothing by themselves."""

    name = "puppets"

    def __init__(self) -> None:
        super().__init__()
        self.jobs: dict[int, Job] = {}
        self.step: dict[int, int] = {}
        self.waiting: dict[int, int] = {}
        self.room: dict[int, int] = {}
        self.revoked: list[Job] = []
        self.reports: list[Report] = []
        self.meanwhile: Callable[[], None] | None = None
        """What they do while a decision is being taken ahead."""

    def open(self, context: Any) -> None: ...

    def close(self) -> None: ...

    def interrupt(self) -> None: ...

    @property
    def free(self) -> int:
        return WORKERS - len(self.jobs)

    def submit(self, job: Job) -> str:
        if isinstance(job, TrainJob):
            trials = [j.trial for j in self.jobs.values() if isinstance(j, TrainJob)]
            assert job.trial not in trials, "a trial is trained twice at once"
            self.step[job.identifier] = job.start
            assert job.room is not None
            self.room[job.identifier] = job.room
        self.jobs[job.identifier] = job
        return f"puppet {job.identifier}"

    def poll(self, timeout: float) -> list[Report]:
        if timeout == GLANCE and self.meanwhile is not None:
            self.meanwhile, work = None, self.meanwhile
            work()
        reports, self.reports = self.reports, []
        return reports

    def revoke(self, identifier: int) -> None:
        self.revoked.append(self.jobs.pop(identifier))
        self.waiting.pop(identifier, None)
        self.reports = [r for r in self.reports if r.identifier != identifier]

    def grant(self, identifier: int, room: int) -> None:
        self.room[identifier] = room

    def over(self, report: Report) -> None:
        """The job's end."""
        del self.jobs[report.identifier]
        self.waiting.pop(report.identifier, None)
        self.reports.append(report)

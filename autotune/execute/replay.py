"""Replays recorded learning curves on a virtual clock.

A study of hours runs in seconds with the reports that live workers would have sent, in the
order of the recorded times; the same jobs give the same reports at the same virtual seconds.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from autotune.execute.opening import check_options
from autotune.execute.recorded_table import RecordedTable, not_finite_message
from autotune.execute.store import checkpoint_name
from autotune.execute.task_address import load_task
from autotune.plugins import PluginError
from autotune.plugins.execution import (
    Broken,
    Done,
    EvaluateJob,
    ExecutionContext,
    Executor,
    Job,
    Report,
    TrainJob,
    Unit,
)
from autotune.train import as_task


@dataclass
class _Running:
    """A job on a virtual worker: its reports to come, each with its time, soonest last."""

    job: Job
    begun: float
    coming: list[tuple[float, Report]]


class Replay(Executor):
    """Virtual workers that read a `RecordedTable`. Checkpoints are names only."""

    name: ClassVar[str] = "replay"
    summary: ClassVar[str] = "recorded learning curves on a virtual clock"
    reference: ClassVar[str] = "after Syne Tune's simulator backend (Salinas et al., AutoML 2022)"
    virtual_clock: ClassVar[bool] = True

    def __init__(self, configuration: Mapping[str, Any] | None = None) -> None:
        super().__init__(configuration)
        self._running: dict[int, _Running] = {}
        self._clock = 0.0
        self._capacity = 0

    def open(self, context: ExecutionContext) -> None:
        """Take the table. Raises `PluginError` if the task is none."""
        check_options(type(self), context)
        task = load_task(context.task) if isinstance(context.task, str) else as_task(context.task)
        if not isinstance(task, RecordedTable):
            raise PluginError(
                f"executor replay needs a RecordedTable as the task, not a {type(task).__name__}"
            )
        self._table = task
        self._capacity = context.workers
        self._running, self._clock = {}, 0.0

    @property
    def free(self) -> int:
        """Virtual workers without a job."""
        return self._capacity - len(self._running)

    def submit(self, job: Job) -> str:
        """Lay out the job's reports from now on."""
        if self.free <= 0:
            raise RuntimeError("submit() needs a free worker")
        reports = self._train(job) if isinstance(job, TrainJob) else self._evaluate(job)
        reports.reverse()
        self._running[job.identifier] = _Running(job, self._clock, reports)
        return "a virtual worker"

    def poll(self, timeout: float) -> list[Report]:
        """The next reports and all others of the same virtual second, by job; the clock moves
        there, however long `timeout` is. With a timeout of 0 it stands still, and only what is
        due already is reported: who just looks must not end what runs on other workers."""
        if not self._running:
            return []
        now = self._clock
        if timeout > 0:
            now = min(running.coming[-1][0] for running in self._running.values())
        self._clock = now
        due: list[Report] = []
        for identifier, running in sorted(self._running.items()):
            while running.coming and running.coming[-1][0] <= now:
                due.append(running.coming.pop()[1])
            if not running.coming:
                del self._running[identifier]
        return due

    def interrupt(self) -> None:
        """End every segment after the unit it is in."""
        for running in self._running.values():
            time, unit = running.coming[-1]
            if isinstance(running.job, TrainJob) and isinstance(unit, Unit):
                done = self._done(running.job, unit.step, time - running.begun)
                running.coming = [(time, done), (time, unit)]

    def revoke(self, identifier: int) -> None:
        """Forget the job."""
        self._running.pop(identifier, None)

    def close(self) -> None:
        """Forget the jobs."""
        self._running = {}

    def now(self) -> float:
        """Virtual seconds since `open`."""
        return self._clock

    def _train(self, job: TrainJob) -> list[tuple[float, Report]]:
        row, time = self._table.nearest(job.configuration), self._clock
        reports: list[tuple[float, Report]] = []
        for step in range(job.start + 1, job.to + 1):
            if step > self._table.horizon:
                message = f"the recorded curves end at unit {self._table.horizon}"
                reports.append((time, Broken(job.identifier, step - 1, "error", message)))
                return reports
            seconds = self._table.unit_seconds(row, step)
            time += seconds
            metrics = self._table.metrics(row, step, job.seed)
            if not math.isfinite(metrics[self._table.metric]):
                message = not_finite_message(self._table.metric, metrics, step)
                reports.append((time, Broken(job.identifier, step - 1, "not_finite", message)))
                return reports
            reports.append((time, Unit(job.identifier, step, metrics, seconds)))
        reports.append((time, self._done(job, max(job.start, job.to), time - self._clock)))
        return reports

    def _done(self, job: TrainJob, step: int, seconds: float) -> Done:
        row = self._table.nearest(job.configuration)
        digest = hashlib.sha256(f"{self._table.fingerprint()} {row} {step}".encode()).hexdigest()
        name = checkpoint_name(job.trial, step, digest[:32])
        return Done(job.identifier, step, checkpoint=name, seconds=seconds)

    def _evaluate(self, job: EvaluateJob) -> list[tuple[float, Report]]:
        if job.what == "alone":
            message = "a recorded table has no latency"
            return [(self._clock, Broken(job.identifier, job.step, "error", message))]
        row = self._table.nearest(job.configuration)
        report = self._table.test_metrics(row, job.step) if job.what == "test" else {}
        return [(self._clock, Done(job.identifier, job.step, report=report))]

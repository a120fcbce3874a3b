"""Helpers shared by the tests of executors."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from autotune.plugins.execution import (
    Broken,
    Done,
    EvaluateJob,
    ExecutionContext,
    Executor,
    Oversize,
    Report,
    TrainJob,
    Unit,
    WorkerLost,
)

NUMBER = iter(range(1, 1 << 30))


def train(trial: int, to: int, start: int = 0, checkpoint: str | None = None, **bad: Any):
    configuration = {"rate": 0.001 * (trial + 1), **bad}
    return TrainJob(next(NUMBER), trial, configuration, trial, 20, start, to, checkpoint)


def go_on(job: TrainJob, done: Done, to: int) -> TrainJob:
    return TrainJob(
        next(NUMBER), job.trial, job.configuration, job.seed, 20, done.step, to, done.checkpoint
    )


def evaluate(job: TrainJob, done: Done, what: str = "stream", **evaluation: Any) -> EvaluateJob:
    assert done.checkpoint is not None
    return EvaluateJob(
        next(NUMBER), job.trial, job.configuration, job.seed, 20, done.step, done.checkpoint,
        evaluation, what,  # type: ignore[arg-type]
    )  # fmt: skip


def context(task: Any, folder: Path, workers: int = 1, **rest: Any) -> ExecutionContext:
    return ExecutionContext(task, folder, workers, (), **{"device": "cpu", **rest})


def finish(executor: Executor, *jobs: TrainJob | EvaluateJob) -> list[list[Report]]:
    """Run jobs as workers become free; the reports of each, in order."""
    waiting, reports = list(jobs), {job.identifier: [] for job in jobs}
    open_jobs = set(reports)
    end = time.monotonic() + 90
    while open_jobs:
        assert time.monotonic() < end, f"no end in sight: {reports}"
        while waiting and executor.free:
            executor.submit(waiting.pop(0))
        for report in executor.poll(5.0):
            reports[report.identifier].append(report)
            if isinstance(report, Oversize):
                executor.grant(report.identifier, report.size)
            if isinstance(report, Done | Broken | WorkerLost):
                open_jobs.remove(report.identifier)
    return list(reports.values())


def without_times(reports: list[Report]) -> list[tuple]:
    """Reports as what must be equal wherever they come from."""
    plain: list[tuple] = []
    for report in reports:
        match report:
            case Unit():
                plain.append(("unit", report.step, dict(report.metrics)))
            case Done():
                plain.append(
                    ("done", report.step, dict(report.static), dict(report.select), report.exact)
                )
            case Broken():
                plain.append(("broken", report.step, report.cause, report.message))
            case WorkerLost():
                plain.append(("lost",))
    return plain

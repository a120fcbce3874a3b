"""The winner's look at the test split: once, when the search is over."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from autotune.decide.final import best_run
from autotune.execute.remote_store import StudyStore
from autotune.jobs import evaluation_job
from autotune.leases import LOSSES, Lease, Leases
from autotune.plugins.execution import Broken, Done, EvaluateJob, Executor, WorkerLost
from autotune.result import StudyView, best_of, points_of

POLL_SECONDS = 0.25


def scored(
    view: Callable[[], StudyView],
    run: Callable[[EvaluateJob], Done | Broken | WorkerLost],
    store: StudyStore,
    evict: Callable[[int, int, str], None],
) -> dict[str, Any] | None:
    """Which point is the best, and what the test split says of it, or why it says nothing; as the
    record keeps it. None if no point has a value.

    Args:
        view: the study as it stands now.
        run: carries out a job beside which nothing runs.
        evict: records that a checkpoint (trial, step) is damaged, and what is said of it. The best
            of those that are left is looked at then.
    """
    winner: dict[str, Any] | None = None
    losses = 0
    while losses < LOSSES:
        study = view()
        trials = study.trials
        best = best_of(points_of(study), study.context, best_run(trials))
        if best is None:
            return None
        where = (best.trial, best.step, best.evaluation)
        winner = dict(zip(("trial", "step", "evaluation"), where, strict=True))
        job = evaluation_job(trials.decisions, *where, "test", trials, study.header.seed)
        report = run(job)
        if isinstance(report, Done):
            return {**winner, "metrics": dict(report.report)}
        winner["failure"] = report.message
        if isinstance(report, WorkerLost):
            losses += 1
        elif report.cause == "checkpoint" and not store.intact(job.checkpoint):
            evict(best.trial, best.step, report.message)
        else:
            break
    return winner


def run_alone(job: EvaluateJob, executor: Executor, leases: Leases) -> Done | Broken | WorkerLost:
    """Carry out a job while nothing else runs, under a lease as any other; how it ended."""
    while executor.free < 1:  # a dead worker's successor is on its way
        executor.poll(POLL_SECONDS)
    holder, now = executor.submit(job), time.monotonic()
    leases.take(Lease(job, None, holder, now, now))
    while True:
        for report in executor.poll(POLL_SECONDS):
            lease = leases.hear(report.identifier, time.monotonic())
            if lease is not None and isinstance(report, Done | Broken | WorkerLost):
                leases.end(lease)
                return report
        for overdue in leases.overdue(time.monotonic()):
            executor.revoke(job.identifier)
            leases.end(overdue.lease)
            return WorkerLost(job.identifier, overdue.message)

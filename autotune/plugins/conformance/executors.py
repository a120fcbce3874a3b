"""What an executor must do: run jobs on workers, report all that happens, survive what fails."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from autotune.plugins.conformance.comparing import Fault, NotApplicable
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
from autotune.space import Configuration
from autotune.train import NotFinite, Run, RunContext, Task

SECONDS = 120
"""A job of no work that has not ended by then is lost."""


class Counting(Run):
    """A run whose loss depends on every unit before."""

    def __init__(self, configuration: Configuration, context: RunContext) -> None:
        self._bad = configuration["bad"]
        self._total = torch.tensor(float(context.seed))
        self._step = 0

    @property
    def step(self) -> int:
        """Units completed."""
        return self._step

    def train(self) -> Mapping[str, float]:
        """One more unit."""
        if self._bad == "not_finite":
            raise NotFinite("the loss is NaN")
        if self._bad == "error":
            raise ValueError("this configuration cannot be trained")
        self._step += 1
        self._total = self._total * 0.7 + self._step
        return {"validation_loss": self._total.item()}

    def freeze(self) -> dict[str, Any]:
        """The count and the total."""
        return {"step": self._step, "total": self._total}

    def thaw(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self._step, self._total = state["step"], state["total"]

    def evaluate(self, evaluation: Configuration, part: str) -> Mapping[str, float]:
        """The total, told apart by the part of the stream."""
        return {"shifted_loss": self._total.item() + (1.0 if part == "report" else 0.0)}


class CountingTask(Task):
    """Costs nothing."""

    def open(self, configuration: Configuration, context: RunContext) -> Counting:
        """A run at its start."""
        return Counting(configuration, context)


def check_jobs(plugin: type[Executor], configuration: Mapping[str, Any]) -> None:
    """It trains, freezes, thaws and evaluates; a job that fails says why and hurts no other."""
    if plugin.virtual_clock:
        raise NotApplicable("it trains nothing, so no job of the check can run on it")
    with tempfile.TemporaryDirectory() as folder:
        context = ExecutionContext(
            CountingTask(),
            Path(folder),
            workers=1,
            plugins=(),
            device="cpu",
            objective="validation_loss",
        )
        executor = plugin(configuration)
        try:
            executor.open(context)
            if executor.free != 1:
                raise Fault(f"opened with 1 worker, {executor.free} are free")
            _check_training(executor)
            _check_failures(executor)
        finally:
            executor.close()
        executor.close()


CHECKS = (check_jobs,)


def _check_training(executor: Executor) -> None:
    run = Counting({"bad": ""}, RunContext(seed=7, horizon=9))
    losses = {step: run.train()["validation_loss"] for step in range(1, 6)}
    job = TrainJob(0, 0, {"bad": ""}, seed=7, horizon=9, start=0, to=3, checkpoint=None)
    first = _trained(executor, job, losses)
    other = TrainJob(1, 1, {"bad": ""}, seed=8, horizon=9, start=0, to=1, checkpoint=None)
    _finished(executor, other)
    again = replace(job, identifier=2, start=3, to=5, checkpoint=first.checkpoint)
    second = _trained(executor, again, losses)
    assert first.checkpoint is not None
    assert second.checkpoint is not None
    # The older checkpoint is asked for last: keeping a trial warm must not hide it.
    for number, (step, checkpoint) in enumerate([(5, second.checkpoint), (3, first.checkpoint)], 3):
        evaluate = EvaluateJob(
            number, 0, {"bad": ""}, 7, 9, step, checkpoint, evaluation={}, what="stream"
        )
        done = _finished(executor, evaluate)[-1]
        if not isinstance(done, Done):
            raise Fault(f"an evaluation ends with {done!r}")
        found = (done.select.get("shifted_loss"), done.report.get("shifted_loss"))
        if found != (losses[step], losses[step] + 1.0):
            raise Fault(f"the evaluation of unit {step} gives {found}, not its loss and that + 1")


def _trained(executor: Executor, job: TrainJob, losses: Mapping[int, float]) -> Done:
    *units, done = _finished(executor, job)
    if not isinstance(done, Done) or done.step != job.to or not done.checkpoint:
        raise Fault(f"a training job to unit {job.to} ends with {done!r}")
    found = {
        unit.step: unit.metrics.get("validation_loss") for unit in units if isinstance(unit, Unit)
    }
    expected = {step: losses[step] for step in range(job.start + 1, job.to + 1)}
    if found != expected or list(found) != sorted(found):
        raise Fault(
            f"units {job.start + 1} to {job.to} report the losses {found}, but without executor "
            f"they are {expected}"
        )
    return done


def _check_failures(executor: Executor) -> None:
    for number, cause in enumerate(("not_finite", "error"), 10):
        job = TrainJob(number, number, {"bad": cause}, 7, 9, start=0, to=2, checkpoint=None)
        broken = _finished(executor, job)[-1]
        if not isinstance(broken, Broken) or broken.cause != cause or not broken.message:
            raise Fault(f"a job that fails by {cause} ends with {broken!r}, not Broken({cause!r})")
    job = TrainJob(20, 20, {"bad": ""}, 7, 9, start=0, to=1, checkpoint=None)
    if not isinstance(_finished(executor, job)[-1], Done):
        raise Fault("after a job that failed the next one fails too")


def _finished(executor: Executor, job: Job) -> list[Report]:
    """All reports of a job, its end last."""
    executor.submit(job)
    free = executor.free
    # The job may be over already: then its end is among what has arrived by now.
    reports = list(executor.poll(0.0))
    if free != 0 and (not reports or isinstance(reports[-1], Unit)):
        raise Fault(f"with its only worker at work, {free} are free")
    deadline = time.monotonic() + SECONDS
    while not reports or isinstance(reports[-1], Unit):
        if time.monotonic() > deadline:
            raise Fault(f"the end of {job!r} is not reported within {SECONDS} s")
        reports += executor.poll(1.0)
    for report in reports:
        if report.identifier != job.identifier:
            raise Fault(f"a report carries identifier {report.identifier}, not {job.identifier}")
    if executor.free != 1:
        raise Fault("a worker whose job has ended is not free")
    return reports

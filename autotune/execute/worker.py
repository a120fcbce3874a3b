"""What a worker does with a job, whatever brought the job to it.

A worker keeps the run of its last training segment warm, so that a trial that goes on where it
was trained last is not thawed; and, apart from it, the run it evaluated last, so that many
evaluation configurations of one checkpoint load it once.
"""

from __future__ import annotations

import gc
import math
import random
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from errno import EDQUOT, ENOSPC
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autotune.execute.environment import environment
from autotune.execute.store import (
    CheckpointDamaged,
    OverRoom,
    Store,
    Stored,
    StoreError,
    StoreUnwritable,
)
from autotune.plugins.execution import (
    Broken,
    Done,
    EvaluateJob,
    Job,
    Oversize,
    Report,
    TrainJob,
    Unit,
)
from autotune.train.generators import seed_all
from autotune.train.task import NotFinite, Run, RunContext, Task, TaskError
from autotune.train.team import Team

FORMAT = 1
"""Of a checkpoint's outer dict: format, trial, step, configuration, seed, horizon,
environment, state."""

_MESSAGE = 500
_TRACEBACK = 20_000


@dataclass
class _Held:
    """A run in memory that stands where `checkpoint` does."""

    trial: int
    checkpoint: str
    run: Run
    exact: bool


class JobRunner:
    """Runs jobs one after the other, yielding what happens as it happens.

    Args:
        task: opens the runs.
        store: where checkpoints are kept.
        device: a torch device string, resolved (not ``auto``).
        folder: handed to runs for pretrained weights.
        objective: the metric that every unit must report, finite; None: not checked.
        interrupted: whether the job of this identifier was asked to freeze; polled after each
            unit.
        granted: waits for the answer to a job's `Oversize`, and returns its new room.
        team: the workers that train each trial together, which are all given the same jobs but
            evaluations, which are rank 0's; None: this one trains alone.
    """

    def __init__(
        self,
        task: Task,
        store: Store,
        device: str,
        folder: Path | None,
        objective: str | None = None,
        interrupted: Callable[[int], bool] = lambda identifier: False,
        granted: Callable[[int], int] | None = None,
        team: Team | None = None,
    ) -> None:
        self._task = task
        self._store = store
        self._device = device
        self._folder = folder
        self._objective = objective
        self._interrupted = interrupted
        self._granted = granted
        self._team = team
        self._environment = environment(device) | ({"team": team.size} if team else {})
        self._warm: _Held | None = None
        self._evaluated: _Held | None = None
        self._step = 0

    def run(self, job: Job) -> Iterator[Report]:
        """Reports of a job: units in order, then `Oversize` where its room is too small, then
        one `Done` or `Broken`. Raises nothing that the task raises."""
        self._step = job.start if isinstance(job, TrainJob) else job.step
        try:
            if isinstance(job, TrainJob):
                yield from self._train(job)
            else:
                yield self._evaluate(job)
        except (Exception, SystemExit) as error:
            broken = Broken(
                job.identifier,
                self._step,
                cause_of(error),
                _short(error),
                "".join(traceback.format_exception(error))[-_TRACEBACK:],
            )
            # the traceback holds the frames, and they the run, until the handler ends
            if isinstance(job, TrainJob):
                self._warm = None
            else:
                self._evaluated = None
        else:
            return
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        yield broken

    # --- training ---------------------------------------------------------------------------

    def _train(self, job: TrainJob) -> Iterator[Report]:
        begun = time.perf_counter()
        held, self._warm = self._warm, None
        warm = held is not None and (held.trial, held.checkpoint) == (job.trial, job.checkpoint)
        if self._team:  # one may have given its run up to an evaluation
            warm = not self._team.any(not warm)
        if held and warm:
            run, exact = held.run, held.exact
        else:
            held = None
            run, exact = self._open(job, job.checkpoint, job.start)
        while run.step < job.to:
            before = time.perf_counter()
            metrics = run.train()
            seconds = time.perf_counter() - before
            if run.step != self._step + 1:
                raise TaskError(
                    f"the run stands at step {run.step} after one unit from {self._step}"
                )
            metrics = self._finite(_numbers(metrics, "train"))
            self._step = run.step
            yield Unit(job.identifier, run.step, metrics, seconds)
            interrupted = self._interrupted(job.identifier)
            if self._team.any(interrupted) if self._team else interrupted:
                break
        static = _numbers(run.static(), "static") if job.start == 0 else {}
        stored = yield from self._frozen(job, run)
        self._warm = _Held(job.trial, stored.name, run, exact)
        yield Done(
            job.identifier,
            run.step,
            checkpoint=stored.name,
            static=static,
            seconds=time.perf_counter() - begun,
            exact=exact,
            size=stored.size,
        )

    def _frozen(self, job: TrainJob, run: Run) -> Generator[Report, None, Stored]:
        """The run's checkpoint, which rank 0 writes for its team."""
        if self._team is None:
            return (yield from self._saved(job, run))
        stored: Stored | None = None
        try:
            if self._team.rank == 0:
                stored = yield from self._saved(job, run)
        finally:
            stored = self._team.share(stored)
        if stored is None:
            raise StoreError("rank 0 of the team could not write the checkpoint")
        return stored

    def _saved(self, job: TrainJob, run: Run) -> Generator[Report, None, Stored]:
        """Write the run's checkpoint, once there is room for it."""
        content, room = self._content(job, run), job.room
        while True:
            try:
                return self._store.save(job.trial, run.step, content, room)
            except OverRoom as error:
                if self._granted is None:
                    raise
                yield Oversize(job.identifier, run.step, error.size)
                room = self._granted(job.identifier)

    def _open(self, job: Job, checkpoint: str | None, step: int) -> tuple[Run, bool]:
        """A run of the job's trial at `step`, and whether it goes on exactly."""
        begin, source = "thaw", job.trial
        if isinstance(job, TrainJob) and job.source is not None:
            begin, source = job.begin, job.source
        team = self._team if isinstance(job, TrainJob) else None
        context = RunContext(job.seed, job.horizon, self._device, self._folder, team)
        content = None if checkpoint is None else self._store.load(checkpoint)
        run = self._task.open(job.configuration, context)
        exact = True
        if content is not None:
            if content.get("format") != FORMAT:
                raise CheckpointDamaged(
                    f"checkpoint {checkpoint} has format {content.get('format')!r}; this version "
                    f"of autotune reads {FORMAT}"
                )
            of = (content["trial"], content["step"], content["configuration"])
            # What is derived from a checkpoint has another schedule, and a refinement begins anew.
            expected = {
                "thaw": (source, step, job.configuration),
                "branch": (source, step, of[2]),
                "refine": (source, *of[1:]),
            }[begin]
            if of != expected:
                raise CheckpointDamaged(
                    f"checkpoint {checkpoint} is of trial {of[0]} at {of[1]}, or of another "
                    f"configuration than trial {source} at {step}"
                )
            {"thaw": run.thaw, "branch": run.branch, "refine": run.refine}[begin](content["state"])
            exact = content["environment"] == self._environment
        if run.step != step:
            raise TaskError(f"the run stands at step {run.step} after thawing, not at {step}")
        return run, exact

    def _content(self, job: TrainJob, run: Run) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "trial": job.trial,
            "step": run.step,
            "configuration": job.configuration,
            "seed": job.seed,
            "horizon": job.horizon,
            "environment": self._environment,
            "state": run.freeze(),
        }

    def _finite(self, metrics: dict[str, float]) -> dict[str, float]:
        name = self._objective
        if name is None:
            return metrics
        if name not in metrics:
            raise TaskError(
                f"the task reported {', '.join(sorted(metrics)) or 'no metric'}, but the "
                f"objective is {name!r}"
            )
        if not math.isfinite(metrics[name]):
            raise NotFinite(f"{name} is {metrics[name]} at step {self._step + 1}")
        return metrics

    # --- evaluation -------------------------------------------------------------------------

    def _evaluate(self, job: EvaluateJob) -> Done:
        """Evaluate on a run of its own: the warm training run must go on as if nothing had
        happened, so the random generators of the process are put back too. They are seeded
        by the trial, so a result does not depend on what the worker did before."""
        begun = time.perf_counter()
        with random_state_kept(self._device):
            seed_all(job.seed, torch.device(self._device))
            results = None
            try:
                results = self._measure(job)
            except (torch.OutOfMemoryError, MemoryError):
                if self._warm is None:
                    raise
            if results is None:
                # two runs did not fit: give up the warm one, which is in the store
                self._warm = None
                gc.collect()
                results = self._measure(job)
        return Done(job.identifier, job.step, seconds=time.perf_counter() - begun, **results)

    def _measure(self, job: EvaluateJob) -> dict[str, Any]:
        held, self._evaluated = self._evaluated, None
        if held is None or (held.trial, held.checkpoint) != (job.trial, job.checkpoint):
            held = None  # free it before another takes its memory
            run, exact = self._open(job, job.checkpoint, job.step)
            held = _Held(job.trial, job.checkpoint, run, exact)
        run = held.run
        results: dict[str, Any] = {"exact": held.exact}
        if job.what == "stream":
            results["select"] = _numbers(run.evaluate(job.evaluation, "select"), "evaluate")
            results["report"] = _numbers(run.evaluate(job.evaluation, "report"), "evaluate")
        elif job.what == "alone":
            latency, spread = run.latency(job.evaluation)
            results["select"] = results["report"] = {"latency_ms": float(latency)}
            results["spread"] = {"latency_ms": float(spread)}
        else:
            results["report"] = _numbers(run.test(job.evaluation), "test")
        self._evaluated = held
        return results


def cause_of(error: BaseException) -> str:
    """The cause, as in `Broken.cause`, of an exception or of what it was raised from."""
    link: BaseException | None = error
    while link is not None:
        text = str(link)
        if isinstance(link, NotFinite):
            return "not_finite"
        if isinstance(link, torch.OutOfMemoryError | MemoryError) or (
            isinstance(link, RuntimeError)
            and ("can't allocate memory" in text or "out of memory" in text)
        ):
            return "out_of_memory"
        if isinstance(link, CheckpointDamaged):
            return "checkpoint"
        if isinstance(link, StoreUnwritable):
            return "disk"
        if isinstance(link, OSError) and link.errno in (ENOSPC, EDQUOT):
            return "disk"
        # libraries written in other languages keep the system's text, not its error number
        if "No space left on device" in text:
            return "disk"
        link = link.__cause__
    return "error"


def resolve_device(device: str, worker: int) -> str:
    """The torch device of worker number `worker` (from 0): ``auto`` is CUDA where there is
    one; several accelerators are dealt out in turn.

    Raises:
        TaskError: CUDA is wanted and there is none.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        if not torch.cuda.is_available():
            raise TaskError("device is 'cuda', but torch sees no CUDA device; use 'cpu' or 'auto'")
        return f"cuda:{worker % torch.cuda.device_count()}"
    return device


def _short(error: BaseException) -> str:
    """One line for people: the kind of error unless it is one of ours, and what it says."""
    text = " ".join(str(error).split())
    if not isinstance(error, NotFinite | TaskError | StoreError):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text if len(text) <= _MESSAGE else text[: _MESSAGE - 3] + "..."


def _numbers(metrics: Mapping[str, Any], method: str) -> dict[str, float]:
    """Metrics as plain floats; a one-element tensor or array is its value."""
    if not isinstance(metrics, Mapping):
        raise TaskError(f"{method} returned {type(metrics).__name__}, not a mapping of metrics")
    plain = {}
    for name, value in metrics.items():
        try:
            plain[str(name)] = float(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TaskError(
                f"metric {name!r} of {method} is {value!r:.80}, not a number"
            ) from error
    return plain


@contextmanager
def random_state_kept(device: str) -> Iterator[None]:
    """Put the process's random generators back on leaving."""
    accelerators = [torch.device(device)] if torch.device(device).type == "cuda" else []
    python, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(accelerators):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy_state)  # noqa: NPY002

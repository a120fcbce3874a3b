"""Contract of executors: they run jobs on workers and report what happened.

A job is plain values (it crosses process borders as JSON); a report likewise. The task itself
reaches a worker once, when it starts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias

from autotune.plugins.base import Plugin
from autotune.space import Configuration


@dataclass(frozen=True)
class TrainJob:
    """Train `trial` from a checkpoint (None: from nothing) to unit `to`, then freeze.

    Args:
        identifier: unique in the study, the number of the decision behind it.
        configuration: the whole training configuration.
        seed: of the trial; horizon: in units.
        start: the unit that training begins after.
        begin: what is done with the checkpoint: `Run.thaw`, `Run.branch` or `Run.refine`.
        source: the trial that the checkpoint is of; None: `trial` itself.
        room: bytes that its new checkpoint may take; None: any number. See `Oversize`.
    """

    identifier: int
    trial: int
    configuration: Configuration
    seed: int
    horizon: int
    start: int
    to: int
    checkpoint: str | None
    begin: Literal["thaw", "branch", "refine"] = "thaw"
    source: int | None = None
    room: int | None = None


@dataclass(frozen=True)
class EvaluateJob:
    """Evaluate a checkpoint under an evaluation configuration. `what` is ``stream`` (metrics
    on both parts of the shifted stream), ``alone`` (latency; nothing else runs meanwhile) or
    ``test`` (the winner's one look at the test split)."""

    identifier: int
    trial: int
    configuration: Configuration
    seed: int
    horizon: int
    step: int
    checkpoint: str
    evaluation: Configuration
    what: Literal["stream", "alone", "test"]


Job: TypeAlias = TrainJob | EvaluateJob


@dataclass(frozen=True)
class Unit:
    """One unit of training was completed. Arrives while the segment runs."""

    identifier: int
    step: int
    metrics: Mapping[str, float]
    seconds: float


@dataclass(frozen=True)
class Done:
    """The job ended well. A training job's checkpoint is on durable storage by now.
    `step` may be short of the job's target after `Executor.interrupt`.

    A training job that began at 0 carries `static`. Of an evaluation job, ``stream`` fills
    `select` and `report` with the metrics of the two parts, ``alone`` both with
    ``latency_ms`` and `spread` with its half-width, ``test`` only `report`. `size` is the
    checkpoint's in bytes."""

    identifier: int
    step: int
    checkpoint: str | None = None
    static: Mapping[str, float] = field(default_factory=dict)
    select: Mapping[str, float] = field(default_factory=dict)
    report: Mapping[str, float] = field(default_factory=dict)
    spread: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    exact: bool = True
    size: int = 0


@dataclass(frozen=True)
class Oversize:
    """A training job is at its end at unit `step`, but its checkpoint takes `size` bytes, more
    than its room. The worker has written nothing, keeps the run and waits for
    `Executor.grant`; the driver makes room first, so that the study's byte budget holds."""

    identifier: int
    step: int
    size: int


@dataclass(frozen=True)
class Broken:
    """The job ended badly for a reason of its own (as in `Failed.cause`), or because its
    checkpoint is missing or damaged (cause ``checkpoint``)."""

    identifier: int
    step: int
    cause: str
    message: str
    traceback: str = ""


@dataclass(frozen=True)
class WorkerLost:
    """The job's worker died; the executor has replaced it. Not the configuration's fault as
    far as anyone knows: the study retries a bounded number of times."""

    identifier: int
    message: str


Report: TypeAlias = Unit | Oversize | Done | Broken | WorkerLost


@dataclass(frozen=True)
class Limits:
    """What a study's execution may take, apart from its budget.

    Args:
        segment_seconds: a segment or evaluation that takes longer is ended, and its trial has
            failed (cause ``timeout``); None: no limit. Whatever the limit, a worker that says
            nothing for much longer than units have taken so far is replaced (`autotune.leases`).
        checkpoint_bytes: what all checkpoints together may take on disk, at any moment.
    """

    segment_seconds: float | None = None
    checkpoint_bytes: int = 10 * 10**9


@dataclass(frozen=True)
class ExecutionContext:
    """What an executor is given when it opens.

    Args:
        task: the task object, or its importable address ``module:object`` or
            ``/absolute/file.py:object``, which workers import themselves.
        folder: the study's folder; checkpoints go under ``checkpoints/``, pretrained weights
            under ``pretrained/``, workers' output under ``logs/``.
        workers: how many segments run at once.
        plugins: the (kind, name, distribution, version) that workers must find alike.
        device: ``cpu``, ``cuda`` or ``auto``.
        objective: the curve metric that drives the search. A unit that does not report it is
            an error of the task; one where it is NaN or infinite ends the segment with the
            cause ``not_finite``. None: not checked.
        options: the executor's own options from the study file.
        checkpoint_url: of the folder of the study's checkpoints, which every worker reaches;
            None: in `folder`.
        loaded: the task itself, where `task` is its address; None: not at hand.
    """

    task: Any
    folder: Path
    workers: int
    plugins: Sequence[tuple[str, str, str, str]]
    device: str = "auto"
    seed: int = 0
    objective: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    checkpoint_url: str | None = None
    loaded: Any = None


class Executor(Plugin, ABC):
    """Runs jobs on `capacity` workers. Used by one thread."""

    kind: ClassVar[str] = "executor"
    virtual_clock: ClassVar[bool] = False
    option_names: ClassVar[tuple[str, ...]] = ()
    """The options that `open` understands, so that a study file's misspelt one is told early."""

    @abstractmethod
    def open(self, context: ExecutionContext) -> None:
        """Bring the workers up. Raises `PluginError` with a message for people."""

    @property
    @abstractmethod
    def free(self) -> int:
        """How many more jobs may be submitted now."""

    @property
    def gpus(self) -> float:
        """GPUs that each worker holds, or the share of one, once it is open."""
        return 0.0

    @abstractmethod
    def submit(self, job: Job) -> str:
        """Hand a job to a free worker, and return what people call that worker. A worker that
        holds the trial warm is preferred."""

    @abstractmethod
    def poll(self, timeout: float) -> list[Report]:
        """Reports that have arrived, in order per job; waits up to `timeout` seconds for the
        first. May return none earlier, when a worker has become free."""

    @abstractmethod
    def interrupt(self) -> None:
        """Ask running segments to freeze at the end of the unit they are in."""

    @abstractmethod
    def revoke(self, identifier: int) -> None:
        """End the worker of a job that takes too long and bring up another in its place. When
        this returns the job writes nothing more, and none of its reports arrives any more; of a
        job that has ended meanwhile only the reports are dropped."""

    def grant(self, identifier: int, room: int) -> None:
        """Answer an `Oversize`: the job's checkpoint may take `room` bytes now. Only asked of an
        executor that reports one."""
        raise NotImplementedError

    @abstractmethod
    def close(self) -> None:
        """Stop the workers; idempotent."""

    def now(self) -> float | None:
        """Virtual seconds since `open` if `virtual_clock`, else None."""
        return None

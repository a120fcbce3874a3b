"""Who carries out what, until when; and how often a job that was lost is tried again.

A job is handed out under a lease. One that is overdue is revoked: its worker is ended, and
whatever it may still report is nobody's. So no trial is ever trained twice at once, and a worker
that hangs costs one segment, not the night.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from autotune.plugins.execution import Job, Limits, TrainJob
from autotune.plugins.search import (
    Evaluate,
    Evaluated,
    Event,
    Frozen,
    Lost,
    Measure,
    Observed,
    Start,
    Thaw,
)

LOSSES = 3
"""A job that is lost this many times in a row, for whatever cause, has failed; and so has a trial
whose checkpoints could not be read as often."""

PATIENCE = 20.0
"""A worker that trains hangs if it says nothing for so many times the longest unit of its trial (of
all trials, before its first). One that evaluates has nothing to say before its end, and how long
that takes is the configuration's: only the user's limit counts."""

SILENCE = 900.0
"""But never before so many seconds, which opening a run or compiling a model may take. While no
unit has ended yet nothing is known, and only the user's limit counts."""


@dataclass
class Lease:
    """A job in a worker's hands. Times are those of a clock that never goes back.

    Args:
        holder: what people call the worker.
        begun: when it was handed out; heard: when the worker last reported anything.
        wants: bytes of a finished checkpoint that waits for room, which is not the worker's fault.
    """

    job: Job
    decision: Start | Thaw | Evaluate | Measure | None
    holder: str
    begun: float
    heard: float
    wants: int | None = None

    def go_on(self, now: float) -> None:
        """It has the room that it waited for; the wait counts against nothing."""
        self.begun += now - self.heard
        self.heard, self.wants = now, None


@dataclass(frozen=True)
class Overdue:
    """A lease that is to be revoked, and why. `for_good`: it would be so again."""

    lease: Lease
    message: str
    for_good: bool


class Leases:
    """All leases, by the number of the decision behind the job."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._held: dict[int, Lease] = {}
        self._slowest: dict[int, float] = {}
        self._slowest_unit = 0.0

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[Lease]:
        return iter(self._held.values())

    def observe(self, event: Event) -> None:
        """Note how long things take."""
        match event:
            case Observed(trial=number, seconds=seconds):
                self._slowest[number] = max(seconds, self._slowest.get(number, 0.0))
                self._slowest_unit = max(seconds, self._slowest_unit)
            case _:
                pass

    def take(self, lease: Lease) -> None:
        """Note a lease. A second one to train the same trial is a bug."""
        if isinstance(lease.job, TrainJob):
            for other in self._held.values():
                if isinstance(other.job, TrainJob) and other.job.trial == lease.job.trial:
                    raise RuntimeError(
                        f"bug: trial {lease.job.trial} is trained by {other.holder} (decision "
                        f"{other.job.identifier}) and would be by {lease.holder}"
                    )
        self._held[lease.job.identifier] = lease

    def hear(self, identifier: int, now: float) -> Lease | None:
        """The lease of a job that is reported of; None if it was revoked."""
        lease = self._held.get(identifier)
        if lease is not None:
            lease.heard = now
        return lease

    def end(self, lease: Lease) -> None:
        """The job is over, or given up."""
        del self._held[lease.job.identifier]

    def overdue(self, now: float) -> list[Overdue]:
        """What is to be revoked."""
        limit = self._limits.segment_seconds
        found = []
        for lease in self._held.values():
            if lease.wants is not None:
                continue
            silence = self._silence(lease.job)
            if limit is not None and now - lease.begun > limit:
                message = f"it took more than {limit:g} s (limits: segment_minutes)"
                found.append(Overdue(lease, f"{message}; {lease.holder} was ended", True))
            elif now - lease.heard > silence:
                message = f"{lease.holder} said nothing for {silence:.0f} s and was ended"
                found.append(Overdue(lease, message, False))
        return found

    def _silence(self, job: Job) -> float:
        """Seconds without a word after which the job's worker hangs."""
        if not isinstance(job, TrainJob):
            return math.inf
        longest = self._slowest.get(job.trial, self._slowest_unit)
        return max(SILENCE, PATIENCE * longest) if longest else math.inf


class Retries:
    """A fold of events: how often jobs were lost in a row, and trials for their checkpoints."""

    def __init__(self) -> None:
        self._in_a_row: dict[tuple[int, str], int] = {}
        self._unreadable: dict[int, int] = {}

    def observe(self, event: Event) -> None:
        """Fold one event."""
        match event:
            case Lost(trial=trial, evaluation=evaluation, cause=cause) if cause != "withdrawn":
                key = (trial, repr(evaluation))
                self._in_a_row[key] = self._in_a_row.get(key, 0) + 1
                if cause == "checkpoint":
                    self._unreadable[trial] = self._unreadable.get(trial, 0) + 1
            case Frozen(trial=trial):
                self._in_a_row.pop((trial, repr(None)), None)
            case Evaluated(trial=trial, evaluation=evaluation):
                self._in_a_row.pop((trial, repr(evaluation)), None)
            case _:
                pass

    def spent(self, trial: int, evaluation: object, cause: str) -> bool:
        """Whether another loss is one too many."""
        lost = self._in_a_row.get((trial, repr(evaluation)), 0) + 1
        if cause == "checkpoint":
            lost = max(lost, self._unreadable.get(trial, 0) + 1)
        return lost >= LOSSES

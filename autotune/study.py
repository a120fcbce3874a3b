"""The loop that joins decide, execute and record.

A worker is free: ask the search, record the decision, hand the job to the executor. A report
arrives: record it, show it to the search. Whatever is in memory here is a fold of the record, so
a driver that is killed at any moment is replaced by one that folds the record and goes on.
"""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch

from autotune.ahead import Pace
from autotune.decide.holdout import Guard
from autotune.execute.environment import single_threaded
from autotune.execute.remote_store import open_store
from autotune.execute.store import CheckpointStore
from autotune.header import Header, StudyError
from autotune.jobs import job_of, job_step
from autotune.keeping import Keeper
from autotune.leases import LOSSES, Lease, Leases, Retries
from autotune.plugins.base import PluginError
from autotune.plugins.execution import (
    Broken,
    Done,
    EvaluateJob,
    ExecutionContext,
    Executor,
    Job,
    Limits,
    Oversize,
    Report,
    TrainJob,
    Unit,
    WorkerLost,
)
from autotune.plugins.search import (
    Decided,
    Decision,
    Doubt,
    Equipped,
    Evaluate,
    Evaluated,
    Event,
    Evicted,
    Extended,
    Failed,
    Finalists,
    Frozen,
    Key,
    Lost,
    Measure,
    Observed,
    Restarted,
    Start,
    Stop,
    Thaw,
    Wait,
)
from autotune.plugins.trials import Trials
from autotune.record import Record, RecordError, resume_command
from autotune.result import StudyView
from autotune.surroundings import stop_if_unreachable, stop_if_unwritable, told_of_signals
from autotune.task_faults import (
    NothingWorks,
    check_constrained,
    check_guardable,
    check_reported,
    nothing_works,
)
from autotune.winner import POLL_SECONDS, run_alone, scored

Listener = Callable[[Trials, Event], None]
"""Told of every event once it is appended to the record and folded. It is on disk a moment later,
before anything that follows from it is carried out."""

FIRST_FAILURES = 5
"""If so many trials in a row fail by an error, and none ever trained, the task is at fault."""

_QUIET_SECONDS, _PATIENCE_SECONDS = 0.01, 0.05
"""Reports are put on disk, which takes a flush, when none has arrived for so long, and at the
latest so long after the first: the end of a segment soon follows its last unit."""

_GLANCE_SECONDS = 0.002
"""How often the thread that decides is looked for while reports are awaited."""

_UPKEEP_SECONDS = 15.0


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM: everything is frozen and recorded, the study can be resumed."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number


Task = tuple[Job, Start | Thaw | Evaluate | Measure]
"""A job, and the decision behind it."""


class Driver:
    """Runs one study to its end, or until it is interrupted.

    Args:
        record: open for writing, with the header in it.
        search: the deciding part, fresh; the record's events are folded into it here.
        executor: not yet open.
        execution: what the executor is opened with.
        bound_from: tells from which share of its horizon a training configuration depends on
            it.
        limits: of segments and checkpoints.
        listeners: told of every new event.
    """

    def __init__(
        self,
        record: Record,
        header: Header,
        search: Any,
        executor: Executor,
        execution: ExecutionContext,
        bound_from: Callable[[Any], float | None],
        limits: Limits,
        listeners: Sequence[Listener] = (),
    ) -> None:
        self.record = record
        self.header = header
        self.search = search
        self.executor = executor
        self.execution = execution
        self.bound_from = bound_from
        self.listeners = listeners
        self.trials: Trials = search.trials
        self.leases = Leases(limits)
        self.retries = Retries()
        self.guard = Guard(search.context) if search.context.holdout is not None else None
        self.store = open_store(record.folder, execution.checkpoint_url)
        # Checkpoints of a virtual executor are names only.
        self.keeper = (
            None
            if executor.virtual_clock
            else Keeper(self.store, self.trials, limits.checkpoint_bytes, self._evict, self._commit)
        )
        self.damaged: dict[str, tuple[int, int, str]] = {}
        self.held: Task | None = None
        self.ahead: deque[Task] = deque()
        self.pace = Pace()
        self.signal: int | None = None
        self.stopped: Stop | None = None
        self.errors: list[Failed] = []
        self._waiting = False
        self._upkept = time.monotonic()
        self._uncommitted_since: float | None = None
        for event in record.events():
            self._fold(event)
        clock = float(record.meta.get("clock", 0.0))
        self._offset = max(clock, self.trials.at)
        self._began = time.monotonic()
        self._opened = False

    # --- the whole --------------------------------------------------------------------------

    def run(self) -> None:
        """Run until the search stops and its winner is scored.

        Raises:
            Interrupted: on SIGINT or SIGTERM, after freezing.
            NothingWorks: if every trial fails.
            PluginError: if the executor cannot come up.
            RecordError: if the record cannot be written.
        """
        self._take_up()
        # torch counts threads by the thread that asks
        self._helper = ThreadPoolExecutor(1, "decide", torch.set_num_threads, (1,))
        with told_of_signals(self._told), single_threaded():
            try:
                self.executor.open(self.execution)
                self._opened = True
                self._equip()
                self._search()
                self._give_up_if_nothing_works(at_least=1)
                self._score_winner()
                self._upkeep(force=True)
                self._note_end()
            finally:
                self._helper.shutdown()
                self.executor.close()
                with suppress(RecordError):  # if it cannot be written, that is raised already
                    self._commit()
                    self._note_clock()

    def view(self, task: Any = None) -> StudyView:
        """The study as it stands now; it shares the trials, so it holds until the next event."""
        log = self.record
        return StudyView.folded(
            log.folder, log.meta, self.search.context, self.trials, log.count, task
        )

    def _take_up(self) -> None:
        """Lose what was in flight, and compare the disk with the record: what killed workers
        left goes, what is missing is recorded, and all that is kept is within the budget."""
        missing = [] if self.keeper is None else self.keeper.open()
        if self.record.count:
            self._emit(Restarted(at=self._now()))
            self.errors.clear()
        if self.keeper is None:
            return
        for number, step in missing:
            self._evict_damaged(number, step, "it is missing")
        if not self.keeper.fits():
            self._over_budget(0)

    def _equip(self) -> None:
        """Record what the workers hold, where that is any GPU or was."""
        gpus = self.executor.gpus
        if not gpus and self.search.context.budget.gpu_seconds is not None:
            raise PluginError(
                f"budget: gpu_seconds counts the time in which workers hold GPUs, but the workers "
                f"of executor {self.executor.name} hold none (device {self.execution.device}); "
                f"expected device cuda or, of executor ray, num_gpus above 0; or name seconds, "
                f"which counts the clock"
            )
        if gpus != self.trials.gpus:
            self._emit(Equipped(gpus, self._now()))
            self._commit()

    def _now(self) -> float:
        if not self.executor.virtual_clock:
            return self._offset + time.monotonic() - self._began
        return self._offset + ((self.executor.now() or 0.0) if self._opened else 0.0)

    def _told(self, number: int) -> bool:
        first = self.signal is None
        self.signal = self.signal or number
        return first

    # --- the search -------------------------------------------------------------------------

    def _search(self) -> None:
        asked = False
        while True:
            if self.signal is not None or self._overdue():
                if not asked:
                    self.executor.interrupt()
                asked = True
                if self.signal is None:
                    self._drop_ahead()
            else:
                asked = False
            if self.signal is not None:
                if not self.leases:
                    self._leave()
            else:
                self._hand_out()
                self._decide_ahead()
                if self.stopped is not None and not self.leases and not self.ahead:
                    self._commit()
                    return
            self._receive()

    def _overdue(self) -> bool:
        """Whether a segment is in flight although the time for training is over."""
        if not any(isinstance(lease.job, TrainJob) for lease in self.leases):
            return False
        deadline = self.search.deadline()
        late = deadline is not None and self._now() > deadline
        return late or bool(self.search.overspent())

    def _hand_out(self) -> None:
        """Ask for decisions and carry them out while workers are free."""
        self._begin_ahead()
        while (
            self.stopped is None
            and self.held is None
            and not self._waiting
            and self._worker_is_free()
            and not self.damaged  # or the next would begin from what is known to be damaged
        ):
            if any(isinstance(lease.decision, Measure) for lease in self.leases):
                return
            if self.ahead:
                if not self._begin_ahead():
                    return
                continue
            taken = self._taken(self._decide())
            if taken is not None and not self._begin(*taken):
                self.held = taken

    def _decide(self) -> Decision:
        began = time.monotonic()
        decision: Decision = self.search.decide(Key(self.header.seed, self.trials.decisions))
        self.pace.decided(time.monotonic() - began)
        return decision

    def _taken(self, decision: Decision) -> Task | None:
        """Record a decision, and return what it says to run now, if anything."""
        if isinstance(decision, Wait):
            if not self.leases:
                raise StudyError("the policy waits although nothing is in flight")
            self._waiting = True  # until something has happened
            return None
        if isinstance(decision, Start):
            decision = replace(decision, bound_from=self.bound_from(decision.configuration))
        number = self.trials.decisions
        self._emit(Decided(number, decision, at=self._now()))
        self._commit()  # before it is carried out
        if isinstance(decision, Stop):
            self.stopped = decision
            return None
        if isinstance(decision, Finalists | Doubt):
            return None  # it says what comes next
        job = job_of(number, decision, self.trials, self.header.seed)
        if job is None:
            message = "the checkpoint that it was to begin from is gone"
            self._emit(Failed(decision.trial, 0, "disk", message, at=self._now()))
            return None
        return job, decision

    # --- deciding ahead ---------------------------------------------------------------------

    def _decide_ahead(self) -> None:
        """Take the next decisions while all workers are busy, if that pays. Beside the thread
        that decides, reports are taken in but not handled: the decision must not see half of
        an event, and comes before them in the record."""
        while self._may_decide_ahead():
            arrived = self.executor.poll(0.0)
            if arrived:  # which the decision is to know
                for report in arrived:
                    self._handle(report)
                continue
            deciding = self._helper.submit(self._decide)
            while not deciding.done():
                arrived += self.executor.poll(_GLANCE_SECONDS)
                self._begin_ahead(evict=False)
            taken = self._taken(deciding.result())
            if taken is not None and isinstance(taken[1], Measure):
                self.held = taken
            elif taken is not None:
                self.ahead.append(taken)
            self._begin_ahead()
            for report in arrived:
                self._handle(report)

    def _may_decide_ahead(self) -> bool:
        return (
            self.pace.pays
            and self.execution.workers > 1  # the events of one do not depend on the clock
            and not self.executor.virtual_clock
            and self.stopped is None
            and self.signal is None
            and self.held is None
            and not self._waiting
            and not self.damaged
            and len(self.ahead) < self.execution.workers
            and self.executor.free == 0
            and all(isinstance(lease.job, TrainJob) for lease in self.leases)
            and not self._overdue()
        )

    def _begin_ahead(self, evict: bool = True) -> bool:
        """Have free workers begin what was decided ahead. False if something must wait for room,
        which no checkpoint may be evicted for while a decision is being taken."""
        while self.ahead and self.signal is None and self.executor.free > 0:
            if not self._begin(*self.ahead[0], evict=evict):
                return False
            self.ahead.popleft()
        return True

    def _drop_ahead(self) -> None:
        """The time for training is over: what has not begun is not begun any more."""
        while self.ahead:
            job, _ = self.ahead.popleft()
            message = "its time was over before it began"
            self._emit(Lost(job.trial, message, None, self._now(), "withdrawn"))

    def _worker_is_free(self) -> bool:
        """Whether a worker is free once all that has arrived is folded: a decision that does
        not know why its worker is free would be a guess, and slow decisions would leave short
        segments unseen for ever."""
        while self.executor.free > 0:
            reports = self.executor.poll(0.0)
            if not reports:  # an idle worker may have died meanwhile, which nothing reports
                return self.signal is None and self.executor.free > 0
            for report in reports:
                self._handle(report)
        return False

    def _begin(
        self, job: Job, decision: Start | Thaw | Evaluate | Measure, evict: bool = True
    ) -> bool:
        """Hand a job to a worker. False if other jobs must end first: all of them, for what is
        measured alone; one, if there is no room for another checkpoint."""
        if isinstance(decision, Measure) and (self.leases or self.ahead):
            return False
        if isinstance(job, TrainJob) and self.keeper is not None:
            room = self.keeper.reserve(job, whatever=not self.leases and evict, evict=evict)
            if room is None:
                return False
            job = replace(job, room=room)
        holder, now = self.executor.submit(job), time.monotonic()
        self.leases.take(Lease(job, decision, holder, now, now))
        return True

    # --- reports ----------------------------------------------------------------------------

    def _receive(self) -> None:
        for report in self._awaited():
            self._handle(report)
        self._revoke_overdue()
        self._grant_room()
        if (
            self.held is not None
            and self.signal is None
            and self.executor.free > 0
            and self._begin(*self.held)
        ):
            self.held = None
        self._upkeep()

    def _revoke_overdue(self) -> None:
        """End the workers that hang, and jobs that take longer than they may."""
        if self.executor.virtual_clock:
            return
        for overdue in self.leases.overdue(time.monotonic()):
            self.executor.revoke(overdue.lease.job.identifier)
            self.leases.end(overdue.lease)
            self._lose(overdue.lease, "timeout", overdue.message, for_good=overdue.for_good)

    def _grant_room(self) -> None:
        """Let checkpoints be written that turned out larger than the room they had. If all wait
        for one another's room, the last that began gives way, and is trained again later."""
        while self.keeper is not None:
            waiting = [lease for lease in self.leases if lease.wants is not None]
            for lease in list(waiting):
                assert lease.wants is not None
                if self.keeper.enlarge(lease.job.identifier, lease.wants):
                    self.executor.grant(lease.job.identifier, lease.wants)
                    lease.go_on(time.monotonic())
                    waiting.remove(lease)
            if not waiting or len(waiting) < len(self.leases):
                return
            if len(waiting) == 1:
                self._over_budget(waiting[0].wants or 0)
            last = max(waiting, key=lambda lease: (lease.begun, lease.job.identifier))
            self.executor.revoke(last.job.identifier)
            self.leases.end(last)
            self._give_back(last.job)
            message = "there was no room for its checkpoint beside another one's"
            self._emit(Lost(last.job.trial, message, None, self._now(), "withdrawn"))

    def _awaited(self) -> list[Report]:
        """The next reports. What has happened is put on disk meanwhile, unless they follow at
        once."""
        if self._uncommitted_since is None:
            return self.executor.poll(POLL_SECONDS)
        reports = []
        if time.monotonic() < self._uncommitted_since + _PATIENCE_SECONDS:
            reports = self.executor.poll(_QUIET_SECONDS)
        if not reports:
            self._commit()
        return reports

    def _handle(self, report: Report) -> None:
        lease = self.leases.hear(report.identifier, time.monotonic())
        if lease is None:
            return  # of a worker whose lease was revoked
        job, at = lease.job, self._now()
        if isinstance(report, Oversize):
            lease.wants = report.size
            return
        if isinstance(report, Unit):
            if not self.trials.units:
                check_reported(self.trials.objectives, "curve", report.metrics)
                check_guardable(self.guard, report.metrics)
            raw = Observed(job.trial, report.step, report.metrics, report.seconds, at)
            self._emit(raw if self.guard is None else self.guard.guarded(raw))
            return
        self.leases.end(lease)
        evaluation = job.evaluation if isinstance(job, EvaluateJob) else None
        match report:
            case Done() if isinstance(job, TrainJob):
                assert report.checkpoint is not None, "a training job ends with a checkpoint"
                if job.start == 0:
                    check_reported(self.trials.objectives, "static", report.static)
                self._emit(
                    Frozen(
                        job.trial,
                        report.step,
                        report.checkpoint,
                        report.static,
                        report.seconds,
                        report.exact,
                        at,
                        report.size,
                    )
                )
                check_constrained(self.trials, job.trial)
                if self.keeper is not None:
                    self.keeper.release(job.identifier)
            case Done():
                assert evaluation is not None
                self._emit(
                    Evaluated(
                        job.trial,
                        report.step,
                        evaluation,
                        report.select,
                        report.report,
                        report.spread,
                        report.seconds,
                        at,
                    )
                )
            case Broken(cause="checkpoint"):
                self._lose_checkpoint(lease, report.message)
            case Broken(cause="disk"):
                if isinstance(self.store, CheckpointStore):
                    stop_if_unwritable(self.record.folder, self.store.folder, report.message)
                stop_if_unreachable(self.store, self.record.folder)
                self._lose(lease, "disk", report.message)
            case Broken():
                self._give_back(job)
                self._emit(
                    Failed(
                        job.trial,
                        report.step,
                        report.cause,  # type: ignore[arg-type]
                        report.message,
                        evaluation,
                        at,
                        "" if report.cause == "not_finite" else report.traceback,
                        time.monotonic() - lease.begun,
                    )
                )
                self._give_up_if_nothing_works()
            case WorkerLost():
                self._lose(lease, "worker_died", report.message)

    def _lose(self, lease: Lease, cause: Any, message: str, for_good: bool = False) -> None:
        """A job came to nothing: it is tried again, unless that happened too often, or would
        happen again."""
        job, seconds = lease.job, time.monotonic() - lease.begun
        self._give_back(job)
        evaluation, at = getattr(job, "evaluation", None), self._now()
        if not for_good:
            if not self.retries.spent(job.trial, evaluation, cause):
                self._emit(Lost(job.trial, message, evaluation, at, cause, seconds))
                return
            message = f"lost {LOSSES} times in a row, at last: {message}"
        step = self.trials[job.trial].last if evaluation is None else job_step(job)
        cause = "disk" if cause == "checkpoint" else cause
        self._emit(Failed(job.trial, step, cause, message, evaluation, at, seconds=seconds))

    def _lose_checkpoint(self, lease: Lease, message: str) -> None:
        """A checkpoint could not be read: if it is damaged the trial falls back to its last good
        one, if not (a worker saw it otherwise) it is tried again. What was to begin from another
        trial's checkpoint cannot begin without."""
        stop_if_unreachable(self.store, self.record.folder)
        job = lease.job
        damaged = job.checkpoint is not None and not self.store.intact(job.checkpoint)
        source = job.source if isinstance(job, TrainJob) else None
        self._lose(lease, "checkpoint", message, for_good=damaged and source is not None)
        if damaged and job.checkpoint is not None:
            self._give_up_checkpoint(
                job.trial if source is None else source, job.checkpoint, message
            )

    def _give_up_checkpoint(self, number: int, name: str, message: str) -> None:
        """Evict a damaged checkpoint, unless somebody found it so before: once nothing that is
        in flight needs to find its trial as it was."""
        for step, kept in self.trials[number].checkpoints.items():
            if kept == name:
                self.damaged[name] = (number, step, message)
        self._evict_given_up()

    def _evict_given_up(self) -> None:
        for name, (number, step, message) in list(self.damaged.items()):
            trial = self.trials[number]
            if trial.checkpoints.get(step) != name:
                self.damaged.pop(name, None)
            elif trial.status != "running" and all(step != at for at, _ in trial.evaluating):
                self.damaged.pop(name, None)
                self._evict_damaged(number, step, message)

    def _give_back(self, job: Job) -> None:
        """What a training job that came to nothing wrote, and the room it had."""
        if self.keeper is not None and isinstance(job, TrainJob):
            self.keeper.sweep(job.trial)
            self.keeper.release(job.identifier)

    def _emit(self, event: Event) -> None:
        """Append an event to the record, fold it and tell the listeners. What cannot happen is
        not recorded: a record with it in could never be folded again."""
        self.trials.check(event)
        if self._uncommitted_since is None:
            self._uncommitted_since = time.monotonic()
        recorded = self.record.append(event)
        self._fold(recorded)
        for listener in self.listeners:
            listener(self.trials, recorded)
        if self.damaged:
            self._evict_given_up()

    def _commit(self) -> None:
        """Have all events on disk."""
        self.record.commit()
        self._uncommitted_since = None

    def _fold(self, event: Event) -> None:
        self._waiting = False
        if self.guard is not None:
            self.guard.observe(event)
        known = isinstance(event, Frozen | Evicted) and self.trials.all.get(event.trial)
        before = set(known.checkpoints.values()) if known else set()
        self.search.observe(event)
        self.leases.observe(event)
        self.retries.observe(event)
        if self.keeper is not None:
            self.keeper.observe(event, before)
        match event:
            case Decided(decision=Stop() as stop):
                self.stopped = stop
            case Extended():
                self.stopped = None
            case Frozen():
                self.pace.ended(event.seconds)
            case Failed(evaluation=None):
                self.errors.append(event)
            case _:
                pass

    def _give_up_if_nothing_works(self, at_least: int = FIRST_FAILURES) -> None:
        failed = [e for e in self.errors if e.cause == "error"]
        if self.trials.units or len(failed) < at_least or len(failed) < len(self.errors):
            return
        raise NothingWorks(nothing_works(failed))

    # --- the end ----------------------------------------------------------------------------

    def _leave(self) -> None:
        self._upkeep(force=True)
        assert self.signal is not None
        name = signal.Signals(self.signal).name
        raise Interrupted(
            self.signal,
            f"stopped by {name}; everything is frozen and recorded in {self.record.folder}",
        )

    def _score_winner(self) -> None:
        """Look at the test split once, with the best point, and record what it says."""
        if "winner" in self.record.meta:
            return
        winner = scored(self.view, self._run_alone, self.store, self._evict_damaged)
        if winner is None:
            return
        self.record.set_meta("winner", winner)
        if self.signal is not None:
            self._leave()

    def _run_alone(self, job: EvaluateJob) -> Done | Broken | WorkerLost:
        self._commit()  # what led to it
        return run_alone(job, self.executor, self.leases)

    def _note_end(self) -> None:
        assert self.stopped is not None
        self.record.set_meta(
            "finished", {"reason": self.stopped.reason, "seconds": round(self._now(), 3)}
        )

    # --- upkeep -----------------------------------------------------------------------------

    def _upkeep(self, force: bool = False) -> None:
        """Now and then: note the clock, copy the record, then delete what nothing needs. In
        this order, so that a copy never points to a checkpoint that is gone."""
        if not force and time.monotonic() - self._upkept < _UPKEEP_SECONDS:
            return
        self._commit()
        self._note_clock()
        self.record.back_up()
        if self.keeper is not None:
            self.keeper.clean()
        self._upkept = time.monotonic()

    def _note_clock(self) -> None:
        self.record.set_meta("clock", self._now())

    # --- checkpoints ------------------------------------------------------------------------

    def _evict(self, number: int, step: int) -> None:
        self._emit(Evicted(number, step, "budget", at=self._now()))
        self._commit()  # before it is deleted

    def _evict_damaged(self, number: int, step: int, message: str) -> None:
        self._emit(Evicted(number, step, "damaged", message, self._now()))

    def _over_budget(self, wanted: int) -> None:
        assert self.keeper is not None
        used, limit = self.keeper.used, self.keeper.limit
        further = f", and {wanted / 1e9:.3g} GB more are to be written" if wanted else ""
        raise StudyError(
            f"the checkpoints that must be kept (of the front, and of what is in flight) take "
            f"{used / 1e9:.3g} GB{further}; the study's budget for them is {limit / 1e9:.3g} GB. "
            f"Nothing recorded is lost: go on with a larger one, by "
            f"`{resume_command(self.record.folder)} --checkpoint-gb NUMBER` "
            f"(limits={{'checkpoint_gb': NUMBER}} in Python)"
        )

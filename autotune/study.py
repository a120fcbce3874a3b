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
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from autotune.ahead import Pace
from autotune.decide.final import best_run
from autotune.decide.holdout import Guard
from autotune.execute.environment import single_threaded
from autotune.execute.remote_store import open_store
from autotune.header import Header, StudyError
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
    WorkerLost,
)
from autotune.plugins.search import (
    Decided,
    Decision,
    Doubt,
    Evaluate,
    Evaluated,
    Event,
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
from autotune.plugins.trials import Trial, Trials
from autotune.record import Record, RecordError
from autotune.result import StudyView, best_of, points_of
from autotune.surroundings import stop_if_full, stop_if_unreachable, told_of_signals
from autotune.task_faults import NothingWorks, check_guardable, check_reported, nothing_works

Listener = Callable[[Trials, Event], None]
"""Told of every event once it is appended to the record and folded. It is on disk a moment later,
before anything that follows from it is carried out."""

LOSSES = 3
"""A job whose worker dies this many times in a row has failed."""

FIRST_FAILURES = 5
"""If so many trials in a row fail by an error, and none ever trained, the task is at fault."""

_POLL_SECONDS = 0.25

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


@dataclass
class _Running:
    """A job that an executor has."""

    job: Job
    decision: Start | Thaw | Evaluate | Measure | None


class Driver:
    """Runs one study to its end, or until it is interrupted.

    Args:
        record: open for writing, with the header in it.
        search: the deciding part, fresh; the record's events are folded into it here.
        executor: not yet open.
        execution: what the executor is opened with.
        bound_from: tells from which share of its horizon a training configuration depends on
            it.
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
        self._needless: set[str] = set()
        self.guard = Guard(search.context) if search.context.holdout is not None else None
        self.store = open_store(record.folder, execution.checkpoint_url)
        self.running: dict[int, _Running] = {}
        self.held: _Running | None = None
        self.ahead: deque[_Running] = deque()
        self.pace = Pace()
        self.losses: dict[Any, int] = {}
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
        if self.record.count:
            self._emit(Restarted(at=self._now()))
            self.errors.clear()
        self._clear_away()
        # torch counts threads by the thread that asks
        self._helper = ThreadPoolExecutor(1, "decide", torch.set_num_threads, (1,))
        with told_of_signals(self._told), single_threaded():
            try:
                self.executor.open(self.execution)
                self._opened = True
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
                if not self.running:
                    self._leave()
            else:
                self._hand_out()
                self._decide_ahead()
                if self.stopped is not None and not self.running and not self.ahead:
                    self._commit()
                    return
            self._receive()

    def _overdue(self) -> bool:
        """Whether a segment is in flight although the time for training is over."""
        deadline = self.search.deadline()
        return (
            deadline is not None
            and any(isinstance(r.job, TrainJob) for r in self.running.values())
            and self._now() > deadline
        )

    def _hand_out(self) -> None:
        """Ask for decisions and carry them out while workers are free."""
        self._begin_ahead()
        while (
            self.stopped is None
            and self.held is None
            and not self._waiting
            and self._worker_is_free()
        ):
            if any(isinstance(r.decision, Measure) for r in self.running.values()):
                return
            if self.ahead:
                self._begin_ahead()
                continue
            taken = self._taken(self._decide())
            if taken is not None:
                self._submit(taken)

    def _decide(self) -> Decision:
        began = time.monotonic()
        decision: Decision = self.search.decide(Key(self.header.seed, self.trials.decisions))
        self.pace.decided(time.monotonic() - began)
        return decision

    def _taken(self, decision: Decision) -> _Running | None:
        """Record a decision, and return what it says to run now, if anything."""
        if isinstance(decision, Wait):
            if not self.running:
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
        running = _Running(self._job(number, decision), decision)
        if isinstance(decision, Measure) and (self.running or self.ahead):
            self.held = running  # until every other segment has ended
            return None
        return running

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
                self._begin_ahead()
            taken = self._taken(deciding.result())
            if taken is not None:
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
            and len(self.ahead) < self.execution.workers
            and self.executor.free == 0
            and all(isinstance(running.job, TrainJob) for running in self.running.values())
            and not self._overdue()
        )

    def _begin_ahead(self) -> None:
        """Have free workers begin what was decided ahead."""
        while self.ahead and self.signal is None and self.executor.free > 0:
            self._submit(self.ahead.popleft())

    def _drop_ahead(self) -> None:
        """The time for training is over: what has not begun is not begun any more."""
        while self.ahead:
            job = self.ahead.popleft().job
            self._emit(Lost(job.trial, "its time was over before it began", None, self._now()))

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

    def _submit(self, running: _Running) -> None:
        self.running[running.job.identifier] = running
        self.executor.submit(running.job)

    def _job(self, number: int, decision: Start | Thaw | Evaluate | Measure) -> Job:
        trial = self.trials[decision.trial]
        if isinstance(decision, Start | Thaw):
            job = TrainJob(
                identifier=number,
                trial=trial.number,
                configuration=trial.configuration,
                seed=self._seed(trial),
                horizon=trial.horizon,
                start=trial.frozen,
                to=decision.to,
                checkpoint=trial.checkpoint,
            )
            if trial.origin is None or trial.checkpoint is not None:
                return job
            origin = trial.origin
            return replace(
                job,
                checkpoint=self.trials[origin.trial].checkpoints[origin.step],
                begin="branch" if origin.how == "cooldown" else "refine",
                source=origin.trial,
            )
        what = "alone" if isinstance(decision, Measure) else "stream"
        return self._evaluation(number, trial.number, decision.step, decision.evaluation, what)

    def _seed(self, trial: Trial) -> int:
        """A trial's seed: a cooldown goes on with the one of the trial that it is branched off."""
        origin = trial.origin
        of = origin.trial if origin is not None and origin.how == "cooldown" else trial.number
        return trial_seed(self.header.seed, of)

    def _evaluation(
        self, number: int, trial: int, step: int, evaluation: Any, what: Any
    ) -> EvaluateJob:
        return EvaluateJob(
            identifier=number,
            trial=trial,
            configuration=self.trials[trial].configuration,
            seed=self._seed(self.trials[trial]),
            horizon=self.trials[trial].horizon,
            step=step,
            checkpoint=self.trials[trial].checkpoints[step],
            evaluation=evaluation,
            what=what,
        )

    # --- reports ----------------------------------------------------------------------------

    def _receive(self) -> None:
        for report in self._awaited():
            self._handle(report)
        if (
            self.held is not None
            and not self.running
            and not self.ahead
            and self.signal is None
            and self.executor.free > 0
        ):
            held, self.held = self.held, None
            self._submit(held)
        self._upkeep()

    def _awaited(self) -> list[Report]:
        """The next reports. What has happened is put on disk meanwhile, unless they follow at
        once."""
        if self._uncommitted_since is None:
            return self.executor.poll(_POLL_SECONDS)
        reports = []
        if time.monotonic() < self._uncommitted_since + _PATIENCE_SECONDS:
            reports = self.executor.poll(_QUIET_SECONDS)
        if not reports:
            self._commit()
        return reports

    def _handle(self, report: Report) -> None:
        running = self.running[report.identifier]
        job, at = running.job, self._now()
        if isinstance(report, Unit):
            if not self.trials.units:
                check_reported(self.trials.objectives, "curve", report.metrics)
                check_guardable(self.guard, report.metrics)
            raw = Observed(job.trial, report.step, report.metrics, report.seconds, at)
            self._emit(raw if self.guard is None else self.guard.guarded(raw))
            return
        del self.running[report.identifier]
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
            case Broken():
                if report.cause == "disk":
                    stop_if_full(self.record.folder, report.message)
                    stop_if_unreachable(self.store, self.record.folder)
                self._emit(
                    Failed(
                        job.trial,
                        report.step,
                        report.cause,  # type: ignore[arg-type]
                        report.message,
                        evaluation,
                        at,
                        "" if report.cause == "not_finite" else report.traceback,
                    )
                )
                self._give_up_if_nothing_works()
            case WorkerLost():
                if self.losses.get(_subject(job), 0) + 1 >= LOSSES:
                    message = f"its worker died {LOSSES} times in a row: {report.message}"
                    step = self.trials[job.trial].last if evaluation is None else job_step(job)
                    self._emit(Failed(job.trial, step, "worker_died", message, evaluation, at))
                else:
                    self._emit(Lost(job.trial, report.message, evaluation, at))

    def _emit(self, event: Event) -> None:
        """Append an event to the record, fold it and tell the listeners."""
        if self._uncommitted_since is None:
            self._uncommitted_since = time.monotonic()
        recorded = self.record.append(event)
        self._fold(recorded)
        for listener in self.listeners:
            listener(self.trials, recorded)

    def _commit(self) -> None:
        """Have all events on disk."""
        self.record.commit()
        self._uncommitted_since = None

    def _fold(self, event: Event) -> None:
        self._waiting = False
        if self.guard is not None:
            self.guard.observe(event)
        before = self._kept(event) if isinstance(event, Frozen) else set()
        self.search.observe(event)
        match event:
            case Decided(decision=Stop() as stop):
                self.stopped = stop
            case Extended():
                self.stopped = None
            case Lost(trial=trial, evaluation=evaluation):
                key = (trial, repr(evaluation))
                self.losses[key] = self.losses.get(key, 0) + 1
            case Frozen(trial=trial, checkpoint=name):
                self.pace.ended(event.seconds)
                self.losses.pop((trial, repr(None)), None)
                self._needless |= (before | {name}) - self._kept(event)
            case Evaluated(trial=trial, evaluation=evaluation):
                self.losses.pop((trial, repr(evaluation)), None)
            case Failed(evaluation=None):
                self.errors.append(event)
            case _:
                pass

    def _kept(self, event: Frozen) -> set[str]:
        known = self.trials.all.get(event.trial)
        return set() if known is None else set(known.checkpoints.values())

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
        view = StudyView(self.record.folder)
        points = points_of(view)
        best = best_of(points, view.context, best_run(self.trials))
        if best is None:
            return
        winner: dict[str, Any] = {
            "trial": best.trial,
            "step": best.step,
            "evaluation": best.evaluation,
        }
        for _ in range(LOSSES):
            number = self.trials.decisions
            job = self._evaluation(number, best.trial, best.step, best.evaluation, "test")
            report = self._run_alone(job)
            if isinstance(report, Done):
                winner["metrics"] = dict(report.report)
                break
            winner["failure"] = report.message
            if isinstance(report, Broken):
                break
        self.record.set_meta("winner", winner)
        if self.signal is not None:
            self._leave()

    def _run_alone(self, job: EvaluateJob) -> Done | Broken | WorkerLost:
        while self.executor.free < 1:  # a dead worker's successor is on its way
            self.executor.poll(_POLL_SECONDS)
        self.executor.submit(job)
        while True:
            for report in self.executor.poll(_POLL_SECONDS):
                if isinstance(report, Done | Broken | WorkerLost):
                    return report

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
        while self._needless:
            self.store.delete(self._needless.pop())
        self._upkept = time.monotonic()

    def _note_clock(self) -> None:
        self.record.set_meta("clock", self._now())

    def _clear_away(self) -> None:
        """Remove checkpoints that a killed driver's workers left without being recorded."""
        self.store.prepare()
        recorded = {n for trial in self.trials.all.values() for n in trial.checkpoints.values()}
        self._needless.clear()
        for stored in self.store.list():
            if stored.name not in recorded:
                self.store.delete(stored.name)


def trial_seed(seed: int, trial: int) -> int:
    """The seed of a trial: a function of the study's seed and the trial's number, below 2**31."""
    return int(np.random.SeedSequence([seed, trial]).generate_state(1)[0] >> 1)


def job_step(job: Job) -> int:
    """The unit that a job starts from."""
    return job.start if isinstance(job, TrainJob) else job.step


def _subject(job: Job) -> tuple[int, str]:
    return job.trial, repr(job.evaluation if isinstance(job, EvaluateJob) else None)

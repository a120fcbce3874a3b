"""Whatever happens in whatever order, the trials' states stay legal and nothing is lost.

The real driver, search and keeper, on workers that do what hypothesis says: they report units,
freeze, fail, die, hang, come too late, find their checkpoint damaged; and the driver is killed.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from puppets import WORKERS, Log, Puppets

from autotune import study
from autotune.decide import build_search
from autotune.decide.configurations import identity
from autotune.execute.store import checkpoint_bytes, checkpoint_name, digest_of
from autotune.header import StudyError
from autotune.leases import LOSSES, SILENCE
from autotune.pareto import non_dominated
from autotune.plugins.discovery import get
from autotune.plugins.execution import (
    Broken,
    Done,
    Job,
    Limits,
    Oversize,
    TrainJob,
    Unit,
    WorkerLost,
)
from autotune.plugins.search import (
    Budget,
    Decided,
    Event,
    Evicted,
    Failed,
    Final,
    Frozen,
    Key,
    Lost,
    Objective,
    Observed,
    SearchContext,
    Start,
    Stop,
    Thaw,
)
from autotune.plugins.trials import IllegalEvent, Trials
from autotune.space import Float, Integer, Space

LIMIT = 400_000
SIZES = (20_000, 60_000)
SEARCH = {
    "policy": {"name": "asha"},
    "proposer": {"name": "random"},
    "forecaster": {"name": "last_value"},
}
CONTEXT = SearchContext(
    space=Space({"rate": Float(1e-4, 1.0, log=True, default=0.01), "width": Integer(1, 64)}),
    evaluation_space=Space({"smoothing": Float(0.0, 1.0, default=0.5)}),
    objectives=(
        Objective("loss", "minimize", "curve"),
        Objective("error", "minimize", "curve"),
        Objective("shifted", "minimize", "evaluation"),
    ),
    horizon=9,
    budget=Budget(units=60, evaluations=4),
    seed=3,
    workers=WORKERS,
)


class Interleavings(RuleBasedStateMachine):
    """See the module."""

    context, limit = CONTEXT, LIMIT

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="states-"))
        self.clock = 0.0
        self.patch = mock.patch.object(study, "time", SimpleNamespace(monotonic=lambda: self.clock))
        self.patch.start()
        self.log = Log(self.folder)
        self.harmed: set[str] = set()
        self.helper = ThreadPoolExecutor(1)
        self.take_up()

    def take_up(self) -> None:
        self.puppets = Puppets()
        self.driver = study.Driver(
            self.log,  # type: ignore[arg-type]
            SimpleNamespace(seed=self.context.seed),  # type: ignore[arg-type]
            build_search(self.context, SEARCH, get),
            self.puppets,
            SimpleNamespace(workers=WORKERS, checkpoint_url=None),  # type: ignore[arg-type]
            lambda configuration: None,
            Limits(segment_seconds=3000.0, checkpoint_bytes=self.limit),
            [self.look],
        )
        self.driver._helper = self.helper
        self.driver.pace = SimpleNamespace(  # type: ignore[assignment]
            pays=True, decided=lambda seconds: None, ended=lambda seconds: None
        )
        self.log.commit()  # what it has read
        self.delete = self.driver.store.delete
        self.driver.store.delete = self.delete_checked  # type: ignore[method-assign]
        self.driver._take_up()

    def delete_checked(self, name: str) -> bool:
        """What is on disk of the record never speaks of a checkpoint that was deleted."""
        trials = Trials(self.context.space, self.context.objectives)
        for event in self.log.told[: self.log.committed]:
            trials.observe(event)
        assert all(name not in trial.checkpoints.values() for trial in trials.all.values())
        return self.delete(name)

    def look(self, trials: Trials, event: Event) -> None:
        """At every event: no checkpoint on the front goes for the budget's sake."""
        if not (isinstance(event, Evicted) and event.cause == "budget"):
            return
        gone = (event.trial, event.step)
        left = [(n, step) for n, trial in trials.all.items() for step in trial.checkpoints]
        rows = [
            [trials[n].metrics[step]["loss"], trials[n].metrics[step]["error"]]
            for n, step in [gone, *left]
        ]
        front = non_dominated(rows)
        assert not front[0] or rows[0] in rows[1:], f"{gone} was on the front"
        assert event.trial not in trials.in_flight
        assert not any(job.checkpoint in self.names(gone) for job in self.puppets.jobs.values())

    @staticmethod
    def names(where: tuple[int, int]) -> set[str]:
        return {f"trial-{where[0]:05d}-step-{where[1]:06d}"}

    # --- what workers do --------------------------------------------------------------------

    def some(self, data: Any, *kinds: type) -> Job:
        jobs = [j for j in self.puppets.jobs.values() if not kinds or isinstance(j, kinds)]
        return data.draw(st.sampled_from(sorted(jobs, key=lambda job: job.identifier)))

    def busy(self) -> bool:
        return bool(self.puppets.jobs)

    def intact(self, job: Job) -> bool:
        """As a worker does, looks at the checkpoint first; if it is damaged, says so."""
        if job.checkpoint is None or self.driver.store.intact(job.checkpoint):
            return True
        self.puppets.over(Broken(job.identifier, 0, "checkpoint", "its content does not match"))
        return False

    @rule()
    def decide(self) -> None:
        self.driver._hand_out()

    @rule()
    def hear(self) -> None:
        self.driver._receive()

    @precondition(busy)
    @rule(data=st.data(), ahead=st.integers(0, 9))
    def decide_ahead(self, data: Any, ahead: int) -> None:
        """The next decisions are taken while all train, and one goes on meanwhile: in the midst of
        the first decision, as far as the driver can tell."""
        job, decide = self.some(data), self.driver._decide
        gone_on = threading.Event()

        def meanwhile() -> None:
            if ahead and self.intact(job):
                self.advance(job, ahead, SIZES[0])
            gone_on.set()

        def decide_then() -> Any:
            assert gone_on.wait(10.0)
            return decide()

        self.puppets.meanwhile = meanwhile
        with mock.patch.object(self.driver, "_decide", decide_then):
            self.driver._decide_ahead()
        self.puppets.meanwhile = None

    @precondition(lambda self: self.driver.ahead)
    @rule()
    def run_out_of_time(self) -> None:
        """What was decided ahead is not begun any more."""
        self.driver._drop_ahead()

    @precondition(busy)
    @rule(data=st.data(), ahead=st.integers(1, 9))
    def work(self, data: Any, ahead: int) -> None:
        """Some units of a job, and its end if that is near."""
        job = self.some(data)
        if self.intact(job):
            self.advance(job, ahead, data.draw(st.integers(*SIZES)))

    def advance(self, job: Job, ahead: int, size: int) -> None:
        if not isinstance(job, TrainJob):
            values = {"shifted": float(job.trial % 7)}
            self.puppets.over(Done(job.identifier, job.step, select=values, report=values))
            return
        identifier = job.identifier
        for step in range(self.puppets.step[identifier] + 1, job.to + 1)[:ahead]:
            rng = np.random.default_rng([job.trial, step])
            loss = rng.random() / step
            metrics = {"loss": loss, "error": loss * rng.uniform(0.9, 1.0)}
            self.puppets.reports.append(Unit(identifier, step, metrics, 1.0))
            self.puppets.step[identifier] = step
        if self.puppets.step[identifier] == job.to:
            self.freeze(job, size)

    def freeze(self, job: TrainJob, size: int) -> None:
        size = self.puppets.waiting.get(job.identifier, size)
        if size > self.puppets.room[job.identifier]:
            if job.identifier not in self.puppets.waiting:
                self.puppets.waiting[job.identifier] = size
                self.puppets.reports.append(Oversize(job.identifier, job.to, size))
            return
        name = self.write(job, size)
        self.puppets.over(Done(job.identifier, job.to, checkpoint=name, size=size))

    def write(self, job: TrainJob, size: int) -> str:
        data = np.random.default_rng([job.trial, job.to, size]).bytes(size)
        name = checkpoint_name(job.trial, job.to, digest_of(data))
        (self.driver.store.folder / name).write_bytes(data)
        self.harmed.discard(name)
        self.within()
        return name

    @precondition(busy)
    @rule(data=st.data(), cause=st.sampled_from(["not_finite", "out_of_memory", "error"]))
    def fail(self, data: Any, cause: str) -> None:
        job = self.some(data)
        self.puppets.over(Broken(job.identifier, 0, cause, "broken"))

    @precondition(busy)
    @rule(data=st.data(), left=st.sampled_from(["nothing", "unfinished", "finished"]))
    def die(self, data: Any, left: str) -> None:
        """A worker dies, perhaps while it writes, or before it could say that it has."""
        job = self.some(data)
        self.leave(job, left)
        self.puppets.over(WorkerLost(job.identifier, "its worker was killed"))

    def leave(self, job: Job, left: str) -> None:
        if not isinstance(job, TrainJob):
            return
        size = min(SIZES[0], self.puppets.room[job.identifier])
        if left == "unfinished":
            path = self.driver.store.folder / f".unfinished-{job.trial:05d}-ab"
            path.write_bytes(bytes(size))
        elif left == "finished" and size:
            self.write(job, size)

    @precondition(busy)
    @rule(data=st.data(), left=st.sampled_from(["nothing", "unfinished", "finished"]))
    def hang(self, data: Any, left: str) -> None:
        """Nothing is heard for long: leases end."""
        self.leave(self.some(data), left)
        self.clock += SILENCE + 1
        self.driver._receive()

    @precondition(lambda self: self.puppets.revoked)
    @rule(data=st.data(), done=st.booleans())
    def come_too_late(self, data: Any, done: bool) -> None:
        """A report of a job that was revoked counts for nothing."""
        job = data.draw(st.sampled_from(self.puppets.revoked))
        step = job.to if isinstance(job, TrainJob) else job.step
        late = Done(job.identifier, step, "late") if done else Unit(job.identifier, step, {}, 1.0)
        before = len(self.log.told)
        self.driver._handle(late)
        assert len(self.log.told) == before

    # --- what befalls the rest --------------------------------------------------------------

    @rule(data=st.data(), missing=st.booleans())
    def damage(self, data: Any, missing: bool) -> None:
        """A checkpoint is damaged on the disk, or removed."""
        names = sorted(path.name for path in self.driver.store.folder.glob("trial-*.safetensors"))
        if not names:
            return
        name = data.draw(st.sampled_from(names))
        self.harmed.add(name)
        path = self.driver.store.folder / name
        if missing:
            path.unlink()
        else:
            path.write_bytes(b"x" * path.stat().st_size)

    @rule(data=st.data(), left=st.sampled_from(["nothing", "unfinished", "finished"]))
    def kill_the_driver(self, data: Any, left: str) -> None:
        if self.puppets.jobs:
            self.leave(self.some(data), left)
        kept = {n for t in self.driver.trials.all.values() for n in t.checkpoints.values()}
        if kept and not any((self.driver.store.folder / name).exists() for name in kept):
            with pytest.raises(StudyError, match=f"none of the study's {len(kept)} checkpoints"):
                self.take_up()
            for name in kept:
                (self.driver.store.folder / name).write_bytes(b"x")
        self.take_up()

    # --- what must hold ---------------------------------------------------------------------

    def within(self) -> None:
        assert checkpoint_bytes(self.folder) <= self.limit

    @invariant()
    def holds(self) -> None:
        if not hasattr(self, "driver"):
            return
        self.within()
        trials = self.driver.trials
        training = {j.trial for j in self.puppets.jobs.values() if isinstance(j, TrainJob)}
        begun_later = {job.trial for job, _ in self.driver.ahead}
        assert training | begun_later <= set(trials.in_flight)
        assert not training & begun_later
        on_disk = {path.name for path in self.driver.store.folder.glob("trial-*.safetensors")}
        kept = {name for t in trials.all.values() for name in t.checkpoints.values()}
        assert kept <= on_disk | self.harmed

    def teardown(self) -> None:
        if not hasattr(self, "driver"):
            return
        try:
            self.finish()
            self.check_the_record()
        finally:
            self.clear()

    def clear(self) -> None:
        self.patch.stop()
        self.helper.shutdown()
        shutil.rmtree(self.folder, ignore_errors=True)

    def finish(self) -> None:
        """From wherever it stands, a study whose workers do their work ends."""
        for _ in range(600):
            self.driver._receive()
            self.within()
            if self.driver.stopped is not None and not self.driver.leases and not self.driver.ahead:
                return
            self.driver._hand_out()
            for job in list(self.puppets.jobs.values()):
                if self.intact(job):
                    self.advance(job, 9, SIZES[1])
        raise AssertionError("the study does not end")

    def check_the_record(self) -> None:
        search = build_search(self.context, SEARCH, get)
        started: Counter[str] = Counter()
        in_a_row: Counter[tuple[int, str]] = Counter()
        over: set[int] = set()
        for event in self.log.told:
            if isinstance(event, Decided):
                decision = event.decision
                assert search.decide(Key(self.context.seed, event.number)) == decision
                if isinstance(decision, Start) and decision.repeat_of is None:
                    started[identity(decision.configuration)] += 1
                assert not isinstance(decision, Start | Thaw) or decision.trial not in over
            if isinstance(event, Lost) and event.cause != "withdrawn":
                in_a_row[event.trial, repr(event.evaluation)] += 1
            if isinstance(event, Frozen):
                in_a_row[event.trial, "None"] = 0
            if isinstance(event, Failed) and event.evaluation is None:
                over.add(event.trial)
            search.observe(event)
        assert max(started.values(), default=0) <= 1, "a configuration was begun twice"
        assert max(in_a_row.values(), default=0) < LOSSES
        found, folded = self.driver.trials, search.trials
        assert repr(found.all) == repr(folded.all)
        assert found.units == folded.units == sum(len(t.metrics) for t in folded.all.values())
        assert isinstance(self.driver.stopped, Stop)


class WithFinalPhase(Interleavings):
    """Two finalists are finished, and trained again on two other seeds each; none of their
    checkpoints may go."""

    limit = 900_000

    context = replace(CONTEXT, budget=Budget(units=90, evaluations=4), final=Final(2, 2, share=0.6))

    def check_the_record(self) -> None:
        super().check_the_record()
        trials = self.driver.trials
        failed = sum(trial.status == "failed" for trial in trials.all.values())
        assert trials.finalists is not None or failed
        assert trials.units <= 90


def _settings(examples: int) -> settings:
    return settings(
        max_examples=examples,
        stateful_step_count=40,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )


TestInterleavings = Interleavings.TestCase
TestInterleavings.settings = _settings(10)
TestWithFinalPhase = WithFinalPhase.TestCase
TestWithFinalPhase.settings = _settings(6)


# --- one after the other --------------------------------------------------------------------


def test_two_workers_find_the_same_checkpoint_damaged() -> None:
    """It goes once the second has said so too; nothing is decided on it meanwhile."""
    machine = Interleavings()
    machine.context = replace(CONTEXT, budget=Budget(units=1, evaluations=4))
    machine.begin()
    driver, puppets = machine.driver, machine.puppets
    try:
        driver._hand_out()
        (job,) = puppets.jobs.values()
        for _ in range(2):  # at its end it waits for room
            machine.advance(job, 9, SIZES[0])
            driver._receive()
        driver._hand_out()
        assert len(puppets.jobs) == WORKERS
        (name,) = {job.checkpoint for job in puppets.jobs.values()}
        assert name is not None
        (driver.store.folder / name).write_bytes(b"x")
        first, second = puppets.jobs.values()
        count = driver.record.count
        assert not machine.intact(first)
        driver._receive()
        driver._hand_out()
        assert not machine.intact(second)
        driver._receive()
        events = machine.log.told[count:]
        assert [type(event) for event in events] == [Lost, Lost, Evicted]
        machine.take_up()  # the record can be folded
    finally:
        machine.teardown()


def test_jobs_that_wait_for_each_others_room_give_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two checkpoints turn out so large that neither can be written beside what the other one has
    been promised: the job that began last is taken back, and trained again later."""
    monkeypatch.setattr(sys.modules[__name__], "SIZES", (20_000, 20_000))
    machine = Interleavings()
    machine.limit = 100_000
    machine.begin()
    driver, puppets = machine.driver, machine.puppets
    try:
        driver._hand_out()
        for _ in range(2):  # at their end they wait for room
            for job in list(puppets.jobs.values()):
                machine.advance(job, 9, 20_000)
            driver._receive()
        driver._hand_out()
        first, second = puppets.jobs.values()
        for job in (first, second):
            machine.advance(job, 9, 70_000)
        driver._receive()
        assert list(puppets.jobs.values()) == [first]
        lost = next(event for event in reversed(machine.log.told) if isinstance(event, Lost))
        assert (lost.trial, lost.cause) == (second.trial, "withdrawn")
        machine.advance(first, 9, 70_000)
        driver._receive()
        assert driver.trials[first.trial].checkpoint is not None
    finally:
        machine.teardown()
    assert driver.trials[second.trial].segments, "it was trained in the end"


def two_checkpoints(machine: Interleavings) -> list[str]:
    """A trial's, of which the second makes the first needless; not on disk yet."""
    driver = machine.driver
    driver._emit(Decided(0, Start(0, CONTEXT.space.default(), 9, 1)))
    names = [checkpoint_name(0, step, "ab" * 16) for step in (1, 2)]
    for step, name in enumerate(names, 1):
        if step == 2:
            driver._emit(Decided(1, Thaw(0, 2)))
            driver._commit()
        (driver.store.folder / name).write_bytes(b"x")
        driver._emit(Observed(0, step, {"loss": 1.0 / step, "error": 1.0 / step}, 1.0))
        driver._emit(Frozen(0, step, name, size=1))
    return names


def test_no_file_goes_before_what_makes_it_needless_is_on_disk() -> None:
    machine = Interleavings()
    machine.begin()
    driver = machine.driver
    assert driver.keeper is not None
    try:
        names = two_checkpoints(machine)
        driver.keeper.clean()
        assert [path.name for path in driver.store.folder.iterdir()] == names[1:]
    finally:
        machine.clear()


def test_what_cannot_be_deleted_takes_its_bytes_until_it_can() -> None:
    machine = Interleavings()
    machine.begin()
    driver, keeper = machine.driver, machine.driver.keeper
    assert keeper is not None
    try:
        names = two_checkpoints(machine)
        driver.store.delete = lambda name: False  # type: ignore[method-assign]
        keeper.clean()
        assert keeper.used == 2
        driver.store.delete = machine.delete_checked  # type: ignore[method-assign]
        keeper.clean()
        assert keeper.used == 1
        assert [path.name for path in driver.store.folder.iterdir()] == names[1:]
    finally:
        machine.clear()


def test_what_cannot_happen_is_not_recorded() -> None:
    machine = Interleavings()
    machine.begin()
    try:
        machine.driver._hand_out()
        before = list(machine.log.told)
        with pytest.raises(IllegalEvent):
            machine.driver._emit(Evicted(0, 3, "damaged"))
        assert machine.log.told == before
    finally:
        machine.teardown()


# --- the table of moves ---------------------------------------------------------------------


def running() -> Trials:
    trials = Trials(CONTEXT.space, CONTEXT.objectives)
    trials.observe(Decided(0, Start(0, CONTEXT.space.default(), 9, 3)))
    return trials


def frozen() -> Trials:
    trials = running()
    for step in (1, 2, 3):
        trials.observe(Observed(0, step, {"loss": 1.0 / step, "error": float(step)}, 1.0))
    trials.observe(Frozen(0, 3, "three"))
    return trials


@pytest.mark.parametrize(
    ("trials", "event", "words"),
    [
        (running(), Decided(1, Thaw(0, 5)), "trial 0 is running"),
        (running(), Decided(1, Start(0, {}, 9, 3)), "trial 0 is running"),
        (running(), Observed(0, 4, {}, 1.0), "trial 0 is running"),
        (running(), Observed(7, 1, {}, 1.0), "trial 7 is unknown"),
        (running(), Evicted(0, 3, "budget"), "trial 0 is running"),
        (frozen(), Observed(0, 4, {}, 1.0), "trial 0 is frozen at unit 3"),
        (frozen(), Frozen(0, 4, "four"), "trial 0 is frozen at unit 3"),
        (frozen(), Lost(0, "late"), "trial 0 is frozen at unit 3"),
        (frozen(), Failed(0, 3, "error", "late"), "trial 0 is frozen at unit 3"),
        (frozen(), Decided(1, Thaw(0, 3)), "trial 0 is frozen at unit 3"),
        (frozen(), Decided(1, Thaw(0, 10)), "trial 0 is frozen at unit 3"),
        (frozen(), Evicted(0, 2, "budget"), "trial 0 is frozen at unit 3"),
    ],
)
def test_what_cannot_happen_is_a_bug(trials: Trials, event: Event, words: str) -> None:
    before = repr(trials.all)
    with pytest.raises(IllegalEvent, match=f"bug: {words}, to which this cannot happen: .*") as bug:
        trials.observe(event)
    assert repr(event) in str(bug.value)
    assert repr(trials.all) == before


def test_a_trial_falls_back_to_its_last_checkpoint_that_is_left() -> None:
    trials = frozen()
    trials.observe(Decided(1, Thaw(0, 5)))
    for step in (4, 5):
        trials.observe(Observed(0, step, {"loss": 2.0, "error": 9.0}, 1.0))
    trials.observe(Frozen(0, 5, "five"))
    trial = trials[0]
    assert trial.checkpoints == {3: "three", 5: "five"}
    trials.observe(Evicted(0, 5, "damaged"))
    assert (trial.status, trial.frozen, trial.checkpoint) == ("frozen", 3, "three")
    trials.observe(Evicted(0, 3, "budget"))
    assert (trial.status, trial.frozen, trial.checkpoint) == ("evicted", 0, None)
    assert trials.best_frozen(0) == 0
    trials.observe(Decided(2, Thaw(0, 2)))
    assert (trial.status, trial.target) == ("running", 2)
    trials.observe(Lost(0, "its worker died"))
    assert trial.status == "new"
    assert trial.last == 5, "what was observed stays"

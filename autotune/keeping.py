"""The byte budget of a study's checkpoints: what they take on disk, and which go first.

All checkpoints together never take more than the budget, not while one is written either. A job
gets room for its checkpoint before it begins: as much as the trial's last one took, or what is
usual. A worker writes no byte more than its room; one whose checkpoint turns out larger waits
until there is more (`autotune.plugins.execution.Oversize`). So

    what is on disk + what jobs in flight may write <= budget

at any moment, with however many workers, and a checkpoint goes before another is written.

Who goes first, by a rule that costs a bisection a segment:

1. what nothing needs: it is beaten by another checkpoint of its trial;
2. what is never thawed: of trials that are done or failed, and older ones of trials that go on,
   the worst first;
3. the newest checkpoints of frozen trials, the least likely to be thawed first: trials are put into
   classes by their length (1, 2-3, 4-7, ... units), since a short one is worse for being short;
   the class with the most of them gives up its worst. What is thawed in the end leads its class.

Never a point of the front, nor the best one, nor what is in flight, nor what the final phase needs.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Callable

import numpy as np

from autotune.execute.remote_store import StudyStore
from autotune.execute.store import parse_name
from autotune.header import StudyError
from autotune.pareto import non_dominated
from autotune.plugins.constraints import feasibility
from autotune.plugins.execution import TrainJob
from autotune.plugins.search import (
    Decided,
    Evaluate,
    Evaluated,
    Event,
    Evicted,
    Extended,
    Failed,
    Frozen,
    Lost,
    Measure,
    Restarted,
    Start,
    Thaw,
)
from autotune.plugins.trials import Trial, Trials

_SLACK = 4096
"""Bytes that a checkpoint may take more than the trial's last one: counters grow by digits."""

_Standing = tuple[float, float]
"""Violation of the constraints, oriented score."""

_Entry = tuple[_Standing, int, int]
"""A trial's best standing, trial, step."""


class Keeper:
    """Accounts for every checkpoint on disk, and makes room.

    Args:
        limit: the budget in bytes.
        evict: records that a checkpoint (trial, step) goes, which is on disk when it returns.
        commit: has on disk whatever is recorded, so what makes a checkpoint needless.
    """

    def __init__(
        self,
        store: StudyStore,
        trials: Trials,
        limit: int,
        evict: Callable[[int, int], None],
        commit: Callable[[], None],
    ) -> None:
        self.store = store
        self.trials = trials
        self.limit = limit
        self.used = 0
        self._evict = evict
        self._commit = commit
        self._sizes: dict[str, int] = {}
        self._needless: dict[int, set[str]] = {}
        self._stuck: set[str] = set()
        self._granted: dict[int, int] = {}
        self._usual = 0.0
        self._seen = 0
        self._best: dict[int, _Standing] = {}
        self._classes: dict[int, list[_Entry]] = {}
        self._spare: list[_Entry] = []
        self._places: dict[int, list[tuple[list[_Entry], _Entry]]] = {}
        self._busy: set[int] = set()
        self._front: dict[tuple[int, int], tuple[float, tuple[float, ...]]] = {}
        self._evaluated_front: set[tuple[int, int]] | None = set()
        self._objectives = [o for o in trials.objectives if o.kind != "evaluation"]

    # --- fold -------------------------------------------------------------------------------

    def observe(self, event: Event, before: set[str]) -> None:
        """Fold one event, which `trials` has folded already. What it makes needless is deleted
        when there is need, or at the next `clean`.

        Args:
            before: the names of the trial's checkpoints before the event.
        """
        for number, _, metrics in self.trials.settled(event):
            found = self.trials.violation(metrics), self.trials.score(metrics)
            if math.isfinite(found[1]):
                self._best[number] = min(found, self._best.get(number, found))
        match event:
            case Frozen():
                self._frozen(event, before)
            case Evicted(trial=number):
                self._give_up(number, before)
                if self._front.pop((number, event.step), None) is not None:
                    self._rebuild_front()
                self._evaluated_front = None
                self._place(self.trials[number])
            case Evaluated() | Lost() | Failed():
                if isinstance(event, Evaluated):
                    self._evaluated_front = None
                self._place(self.trials[event.trial])
            case Decided(decision=Start() | Thaw() | Evaluate() | Measure() as decision):
                self._place(self.trials[decision.trial])
            case Restarted():
                for number in list(self._busy):
                    self._place(self.trials[number])
            case Extended():  # with a longer horizon, what was done may go on
                for trial in self.trials.all.values():
                    self._place(trial)
            case _:
                pass

    def _frozen(self, event: Frozen, before: set[str]) -> None:
        trial = self.trials[event.trial]
        self._stuck.discard(event.checkpoint)
        self.used += event.size - self._sizes.get(event.checkpoint, 0)
        self._sizes[event.checkpoint] = event.size
        self._usual += (event.size - self._usual) / min(self._seen + 1, 100)
        self._seen += 1
        self._give_up(event.trial, before)
        self._add_to_front(event.trial, event.step)
        self._place(trial)

    def _give_up(self, number: int, before: set[str]) -> None:
        kept = set(self.trials[number].checkpoints.values())
        waste = (before | self._needless.pop(number, set())) - kept
        if waste:
            self._needless[number] = waste

    def _place(self, trial: Trial) -> None:
        """Put a trial's checkpoints among those that may go, unless it is in flight."""
        for held, entry in self._places.pop(trial.number, ()):
            del held[bisect_left(held, entry)]
        if trial.status == "running" or trial.evaluating:
            self._busy.add(trial.number)
            return
        self._busy.discard(trial.number)
        standing = self._best.get(trial.number, (math.inf, math.inf))
        places = []
        for step in trial.checkpoints:
            goes_on = trial.status == "frozen" and step == trial.frozen
            length = step.bit_length()
            held = self._classes.setdefault(length, []) if goes_on else self._spare
            entry = (standing, trial.number, step)
            insort(held, entry)
            places.append((held, entry))
        self._places[trial.number] = places

    # --- what never goes --------------------------------------------------------------------

    def _add_to_front(self, number: int, step: int) -> None:
        """Of equal points the earliest stands for all. What violates the constraints less stands
        before all that violates them more."""
        known = self.trials.known(number, step)
        point = tuple(o.sign * known.get(o.name, math.nan) for o in self._objectives)
        if any(map(math.isnan, point)):
            return
        new = self.trials.violation(known), point
        if any(_as_good(other, new) for other in self._front.values()):
            return
        for key, other in list(self._front.items()):
            if _as_good(new, other):
                del self._front[key]
        self._front[number, step] = new

    def _rebuild_front(self) -> None:
        self._front.clear()
        for number, trial in self.trials.all.items():
            for step in trial.checkpoints:
                self._add_to_front(number, step)

    def _evaluated(self) -> set[tuple[int, int]]:
        """Checkpoints with an evaluation that no other dominates, among those that are known to
        keep the constraints and among those that violate them least as far as is known. Looked for
        when something must go after evaluations, so seldom."""
        if self._evaluated_front is None:
            points, values, spreads, measured = [], [], [], []
            for number, trial in self.trials.all.items():
                for e in trial.evaluations:
                    if e.step in trial.checkpoints:
                        known = {**trial.static, **trial.metrics.get(e.step, {}), **e.select}
                        objectives = self.trials.objectives
                        values.append([known.get(o.name, math.inf * o.sign) for o in objectives])
                        measured.append(known)
                        spreads.append([e.spread.get(o.name, 0.0) for o in objectives])
                        points.append((number, e.step))
            signs = [o.sign for o in self.trials.objectives]
            if not points:
                return set()
            constraints = self.trials.constraints
            kept = [feasibility(constraints, known) is True for known in measured]
            beyond = [self.trials.violation(known) for known in measured]
            least = [much == min(beyond) for much in beyond]
            table = np.array(values).reshape(len(points), -1)
            self._evaluated_front = set()
            for some in (kept, least) if constraints else (kept,):
                rows = np.flatnonzero(some)
                widths = np.array(spreads).reshape(table.shape)[rows]
                good = non_dominated(table[rows], signs, widths)
                self._evaluated_front |= {points[row] for row in rows[good]}
        return self._evaluated_front

    def _protected(self, number: int, step: int) -> bool:
        trial, finalists = self.trials[number], self.trials.finalists
        if (number, step) in self._front or step in trial.origin_of:
            return True
        if finalists is not None and (not trial.own or number in finalists.trials):
            return True
        return bool(trial.evaluations) and (number, step) in self._evaluated()

    # --- room -------------------------------------------------------------------------------

    def reserve(self, job: TrainJob, whatever: bool, evict: bool) -> int | None:
        """The room of a job that is about to begin; None if there is none until another one has
        ended.

        Args:
            whatever: what is left will do; no other job runs that could make more.
            evict: checkpoints may be evicted for it now.
        """
        self.clean(job.trial)  # what it writes may bear the name of what goes
        last = self._sizes.get(job.checkpoint or "", 0)
        wanted = math.ceil(last or self._usual)
        wanted += _SLACK if wanted else 0
        if not self._make(wanted, evict):
            if not whatever:
                return None
            wanted = max(0, self._left())
        self._granted[job.identifier] = wanted
        return wanted

    def enlarge(self, identifier: int, size: int) -> bool:
        """More room for the checkpoint of a job that is at its end; False if there is none."""
        if not self._seen:
            self._usual = max(self._usual, size)
        if not self._make(size - self._granted.get(identifier, 0)):
            return False
        self._granted[identifier] = size
        return True

    def release(self, identifier: int) -> None:
        """A job has ended: its checkpoint is recorded, or it wrote none."""
        self._granted.pop(identifier, None)

    def _left(self) -> int:
        return self.limit - self.used - sum(self._granted.values())

    def _make(self, wanted: int, evict: bool = True) -> bool:
        """Whether so many bytes are left, or can be."""
        while self._left() < wanted:
            if self._needless:
                self.clean(next(iter(self._needless)))
                continue
            victim = self._victim() if evict else None
            if victim is None:
                return False
            self._evict(victim[1], victim[2])
        return True

    def _victim(self) -> _Entry | None:
        """Who goes next; None if whoever is left must stay."""
        crowded = sorted(self._classes.items(), key=lambda item: (-len(item[1]), item[0]))
        for held in [self._spare, *(entries for _, entries in crowded)]:
            for entry in reversed(held):
                if not self._protected(entry[1], entry[2]):
                    return entry
        return None

    # --- disk -------------------------------------------------------------------------------

    def open(self) -> list[tuple[int, int]]:
        """Compare the disk with the record: remove what was never recorded, and tell which
        (trial, step) are missing. Before the workers start.

        Raises:
            StudyError: if all are: then it is the storage that is missing. Nothing was touched.
        """
        found = {stored.name: stored.size for stored in self.store.list()}
        kept = {
            name: (number, step)
            for number, trial in self.trials.all.items()
            for step, name in trial.checkpoints.items()
        }
        if kept and kept.keys().isdisjoint(found):
            raise StudyError(
                f"none of the study's {len(kept)} checkpoints is in {self.store.place}; is the "
                f"storage mounted, and the folder in its place? Nothing was changed: once they "
                f"are there again, resume the study. If they are gone for good, begin another one "
                f"that this one warm-starts (warm_start)"
            )
        self.store.prepare()
        self._stuck = {name for name in found if name not in kept and not self.store.delete(name)}
        self._needless.clear()
        self._sizes = {n: size for n, size in found.items() if n in kept or n in self._stuck}
        self.used = sum(self._sizes.values())
        return [where for name, where in kept.items() if name not in found]

    def fits(self) -> bool:
        """Whether all is within the budget, once what may go has gone."""
        return self._make(0)

    def clean(self, number: int | None = None) -> None:
        """Delete what nothing needs: of one trial, or of all. That it is needless is on disk
        before. What cannot be deleted now takes its bytes until it can."""
        if number is None:
            self._retry()
        if not self._needless or (number is not None and number not in self._needless):
            return
        self._commit()
        for trial in list(self._needless) if number is None else [number]:
            for name in self._needless.pop(trial):
                self._delete(name)

    def _retry(self) -> None:
        """Delete what could not be deleted before, unless its trial may write it anew."""
        for name in sorted(self._stuck):
            trial = self.trials.all.get(parse_name(name)[0])
            if trial is None or trial.status != "running":
                self._delete(name)

    def sweep(self, number: int) -> None:
        """Remove what a worker of a trial that was ended has left behind."""
        names = set(self.trials[number].checkpoints.values())
        for left in self.store.sweep(number, names | self._needless.get(number, set())):
            self._stuck.add(left.name)
            self.used += left.size - self._sizes.get(left.name, 0)
            self._sizes[left.name] = left.size

    def _delete(self, name: str) -> None:
        if self.store.delete(name):
            self._stuck.discard(name)
            self.used -= self._sizes.pop(name, 0)
        else:
            self._stuck.add(name)


def _as_good(one: tuple[float, tuple[float, ...]], other: tuple[float, tuple[float, ...]]) -> bool:
    """Whether one point stands before another, or is equal to it."""
    if one[0] != other[0]:
        return one[0] < other[0]
    return all(a <= b for a, b in zip(one[1], other[1], strict=True))

"""The freeze-thaw policy as a Ray Tune scheduler: it pauses every trial after its segment, and says
which paused one goes on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import ConcurrencyLimiter

from autotune.integrations.ray_tune.searcher import ProposerSearch
from autotune.plugins.search import Thaw


class FreezeThawScheduler(TrialScheduler):
    """Trains a little, pauses, and thaws the trial most likely to win.

    The policy decides on paused trials and new configurations alike, so it must be given the
    searcher of the same ``Tuner``. A paused trial lives on in its checkpoint: a function trainable
    must report one with every result and begin from ``tune.get_checkpoint()``; one that begins
    again from nothing is told so in an error, not trained twice in silence. Every trial that is
    paused when the search is over is stopped.

    Args:
        search: the ``search_alg`` of the same ``TuneConfig``.
        policy, forecaster: names of installed ones, or mappings of ``name`` and hyperparameters.
        max_concurrent: trials at once; by default as many as the cluster has resources for.
    """

    _supports_buffered_results = False

    def __init__(
        self,
        search: ProposerSearch,
        policy: str | Mapping[str, Any] = "freeze_thaw",
        forecaster: str | Mapping[str, Any] = "pfn",
        max_concurrent: int | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(search, ProposerSearch):
            raise TypeError(
                f"search is a {type(search).__name__}; expected the ProposerSearch that is the "
                f"search_alg of the same TuneConfig"
            )
        self._search = search
        self._max_concurrent = max_concurrent
        self._trials: dict[str, Trial] = {}
        self._thawing: set[str] = set()
        search.scheduled = True
        search.workers = max_concurrent or 1
        for kind, given in (("policy", policy), ("forecaster", forecaster)):
            search.parts[kind] = {"name": given} if isinstance(given, str) else dict(given)

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """Metric and mode are the searcher's."""
        self._metric = metric or self._search.metric
        return True

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Know the trial. One that is tried again, or comes back with a restored experiment, is
        run by Tune whatever we say: it is thawed."""
        if isinstance(getattr(tune_controller.search_alg, "searcher", None), ConcurrencyLimiter):
            raise ValueError(
                "max_concurrent_trials counts paused trials as running ones, so that nothing would "
                "go on: leave it out, and give FreezeThawScheduler(max_concurrent=...) instead"
            )
        if trial.trial_id not in self._search.numbers:
            raise ValueError(
                "FreezeThawScheduler decides on new configurations too: give the ProposerSearch "
                "that it was made with to TuneConfig(search_alg=...)"
            )
        self._trials[trial.trial_id] = trial
        search = self._search.search
        if search is not None and trial.status == Trial.PENDING:
            known = self._known(trial)
            if known.status == "frozen":
                self._search.carry_out(Thaw(known.number, known.frozen + 1))

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Go on to the segment's end, then pause; stop at the horizon."""
        known = self._known(trial)
        if trial.trial_id in self._thawing:
            self._thawing.discard(trial.trial_id)
            self._check_resumed(trial, known.last, int(result[self._search.time_attr]))
        step = self._search.observe(trial.trial_id, result)
        if known.target is None or step < known.target:
            return TrialScheduler.CONTINUE
        self._search.freeze(trial.trial_id, step)
        if step >= known.horizon:
            return TrialScheduler.STOP
        decision = self._search.wanted()
        if isinstance(decision, Thaw) and decision.trial == known.number:
            self._search.take()  # paused and thawed at once it would only cost an actor
            return TrialScheduler.CONTINUE
        return TrialScheduler.PAUSE

    def _check_resumed(self, trial: Trial, last: int, step: int) -> None:
        if step == last + 1:
            return
        attribute = self._search.time_attr
        raise RuntimeError(
            f"trial {trial.trial_id} stood at {attribute} {last} and goes on with {step}: its "
            f"trainable does not resume. A class must save and load its state in save_checkpoint "
            f"and load_checkpoint; a function must report a checkpoint with every result and begin "
            f"from tune.get_checkpoint()"
        )

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: Any) -> None:
        """The trainable ended, or Tune's own stopping criterion did: with a last result that the
        scheduler was not shown."""
        self._thawing.discard(trial.trial_id)
        if result and self._search.metric in result and self._known(trial).target is not None:
            self._search.observe(trial.trial_id, result)
        self._search.end(trial.trial_id, None)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """The trial failed for good: its like is avoided. One that Tune tries again, which it marks
        before it asks, goes on from its last checkpoint as if nothing had happened."""
        self._thawing.discard(trial.trial_id)
        if trial.status == Trial.ERROR:
            return
        self._search.end(trial.trial_id, "it failed; Tune's error file says why")

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        """Somebody stopped it while it was paused."""
        self._thawing.discard(trial.trial_id)
        if self._search.stopped is None:
            self._search.end(trial.trial_id, "it was stopped")

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """The trial that was thawed, once it is paused; else a new one that waits."""
        thawed = [self._trials[trial_id] for trial_id in sorted(self._thawing)]
        coming = [t for t in thawed if t.status != Trial.RUNNING or self._known(t).target is None]
        waiting = [t for t in self._trials.values() if t.status == Trial.PENDING]
        if not waiting and not coming and self._room():
            decision = self._search.wanted()
            if self._search.stopped is not None:
                self._stop_paused(tune_controller)
            elif isinstance(decision, Thaw):
                trial = self._of(decision.trial)
                self._thawing.add(trial.trial_id)
                self._search.take()
                thawed = [trial]
        ready = [t for t in thawed if t.status in (Trial.PAUSED, Trial.PENDING)]
        return next(iter([*ready, *waiting]), None)

    def _room(self) -> bool:
        """Whether a worker is free, or will be when what runs is paused."""
        if self._search.search is None:
            return False
        return len(self._search.search.trials.in_flight) < self._capacity()

    def _capacity(self) -> int:
        if self._max_concurrent is not None:
            return self._max_concurrent
        trial = next(iter(self._trials.values()), None)
        if trial is None:
            return 1
        group: Any = trial.placement_group_factory
        have, needed = ray.cluster_resources(), group.required_resources
        counts = [int(have.get(name, 0.0) / count) for name, count in needed.items() if count > 0]
        return max(1, min(counts, default=1))

    def _stop_paused(self, tune_controller: Any) -> None:
        for trial in list(self._trials.values()):
            if trial.status == Trial.PAUSED:
                tune_controller.stop_trial(trial)

    def _known(self, trial: Trial) -> Any:
        assert self._search.search is not None, "a trial was suggested"
        return self._search.search.trials[self._search.numbers[trial.trial_id]]

    def _of(self, number: int) -> Trial:
        return next(
            self._trials[trial_id]
            for trial_id, known in self._search.numbers.items()
            if known == number
        )

    def debug_string(self) -> str:
        """For Tune's status table."""
        search = self._search.search
        if search is None:
            return "Freeze-thaw: nothing was decided yet"
        frozen = sum(trial.status == "frozen" for trial in search.trials.all.values())
        return f"Freeze-thaw: {len(search.trials)} trials, {frozen} of them frozen"

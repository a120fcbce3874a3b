"""The proposer as a Ray Tune searcher; with our scheduler beside it, the whole search."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.tune.search import UNDEFINED_METRIC_MODE, UNDEFINED_SEARCH_SPACE, Searcher

from autotune.decide import Search, build_search
from autotune.integrations.ray_tune.domains import Meanings, as_tune, converted, from_tune
from autotune.plugins import discovery
from autotune.plugins.search import (
    Budget,
    Decided,
    Event,
    Failed,
    Frozen,
    Key,
    Objective,
    Observed,
    SearchContext,
    Start,
    Stop,
    Thaw,
)
from autotune.record import event_from_plain, event_to_plain
from autotune.space import Space, SpaceError


class ProposerSearch(Searcher):
    """Suggests what one of autotune's proposers proposes.

    With `FreezeThawScheduler` it decides together with it: it suggests a new configuration only
    when the policy wants one rather than thaw a paused trial.

    Args:
        horizon: units (`time_attr`) that a trial is trained at most.
        metric, mode, space: as in Tune; from the ``Tuner`` if they are not given. A space of ours
            or a ``param_space`` of Tune's.
        proposer: name of an installed proposer, or a mapping of ``name`` and hyperparameters.
        points_to_evaluate: configurations to try first, after the default one (the middle of every
            domain, which every search of autotune begins with).
        time_attr: of a result; counts from 1 without gaps.
        seed: of all that is random.
    """

    def __init__(
        self,
        horizon: int,
        metric: str | None = None,
        mode: str | None = None,
        space: Space | Mapping[str, Any] | None = None,
        proposer: str | Mapping[str, Any] = "tpe",
        points_to_evaluate: list[dict[str, Any]] | None = None,
        time_attr: str = "training_iteration",
        seed: int = 0,
    ) -> None:
        super().__init__(metric=metric, mode=mode)
        if horizon < 1:
            raise ValueError(f"horizon is {horizon}; expected at least 1 {time_attr}")
        self.horizon = horizon
        self.time_attr = time_attr
        self.proposer = {"name": proposer} if isinstance(proposer, str) else dict(proposer)
        self.parts: dict[str, dict[str, Any]] = {
            "policy": {"name": "random_search"},
            "forecaster": {"name": "last_value"},
        }
        self.workers = 1
        self.scheduled = False
        self.events: list[Event] = []
        self.numbers: dict[str, int] = {}
        self.decision: Start | Thaw | None = None
        self.stopped: Stop | None = None
        self.search: Search | None = None
        self._points = points_to_evaluate or []
        self._seed = seed
        self._trials_limit: int | None = None
        self._began = time.monotonic()
        self._meanings: Meanings = {}
        self._space: Space | None = None
        if space is not None:
            self._take(space)

    # --- what Tune asks -----------------------------------------------------------------------

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any
    ) -> bool:
        """Take metric, mode, space and the number of samples from the ``Tuner``."""
        if metric:
            self._metric = metric
        if mode:
            self._mode = mode
        samples = spec.get("num_samples")
        self._trials_limit = samples if samples and samples > 0 else None
        if self._space is None and config:
            self._take(config)
        return True

    def suggest(self, trial_id: str) -> Any:
        """A new configuration; None while the policy would rather wait or thaw; `FINISHED` (a text,
        which Tune's own annotation forgets) when the search is over."""
        self._open()
        decision = self.wanted()
        if self.stopped is not None:
            return Searcher.FINISHED
        if not isinstance(decision, Start):
            return None
        self.numbers[trial_id] = decision.trial
        self.take()
        return as_tune(decision.configuration, self._meanings)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Observe, unless our scheduler does."""
        if not self.scheduled:
            self.observe(trial_id, result)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """The trial is over."""
        if self.scheduled or trial_id not in self.numbers:
            return
        if result is not None and self.metric in result:
            self.observe(trial_id, result)
        self.end(trial_id, "it raised an error" if error else None)

    # --- the search -----------------------------------------------------------------------------

    def _take(self, space: Space | Mapping[str, Any]) -> None:
        if isinstance(space, Space):
            self._space = space
            return
        try:
            self._space, self._meanings = converted(space)
        except SpaceError as error:
            raise error.under("param_space") from None

    def _open(self) -> Search:
        if self.search is not None:
            return self.search
        if self._space is None or not self._space.slots:
            raise RuntimeError(
                UNDEFINED_SEARCH_SPACE.format(cls=type(self).__name__, space="param_space")
            )
        if not isinstance(self.metric, str) or self.mode not in ("min", "max"):
            raise RuntimeError(
                UNDEFINED_METRIC_MODE.format(
                    cls=type(self).__name__, metric=self.metric, mode=self.mode
                )
            )
        direction = "minimize" if self.mode == "min" else "maximize"
        context = SearchContext(
            space=self._space,
            evaluation_space=Space({}),
            objectives=(Objective(self.metric, direction, "curve"),),  # type: ignore[arg-type]
            horizon=self.horizon,
            budget=Budget(trials=self._trials_limit),
            seed=self._seed,
            workers=self.workers,
            first=tuple(self._point(point) for point in self._points),
        )
        parts = {**self.parts, "proposer": self.proposer}
        self.search = build_search(context, parts, discovery.get)
        for event in self.events:
            self.search.observe(event)
        return self.search

    def _point(self, point: Mapping[str, Any]) -> dict[str, Any]:
        assert self._space is not None
        configuration = from_tune(point, self._meanings)
        try:
            self._space.validate(configuration)
        except SpaceError as error:
            raise error.under("points_to_evaluate") from None
        return configuration

    def wanted(self) -> Start | Thaw | None:
        """The decision that is next to be carried out, taken now if there is none yet; None while
        the search waits, and after it has stopped."""
        search = self._open()
        if self.decision is None and self.stopped is None:
            decided = search.decide(Key(self._seed, search.trials.decisions))
            if isinstance(decided, Stop):
                self.stopped = decided
            elif isinstance(decided, Start | Thaw):
                self.decision = decided
        return self.decision

    def take(self) -> None:
        """The decision that was `wanted` is carried out now."""
        assert self.decision is not None, "there is one"
        decision, self.decision = self.decision, None
        self.carry_out(decision)

    def carry_out(self, decision: Start | Thaw) -> None:
        """A decision, ours or one that Tune takes by itself, is carried out now."""
        self._tell(Decided(self._open().trials.decisions, decision, at=self._now()))

    def observe(self, trial_id: str, result: Mapping[str, Any]) -> int:
        """Note a result; returns the trial's step."""
        trial = self._open().trials[self.numbers[trial_id]]
        step = int(result[self.time_attr])
        metrics = {
            name: float(value)
            for name, value in result.items()
            if name == self.metric and isinstance(value, int | float)
        }
        seconds = float(result.get("time_this_iter_s", 0.0))
        if step > trial.last or not trial.metrics:
            self._tell(Observed(trial.number, step, metrics, seconds, at=self._now()))
        return step

    def freeze(self, trial_id: str, step: int) -> None:
        """The trial is paused at a step, with its checkpoint."""
        self._tell(Frozen(self.numbers[trial_id], step, trial_id, at=self._now()))

    def end(self, trial_id: str, failure: str | None) -> None:
        """The trial will not go on: it failed, or reached its end."""
        trial = self._open().trials[self.numbers[trial_id]]
        if trial.status in ("done", "failed"):
            return
        if failure is None and trial.last >= trial.horizon:
            self.freeze(trial_id, trial.last)
            return
        message = failure or f"it ended at {self.time_attr} {trial.last} of {trial.horizon}"
        value = trial.metrics.get(trial.last, {}).get(str(self.metric), 0.0)
        cause = "ended" if failure is None else "error"
        cause = cause if math.isfinite(value) else "not_finite"
        self._tell(Failed(trial.number, trial.last, cause, message, at=self._now()))  # type: ignore[arg-type]

    def _tell(self, event: Event) -> None:
        self._open().observe(event)
        self.events.append(event)

    def _now(self) -> float:
        return time.monotonic() - self._began

    # --- saved and restored with the experiment ---------------------------------------------------

    def save(self, checkpoint_path: str) -> None:
        """All events, as JSON."""
        state = {
            "numbers": self.numbers,
            "seconds": self._now(),
            "events": [event_to_plain(event) for event in self.events],
        }
        temporary = Path(f"{checkpoint_path}.new")
        temporary.write_text(json.dumps(state))
        os.replace(temporary, checkpoint_path)

    def restore(self, checkpoint_path: str) -> None:
        """Fold the events again; what was in flight goes on from its last checkpoint."""
        state = json.loads(Path(checkpoint_path).read_text())
        self.numbers = dict(state["numbers"])
        self.events = [event_from_plain(event) for event in state["events"]]
        self._began = time.monotonic() - float(state["seconds"])
        self.search, self.decision, self.stopped = None, None, None

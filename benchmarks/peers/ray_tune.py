"""Ray Tune: its real schedulers and searchers, told what its controller would tell them, with one
trial running at a time. Neither Ray's actors nor its checkpoints take part: a paused trial goes
on from where it stopped, as one with a checkpoint does.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
from common.tables import FloatArray, Table
from ConfigSpace import ConfigurationSpace, UniformFloatHyperparameter
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler, HyperBandForBOHB, TrialScheduler
from ray.tune.search.bohb import TuneBOHB
from replayed.ledger import Ledger, Spent, Training

_TIME, _METRIC = "training_iteration", "value"


def run(table: Table, ledger: Ledger, seed: int, scheduler: str) -> None:
    """Run trials until the ledger is spent."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    np.random.seed(seed)  # noqa: NPY002 (Ray's schedulers and BOHB draw from it)
    varying = [int(column) for column in np.flatnonzero(np.ptp(table.points, axis=0) > 0)]
    known = {"time_attr": _TIME, "metric": _METRIC, "mode": "min", "max_t": table.units}
    searcher: Any = Random(varying, seed)
    chosen: TrialScheduler = AsyncHyperBandScheduler(**known)
    if scheduler == "bohb":
        chosen, searcher = HyperBandForBOHB(**known), bohb(varying, seed)
    controller = Controller(table, ledger, chosen, searcher, varying)
    try:
        while True:
            controller.step()
    except Spent:
        return


class Random:
    """Tune's random search: independent draws from its domains."""

    def __init__(self, varying: list[int], seed: int) -> None:
        self._names = [f"x{column}" for column in varying]
        self._rng = np.random.RandomState(seed)
        self.trial_to_params: dict[str, dict[str, float]] = {}

    def suggest(self, trial_id: str) -> dict[str, float]:
        """A draw."""
        domain = tune.uniform(0.0, 1.0)
        return {name: domain.sample(random_state=self._rng) for name in self._names}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing to learn."""

    def on_trial_complete(self, trial_id: str, **what: Any) -> None:
        """Nothing to learn."""


def bohb(varying: list[int], seed: int) -> TuneBOHB:
    """Tune's wrapper of HpBandSter's model, with its defaults."""
    space = ConfigurationSpace(seed=seed)
    for column in varying:
        space.add_hyperparameter(UniformFloatHyperparameter(f"x{column}", 0.0, 1.0))
    return TuneBOHB(space=space, metric=_METRIC, mode="min", seed=seed)


@dataclass(eq=False)
class Running:
    """What schedulers look at in a `Trial`."""

    trial_id: str
    training: Training
    status: str = Trial.PENDING
    is_saving: bool = False
    last_result: dict[str, Any] = field(default_factory=dict)


class Controller:
    """The steps of Tune's controller (`ray.tune.execution.tune_controller`) that a scheduler
    sees, with place for one running trial and one that waits for it."""

    def __init__(
        self,
        table: Table,
        ledger: Ledger,
        scheduler: TrialScheduler,
        searcher: Any,
        varying: list[int],
    ) -> None:
        self._table, self._ledger, self._varying = table, ledger, varying
        self._scheduler, self._searcher = scheduler, searcher
        self._trials: list[Running] = []
        self.search_alg = SimpleNamespace(searcher=searcher)

    def get_trials(self) -> list[Running]:
        """All trials."""
        return self._trials

    def stop_trial(self, trial: Running) -> None:
        """As the controller's: scheduler and searcher are told, then the trial is over."""
        if trial.status in (Trial.ERROR, Trial.TERMINATED):
            return
        if trial.status == Trial.RUNNING:
            self._scheduler.on_trial_complete(self, trial, trial.last_result)
        else:
            self._scheduler.on_trial_remove(self, trial)
        self._searcher.on_trial_complete(trial.trial_id, result=trial.last_result)
        trial.status = Trial.TERMINATED

    def step(self) -> None:
        """Keep a new trial waiting, and run what the scheduler chooses until it pauses."""
        if not any(trial.status == Trial.PENDING for trial in self._trials):
            self._add()
        trial = self._scheduler.choose_trial_to_run(self)
        assert trial is not None, "a trial is waiting, and nothing runs"
        trial.status = Trial.RUNNING
        while trial.status == Trial.RUNNING:
            self._epoch(trial)

    def _add(self) -> None:
        name = f"{len(self._trials):05d}"
        suggested = self._searcher.suggest(name)
        point: FloatArray = np.zeros(self._table.points.shape[1])
        point[self._varying] = [suggested[f"x{column}"] for column in self._varying]
        training = self._ledger.begin(self._ledger.nearest_unused(point))
        row = self._table.points[training.row]
        self._searcher.trial_to_params[name] = {f"x{c}": float(row[c]) for c in self._varying}
        trial = Running(name, training)
        self._trials.append(trial)
        self._scheduler.on_trial_add(self, trial)

    def _epoch(self, trial: Running) -> None:
        value = trial.training.epoch()
        result = {_METRIC: value, _TIME: trial.training.step}
        if trial.training.diverged:
            self._scheduler.on_trial_error(self, trial)
            self._searcher.on_trial_complete(trial.trial_id, error=True)
            trial.status = Trial.ERROR
            return
        trial.last_result = result
        decision = self._scheduler.on_trial_result(self, trial, result)
        self._searcher.on_trial_result(trial.trial_id, result)
        if decision == TrialScheduler.STOP or trial.training.finished:
            self.stop_trial(trial)
        elif decision == TrialScheduler.PAUSE:
            trial.status = Trial.PAUSED

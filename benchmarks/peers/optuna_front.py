"""Optuna over several objectives: a study with a sampler, by ask/tell. It cannot prune these, so
every trial is trained to the table's end.

It is told the objectives on the scale on which hypervolume is counted.
"""

from __future__ import annotations

import math
import warnings

import numpy as np
import optuna
from common.tables import Table
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState
from replayed.front import scaled
from replayed.ledger import Ledger, Spent

SAMPLERS = {
    "tpe": optuna.samplers.TPESampler,
    "nsga2": optuna.samplers.NSGAIISampler,
    "random": optuna.samplers.RandomSampler,
}


def run(table: Table, ledger: Ledger, seed: int, sampler: str) -> None:
    """Ask, train and tell until the ledger is spent."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    study = optuna.create_study(
        directions=["minimize"] * (1 + len(table.static)), sampler=SAMPLERS[sampler](seed=seed)
    )
    curves, static = scaled(table)
    varying = np.flatnonzero(np.ptp(table.points, axis=0) > 0)
    distributions = {f"x{column}": _distribution(table, column) for column in varying}
    try:
        while True:
            trial = study.ask(distributions)
            point = np.zeros(table.points.shape[1])
            point[varying] = [trial.params[name] for name in distributions]
            training = ledger.begin(ledger.nearest_unused(point))
            for column, (name, distribution) in zip(varying, distributions.items(), strict=True):
                value = float(table.points[training.row, column])
                inner = distribution.to_internal_repr(value)
                study._storage.set_trial_param(trial._trial_id, name, inner, distribution)
            while not training.finished:
                training.epoch()
            value = float(curves[training.row, training.step - 1])
            if math.isfinite(value):
                study.tell(trial, [value, *static[training.row].tolist()])
            else:
                study.tell(trial, state=TrialState.FAIL)
    except Spent:
        return


def _distribution(table: Table, column: int) -> BaseDistribution:
    count = table.options[column] if table.options else 0
    if count:
        return CategoricalDistribution(((np.arange(count) + 0.5) / count).tolist())
    return FloatDistribution(0.0, 1.0)

"""Optuna: a study with a sampler and a pruner, by ask/tell. Its trials are stopped, never paused:
what was pruned is not gone on with, so nothing is trained twice."""

from __future__ import annotations

import warnings

import numpy as np
import optuna
from common.tables import Table
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState
from replayed.ledger import Ledger, Spent

SAMPLERS = {"tpe": optuna.samplers.TPESampler, "gp": optuna.samplers.GPSampler}


def run(table: Table, ledger: Ledger, seed: int, sampler: str, pruner: str) -> None:
    """Ask, train and tell until the ledger is spent."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    study = optuna.create_study(
        study_name=f"seed {seed}",  # Hyperband draws a trial's bracket from the study's name
        sampler=SAMPLERS[sampler](seed=seed),
        pruner=made(pruner, table),
    )
    try:
        while True:
            train(study, table, ledger)
    except Spent:
        return


def made(pruner: str, table: Table) -> optuna.pruners.BasePruner:
    """The pruner, with its defaults: Hyperband from one epoch to the table's last."""
    if pruner == "hyperband":
        return optuna.pruners.HyperbandPruner(
            min_resource=1, max_resource=table.units, reduction_factor=3
        )
    return optuna.pruners.MedianPruner()


def train(study: optuna.Study, table: Table, ledger: Ledger) -> None:
    """One trial: the row nearest to the proposal, until it ends or is pruned."""
    varying = np.flatnonzero(np.ptp(table.points, axis=0) > 0)
    distributions = {f"x{column}": FloatDistribution(0.0, 1.0) for column in varying}
    trial = study.ask(distributions)
    point = np.zeros(table.points.shape[1])
    point[varying] = [trial.params[name] for name in distributions]
    training = ledger.begin(ledger.nearest_unused(point))
    for column, (name, distribution) in zip(varying, distributions.items(), strict=True):
        value = float(table.points[training.row, column])
        study._storage.set_trial_param(trial._trial_id, name, value, distribution)
    while not training.finished:
        value = training.epoch()
        trial.report(value, training.step)
        if training.diverged or (not training.finished and trial.should_prune()):
            study.tell(trial, state=TrialState.PRUNED)
            return
    study.tell(trial, value)

"""Syne Tune: one of its schedulers, told what its tuner would tell it. Its trials are stopped,
never paused, so nothing is trained twice."""

from __future__ import annotations

import logging
import warnings
from datetime import datetime

import numpy as np
from common.tables import Table
from replayed.ledger import Ledger, Spent
from syne_tune.backend.trial_status import Trial
from syne_tune.config_space import uniform
from syne_tune.optimizer.baselines import ASHA, ASHACQR, CQR
from syne_tune.optimizer.scheduler import SchedulerDecision, TrialScheduler


def run(table: Table, ledger: Ledger, seed: int, scheduler: str) -> None:
    """Suggest, train and report until the ledger is spent."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    np.random.seed(seed)  # noqa: NPY002 (the scheduler draws brackets from it)
    varying = np.flatnonzero(np.ptp(table.points, axis=0) > 0)
    chosen = made(scheduler, table, seed, [f"x{column}" for column in varying])
    number = 0
    try:
        while True:
            train(chosen, table, ledger, number, varying)
            number += 1
    except Spent:
        return


def made(name: str, table: Table, seed: int, names: list[str]) -> TrialScheduler:
    """A scheduler with its defaults, its horizon the table's."""
    space = {name: uniform(0.0, 1.0) for name in names}
    if name == "cqr":
        return CQR(space, metric="value", do_minimize=True, random_seed=seed)
    kind = ASHA if name == "asha" else ASHACQR
    return kind(
        space,
        metric="value",
        time_attr="epoch",
        max_t=table.units,
        do_minimize=True,
        random_seed=seed,
    )


def train(
    scheduler: TrialScheduler, table: Table, ledger: Ledger, number: int, varying: np.ndarray
) -> None:
    """One trial: the row nearest to the suggestion, until it ends or is stopped."""
    suggested = scheduler.suggest()
    point = np.zeros(table.points.shape[1])
    point[varying] = [suggested.config[f"x{column}"] for column in varying]
    training = ledger.begin(ledger.nearest_unused(point))
    config = {f"x{column}": float(table.points[training.row, column]) for column in varying}
    trial = Trial(number, config, datetime(2000, 1, 1))
    scheduler.on_trial_add(trial)
    while not training.finished:
        result = {"value": training.epoch(), "epoch": training.step}
        if training.diverged:
            scheduler.on_trial_error(trial)
            return
        if training.finished:
            scheduler.on_trial_complete(trial, result)
        elif scheduler.on_trial_result(trial, result) == SchedulerDecision.STOP:
            scheduler.on_trial_remove(trial)
            return

"""NePS: its optimizers through its own `AskAndTell`. A promoted configuration goes on from where
it stopped, as NePS lets an evaluation do that keeps checkpoints.

ifBO's forecaster is FT-PFN, whose weights are behind a web link. Where they are not at hand,
autotune's default forecaster takes its place behind the same interface: what is measured then is
ifBO's acquisition and its search for candidates.
"""

from __future__ import annotations

import logging
import random
import warnings
from collections.abc import Callable, Mapping
from typing import Any
from unittest.mock import patch

import neps
import numpy as np
import torch
from common.tables import FloatArray, Table
from neps.optimizers import algorithms
from replayed.ledger import Ledger, Spent, Training

from autotune.header import SEARCH_DEFAULTS
from autotune.plugins.discovery import Catalogue
from autotune.plugins.search import (
    Budget,
    Decided,
    Event,
    Frozen,
    Objective,
    Observed,
    Query,
    SearchContext,
    Start,
    Thaw,
)
from autotune.plugins.trials import Trials
from autotune.space import Configuration, Float, Space

_EPOCH = "epoch"


def run(table: Table, ledger: Ledger, seed: int, optimizer: str) -> None:
    """Ask, train and tell until the ledger is spent."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (NePS draws from the global generators)
    torch.manual_seed(seed)
    varying = [int(column) for column in np.flatnonzero(np.ptp(table.points, axis=0) > 0)]
    optimizing = neps.AskAndTell(optimizer=MADE[optimizer](table, varying))
    trainings: dict[str, Training] = {}
    try:
        while True:
            trial = optimizing.ask()
            train(trial, optimizing, table, ledger, trainings, varying, optimizer == "ifbo")
    except Spent:
        return


def train(
    trial: Any,
    optimizing: neps.AskAndTell,
    table: Table,
    ledger: Ledger,
    trainings: dict[str, Training],
    varying: list[int],
    scaled: bool,
) -> None:
    """One evaluation: to the epoch asked for, of the row nearest to a new proposal. `scaled`:
    in [0, 1], as ifBO wants it, with a run that diverged at 1."""
    number = trial.id.split("_")[0]
    config = dict(trial.config)
    keys = {column: key_of(config, f"x{column}") for column in varying}
    if number not in trainings:
        point = np.zeros(table.points.shape[1])
        point[varying] = [config[keys[column]] for column in varying]
        trainings[number] = ledger.begin(ledger.nearest_unused(point))
    training = trainings[number]
    for column, key in keys.items():
        config[key] = float(table.points[training.row, column])
    trial.config = config
    to, value = round(config[key_of(config, _EPOCH)]), np.inf
    while training.step < to and not training.diverged:
        value = training.epoch()
    if scaled:
        value = 1.0 - float(table.curves[training.row, min(to, training.step) - 1])
    if np.isfinite(value):
        optimizing.tell(trial, float(value))
    else:
        optimizing.tell(trial, ArithmeticError("the recorded run diverged"))


def key_of(config: Mapping[str, Any], name: str) -> str:
    """How NePS spells a parameter in a configuration: alone, or within the path to it."""
    for key in config:
        if key == name or key.split("::")[0].endswith(f".{name}") or key.endswith(f"__{name}"):
            return key
    raise KeyError(f"{name} is not in {list(config)}")


def space(table: Table, varying: list[int], prior: bool = False) -> neps.PipelineSpace:
    """The table's space. `prior`: with the middle of every range as a prior of low confidence,
    which is what somebody knows who knows nothing."""
    known = {"prior": 0.5, "prior_confidence": "low"} if prior else {}
    parameters = {f"x{column}": neps.Float(0.0, 1.0, **known) for column in varying}
    fidelity = neps.IntegerFidelity(1, table.units)
    return type("Space", (neps.PipelineSpace,), {**parameters, _EPOCH: fidelity})()


def _hyperband(table: Table, varying: list[int]) -> Any:
    return algorithms.neps_hyperband(space(table, varying))


def _asha(table: Table, varying: list[int]) -> Any:
    return algorithms.asha(space(table, varying))


def _priorband(table: Table, varying: list[int]) -> Any:
    return algorithms.priorband(space(table, varying, prior=True))


def _ifbo(table: Table, varying: list[int]) -> Any:
    def made(**ignored: Any) -> StandIn:
        return StandIn(table.units, len(varying))

    with patch.object(algorithms, "FTPFNSurrogate", made):
        return algorithms.ifbo(space(table, varying))


MADE: Mapping[str, Callable[[Table, list[int]], Any]] = {
    "hyperband": _hyperband,
    "asha": _asha,
    "priorband": _priorband,
    "ifbo": _ifbo,
}


# --- a forecaster in FT-PFN's place -------------------------------------------------------------


class StandIn:
    """autotune's default forecaster behind the interface of NePS' `FTPFNSurrogate`.

    Rows of inputs are (curve + 1, or 0 for a new one; epoch as a share; configuration); outputs
    are in [0, 1], more is better.
    """

    def __init__(self, units: int, dimensions: int) -> None:
        names = [f"x{index}" for index in range(dimensions)]
        objective = Objective("value", "maximize", "curve", bounds=(0.0, 1.0))
        self.device = torch.device("cpu")
        self._names, self._units = names, units
        self._context = SearchContext(
            Space({name: Float(0.0, 1.0) for name in names}),
            Space({}),
            (objective,),
            units,
            Budget(units=1),
            0,
        )
        self._forecaster = Catalogue().get("forecaster", SEARCH_DEFAULTS["forecaster"])({})
        self._seen = -1
        self._state: Any = None
        self._trials = Trials(self._context.space, self._context.objectives)
        self._numbers: dict[int, int] = {}

    @torch.no_grad()
    def get_pi(
        self, train_x: torch.Tensor, train_y: torch.Tensor, test_x: torch.Tensor, y_best: float
    ) -> torch.Tensor:
        """Probability of more than `y_best`."""
        below = self._forecast(train_x, train_y, test_x).probability_below(-float(y_best))
        return torch.as_tensor(np.asarray(below))

    @torch.no_grad()
    def get_mean_performance(
        self, train_x: torch.Tensor, train_y: torch.Tensor, test_x: torch.Tensor
    ) -> torch.Tensor:
        """Means."""
        return torch.as_tensor(-self._forecast(train_x, train_y, test_x).mean())

    def _forecast(self, train_x: torch.Tensor, train_y: torch.Tensor, test_x: torch.Tensor) -> Any:
        self._observe(train_x.numpy(), train_y.numpy())
        queries = []
        for row in test_x.numpy():
            number = self._numbers.get(int(row[0]))
            new = self._configuration(row) if number is None else None
            queries.append(Query(self._step(row), number, new))
        return self._forecaster.forecast(self._context, self._state, self._trials, queries)

    def _observe(self, x: FloatArray, y: FloatArray) -> None:
        """Fold the curves anew if there are more observations than last time."""
        if len(x) == self._seen:
            return
        self._seen, self._numbers = len(x), {}
        self._trials = Trials(self._context.space, self._context.objectives)
        self._state = self._forecaster.initial(self._context)
        for decision, (row, value) in enumerate(zip(x, y, strict=True)):
            for event in self._events(decision, row, float(value)):
                self._trials.observe(event)
                self._state = self._forecaster.observe(self._state, event, self._trials)

    def _events(self, decision: int, row: FloatArray, value: float) -> list[Event]:
        step, identifier = self._step(row), int(row[0])
        known = identifier in self._numbers
        number = self._numbers.setdefault(identifier, len(self._numbers))
        begun: Start | Thaw = Thaw(number, step)
        if not known:
            begun = Start(number, self._configuration(row), self._units, step)
        return [
            Decided(decision, begun),
            Observed(number, step, {"value": value}, 1.0),
            Frozen(number, step, f"{number}-{step}"),
        ]

    def _step(self, row: FloatArray) -> int:
        return int(np.clip(round(float(row[1]) * self._units), 1, self._units))

    def _configuration(self, row: FloatArray) -> Configuration:
        places = np.clip(row[2:], 0.0, 1.0).astype(float).tolist()
        return dict(zip(self._names, places, strict=True))

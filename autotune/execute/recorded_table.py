"""Recorded learning curves as a task: policies are tested on real curves without training.

A table is a `Task` like any other, so every executor runs it; `replay` does so on a virtual
clock.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autotune.plugins.search import Objective
from autotune.space import Categorical, Configuration, Float, Integer, Ordinal, Space
from autotune.train.task import NotFinite, Part, Run, RunContext, Task, TaskError

_FEW = 8
"""A column with at most this many distinct values offers just these."""

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Column:
    """One hyperparameter of a table: its name, the values that occur, ascending, and whether
    it is searched on a log scale. `unordered`: its numbers are codes of categories."""

    name: str
    values: tuple[float, ...]
    log: bool
    unordered: bool

    @property
    def is_integer(self) -> bool:
        """Whether all its values are whole."""
        return all(value == round(value) for value in self.values)

    @property
    def number_type(self) -> type[int] | type[float]:
        """What its values are in a configuration."""
        return int if self.is_integer else float

    def parameter(self) -> Float | Integer | Ordinal | Categorical:
        """As a parameter of a space: the range that was recorded, or the few values."""
        values = tuple(self.number_type(value) for value in self.values)
        if self.unordered:
            return Categorical(values)
        if len(values) <= _FEW:
            return Ordinal(values)
        if self.is_integer:
            return Integer(int(values[0]), int(values[-1]), log=self.log)
        return Float(values[0], values[-1], log=self.log)

    def place(self, values: FloatArray) -> FloatArray:
        """Values on the axis that distances are measured on, recorded ones within [0, 1]: the
        (log) range, or the rank among few values. Of codes, the value itself."""
        if self.unordered:
            return values
        known = np.asarray(self.values)
        if len(known) <= _FEW:
            ranks = np.abs(values[..., None] - known).argmin(-1)
            return np.asarray(ranks / (len(known) - 1), dtype=np.float64)
        scale = np.log if self.log else np.asarray
        low, high = scale(known[0]), scale(known[-1])
        return np.asarray((scale(values) - low) / (high - low), dtype=np.float64)


@dataclass(frozen=True, eq=False)
class RecordedTable(Task):
    """Learning curves of n configurations over T units.

    A configuration is answered with the curve of the nearest row: Euclidean distance over the
    columns' axes (`Column.place`), 1 for two different categories, the first row of equally
    near ones. Two proposals near the same row get the same curve; `candidates` are the
    configurations that each have a row of their own.

    Args:
        rows: raw hyperparameter values, shape (n, d).
        names: of the d hyperparameters.
        log: which are searched on a log scale.
        curves: the objective after each unit, shape (n, T); NaN or infinite where a run had
            diverged.
        metric: the objective's name; `minimise`: its direction.
        seconds: cost of each unit, shape (n, T); None: one second each.
        test: the objective on the test split after each unit, shape (n, T).
        others: more curves, by name.
        draws: the objective of several trainings of each row on different seeds, shape (n,
            seeds, T); a run reads the one that its seed falls on. None: `curves` for all seeds.
    """

    rows: FloatArray
    names: tuple[str, ...]
    log: tuple[bool, ...]
    curves: FloatArray
    metric: str = "validation_loss"
    minimise: bool = True
    seconds: FloatArray | None = None
    test: FloatArray | None = None
    others: Mapping[str, FloatArray] = field(default_factory=dict)
    draws: FloatArray | None = None

    def __post_init__(self) -> None:
        count = len(self.curves)
        if self.rows.shape != (count, len(self.names)) or len(self.log) != len(self.names):
            raise TaskError(
                f"recorded table: {count} curves need rows of shape ({count}, "
                f"{len(self.names)}) and {len(self.names)} log marks; got {self.rows.shape} and "
                f"{len(self.log)}"
            )
        if self.draws is not None and self.draws[:, 0].shape != self.curves.shape:
            raise TaskError(
                f"recorded table: draws of shape {self.draws.shape} are not several for each of "
                f"the curves, {self.curves.shape}"
            )
        if not np.isfinite(self.rows).all():
            raise TaskError(
                "recorded table: hyperparameters that are NaN (inactive) have no nearest row"
            )
        for name, column, log in zip(self.names, self.rows.T, self.log, strict=True):
            if log and column.min() <= 0:
                raise TaskError(f"recorded table: {name} is on a log scale and has values <= 0")

    @classmethod
    def load(cls, path: str | Path, by_seed: bool = False) -> RecordedTable:
        """Read an ``.npz`` file with X, hp_names, log, Y, fidelity, metric, minimise, and
        perhaps time (cumulative seconds), Y_test and further Y_*. Nothing is unpickled.

        Args:
            by_seed: a run reads one training of ``Y_seeds`` (rows, seeds, units), by its seed,
                in place of ``Y``, which summarises them.

        A first column at fidelity 0 (before any training) is no unit and left out.

        Raises:
            TaskError: the file has another form.
        """
        with np.load(path, allow_pickle=False) as file:
            data = {key: file[key] for key in file.files}
        needed = ("X", "hp_names", "log", "Y", "fidelity", "metric", "minimise")
        if missing := [key for key in needed if key not in data]:
            raise TaskError(f"{path}: no {', '.join(missing)} in it; not a table with a space")
        first = 1 if data["fidelity"][0] == 0 else 0
        curves = np.asarray(data["Y"], dtype=np.float64)
        full = {
            key: np.asarray(values, dtype=np.float64)[:, first:]
            for key, values in data.items()
            if (key == "time" or key.startswith("Y_")) and values.shape == curves.shape
        }
        seconds = None
        if "time" in full:
            time = np.asarray(data["time"], dtype=np.float64)
            seconds = np.diff(time, axis=1, prepend=0.0)[:, first:]
            del full["time"]
        test = full.pop("Y_test", None)
        if by_seed and "Y_seeds" not in data:
            raise TaskError(f"{path}: no Y_seeds in it, so there are no curves by seed")
        return cls(
            rows=np.asarray(data["X"], dtype=np.float64),
            names=tuple(str(name) for name in data["hp_names"]),
            log=tuple(bool(log) for log in data["log"]),
            curves=curves[:, first:],
            metric=_identifier(str(data["metric"])),
            minimise=bool(data["minimise"]),
            seconds=seconds,
            test=test,
            others={_identifier(key.removeprefix("Y_")): curve for key, curve in full.items()},
            draws=np.asarray(data["Y_seeds"], np.float64)[:, :, first:] if by_seed else None,
        )

    @property
    def horizon(self) -> int:
        """Units recorded of every curve."""
        return int(self.curves.shape[1])

    @property
    def objective(self) -> Objective:
        """What the table's curves are curves of."""
        return Objective(self.metric, "minimize" if self.minimise else "maximize", "curve")

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        """The hyperparameters that vary, one by one."""
        return tuple(
            Column(
                _identifier(name),
                tuple(float(value) for value in np.unique(column)),
                log,
                unordered=bool(re.search(r"\(\s*0\s*=", name)),
            )
            for name, log, column in self._varying()
        )

    @cached_property
    def space(self) -> Space:
        """The ranges that the table covers. What never varied is left out."""
        return Space({column.name: column.parameter() for column in self.columns})

    @cached_property
    def candidates(self) -> tuple[Configuration, ...]:
        """The recorded configurations, in the order of the rows."""
        return tuple(
            {
                column.name: column.number_type(value)
                for column, value in zip(self.columns, values, strict=True)
            }
            for values in self._values
        )

    def nearest(self, configuration: Configuration) -> int:
        """The row whose curve answers for a configuration of `space`."""
        wanted = np.array([configuration[column.name] for column in self.columns], np.float64)
        total = np.zeros(len(self.rows))
        for column, places, value in zip(self.columns, self._places, wanted, strict=True):
            if column.unordered:
                total += places != value
            else:
                total += (places - column.place(np.asarray(value))) ** 2
        return int(total.argmin())

    def metrics(self, row: int, step: int, seed: int = 0) -> dict[str, float]:
        """What is reported after unit `step` (from 1) of a run of this seed."""
        curves = self.curves if self.draws is None else self.draws[:, seed % self.draws.shape[1]]
        values = {self.metric: curves, **self.others}
        return {name: float(curve[row, step - 1]) for name, curve in values.items()}

    def unit_seconds(self, row: int, step: int) -> float:
        """What unit `step` (from 1) had cost."""
        return 1.0 if self.seconds is None else float(self.seconds[row, step - 1])

    def test_metrics(self, row: int, step: int) -> dict[str, float]:
        """The objective on the test split, where it was recorded."""
        return {} if self.test is None else {self.metric: float(self.test[row, step - 1])}

    def open(self, configuration: Configuration, context: RunContext) -> Run:
        """A run that reads the nearest row."""
        return RecordedRun(self, self.nearest(configuration), context.seed)

    def fingerprint(self) -> str:
        """Digest of the curves and the rows."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        digest = hashlib.sha256(np.ascontiguousarray(self.rows).tobytes())
        digest.update(np.ascontiguousarray(self.curves).tobytes())
        if self.draws is not None:
            digest.update(np.ascontiguousarray(self.draws).tobytes())
        return digest.hexdigest()[:16]

    def _varying(self) -> Sequence[tuple[str, bool, FloatArray]]:
        columns = zip(self.names, self.log, self.rows.T, strict=True)
        return [(name, log, column) for name, log, column in columns if np.ptp(column) > 0]

    @cached_property
    def _values(self) -> FloatArray:
        """The varying columns, shape (n, columns)."""
        return np.stack([column for _, _, column in self._varying()], axis=1)

    @cached_property
    def _places(self) -> list[FloatArray]:
        return [
            column.place(values)
            for column, values in zip(self.columns, self._values.T, strict=True)
        ]


class RecordedRun(Run):
    """One row of a table, read unit by unit."""

    def __init__(self, table: RecordedTable, row: int, seed: int) -> None:
        self._table = table
        self._row = row
        self._seed = seed
        self._step = 0

    @property
    def step(self) -> int:
        """Units read."""
        return self._step

    def train(self) -> Mapping[str, float]:
        """Read the next unit. Raises `NotFinite` where the recorded run had diverged."""
        if self._step >= self._table.horizon:
            raise TaskError(f"the recorded curves end at unit {self._table.horizon}")
        metrics = self._table.metrics(self._row, self._step + 1, self._seed)
        self._step += 1
        if not math.isfinite(metrics[self._table.metric]):
            raise NotFinite(not_finite_message(self._table.metric, metrics, self._step))
        return metrics

    def freeze(self) -> dict[str, Any]:
        """Where it stands."""
        return {"row": self._row, "step": self._step}

    def thaw(self, state: Mapping[str, Any]) -> None:
        """Stand where `freeze` stood."""
        self._row, self._step = state["row"], state["step"]

    def evaluate(self, evaluation: Configuration, part: Part) -> Mapping[str, float]:
        """Nothing was recorded."""
        return {}

    def latency(self, evaluation: Configuration) -> tuple[float, float]:
        """Nothing was recorded."""
        raise TaskError("a recorded table has no latency")

    def test(self, evaluation: Configuration) -> Mapping[str, float]:
        """The recorded test score at the present unit."""
        return self._table.test_metrics(self._row, self._step)


def not_finite_message(metric: str, metrics: Mapping[str, float], step: int) -> str:
    """What is said of a recorded run that had diverged."""
    return f"{metric} is {metrics[metric]} at step {step}"


def _identifier(name: str) -> str:
    """A recorded name without its remark in parentheses, in letters a configuration can use."""
    return re.sub(r"\W+", "_", name.partition("(")[0].strip())

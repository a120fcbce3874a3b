"""Recorded learning curves, read once and scaled alike for every benchmark.

The scale follows the ifBO paper (Rakotoarison et al. 2024, arXiv 2404.16795, section 5.1 and the
authors' `generate_tasks.py`), so that figures can be compared:

- an accuracy stays as it is;
- a loss that is never negative is clipped to [0, b] and becomes ``1 - loss / b``, where b is the
  median over configurations of the first value recorded (TaskSet's rule: step 0 where it was
  recorded, which is then dropped: no tuner observes it);
- anything else (a return) becomes 0 at ``m - (best - m) / 4`` and 1 at the table's best, with m the
  median of the first values, and is clipped. The paper has no such metric.

What is not finite has diverged and scores 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autotune.plugins.search import Objective
from autotune.space import Categorical, Configuration, Float, Space

FloatArray = NDArray[np.float64]

FOLDER = Path(__file__).parents[3] / "shared" / "curves"
"""Where the tables lie unless ``--curves`` says otherwise."""

_BELOW_START = 0.25


class TableError(Exception):
    """A file is no table; the message says which file, and what it lacks."""


@dataclass(frozen=True)
class Table:
    """Learning curves of n configurations over T units.

    Args:
        name, suite: the file's name without its ending, and what of it names the suite.
        objective: of `raw`, with its bounds where they are known.
        points: (n, d) in the unit cube, logarithmic where the file says so; 0 where inactive.
        active: (n, d), False where a hyperparameter is inactive.
        curves: (n, T) in [0, 1], more is better, finite.
        raw: (n, T) in the metric's own units; what is not finite has diverged.
        seconds: (n, T), cumulative, where the file has them.
        test: (n, T), what the user finally gets, in the metric's own units, where known.
        options: (d,), how many options a categorical hyperparameter has, whose `points` are the
            middles of so many equal parts; 0 of a number. Empty: all are numbers.
        static: further objectives that are measured once, each with its values (n,).
    """

    name: str
    suite: str
    objective: Objective
    points: FloatArray
    active: NDArray[np.bool_]
    curves: FloatArray
    raw: FloatArray
    seconds: FloatArray | None = None
    test: FloatArray | None = None
    options: tuple[int, ...] = ()
    static: tuple[tuple[Objective, FloatArray], ...] = ()

    @property
    def units(self) -> int:
        """T, the longest that a configuration was trained."""
        return int(self.curves.shape[1])

    def __len__(self) -> int:
        return len(self.points)

    def space(self) -> RowSpace:
        """The table's rows as a space of configurations."""
        return RowSpace(self.points, self.active, self.options)

    def distances(self, point: FloatArray) -> FloatArray:
        """Squared distances of all rows from a point of the unit cube, (n,)."""
        return distances(self.points, self.options, point)


def distances(points: FloatArray, options: Sequence[int], point: FloatArray) -> FloatArray:
    """Squared distances of points (n, d) from one, (n,); another category is at distance 1."""
    away = points - point
    for column in np.flatnonzero(options):
        count = options[column]
        away[:, column] = _codes(points[:, column], count) != _codes(point[column], count)
    return np.asarray((away**2).sum(axis=1))


def _codes(places: Any, count: int) -> Any:
    return np.minimum(np.floor(np.asarray(places) * count), count - 1)


class RowSpace(Space):
    """A space whose only configurations are a table's rows; of equal rows the first counts.

    Decoding gives the nearest row; a neighbour is one of the nearest, nearer ones more often. The
    default is the row nearest to that of a space without any: the middle of every range, the first
    option.
    """

    def __init__(
        self, points: FloatArray, active: NDArray[np.bool_], options: Sequence[int] = ()
    ) -> None:
        self.options = tuple(options) or (0,) * points.shape[1]
        middles = [tuple((np.arange(count) + 0.5) / count) for count in self.options]
        super().__init__(
            {
                f"x{index}": Categorical(tuple(map(float, places))) if places else Float(0.0, 1.0)
                for index, places in enumerate(middles)
            }
        )
        self.points, self.active = points, active
        self._rows: dict[tuple[float, ...], int] = {}
        for row, point in enumerate(points.tolist()):
            self._rows.setdefault(tuple(point), row)

    def configuration(self, row: int) -> Configuration:
        """A row as a configuration."""
        return {f"x{index}": value for index, value in enumerate(self.points[row].tolist())}

    def row(self, configuration: Mapping[str, Any]) -> int:
        """The row of a configuration; KeyError if it is none of the table's."""
        return self._rows[tuple(configuration.values())]

    def default(self, given: Mapping[str, Any] | None = None) -> Configuration:
        return self.decode([0.5 / count if count else 0.5 for count in self.options])

    def sample(
        self,
        rng: np.random.Generator,
        prior: bool = False,
        given: Mapping[str, Any] | None = None,
    ) -> Configuration:
        return self.configuration(int(rng.integers(len(self.points))))

    def encode(self, configuration: Mapping[str, Any]) -> tuple[FloatArray, NDArray[np.bool_]]:
        row = self.row(configuration)
        return self.points[row], self.active[row]

    def decode(self, values: Any) -> Configuration:
        return self.configuration(int(self._distances(np.asarray(values)).argmin()))

    def neighbour(
        self, configuration: Mapping[str, Any], rng: np.random.Generator
    ) -> Configuration:
        order = np.argsort(self._distances(self.points[self.row(configuration)]), kind="stable")
        return self.configuration(int(order[min(int(rng.geometric(0.1)), len(order) - 1)]))

    def _distances(self, point: FloatArray) -> FloatArray:
        return distances(self.points, self.options, point)


def load(path: Path) -> Table:
    """The table in a file.

    Raises:
        TableError: its configurations are not described by numbers, or a key is missing.
    """
    with np.load(path, allow_pickle=False) as file:
        for key in ("X", "log", "Y", "fidelity", "metric", "minimise"):
            if key not in file.files:
                raise TableError(f"{path}: no array {key!r}; it holds {', '.join(file.files)}")
        raw = file["Y"].astype(np.float64)
        minimise, metric = bool(file["minimise"]), str(file["metric"])
        start = 1 if float(file["fidelity"][0]) == 0 else 0
        points, active = _unit_cube(file["X"].astype(np.float64), file["log"])
        further = {
            name: file[key].astype(np.float64)[:, start:]
            for name, key in (("seconds", "time"), ("test", "Y_test"))
            if key in file.files and file[key].shape == raw.shape
        }
    curves, bounds = _scaled(raw, minimise, metric)
    objective = Objective("value", "minimize" if minimise else "maximize", "curve", bounds=bounds)
    return Table(
        path.stem,
        suite_of(path.stem),
        objective,
        points,
        active,
        curves[:, start:],
        raw[:, start:],
        **further,
    )


def load_all(folder: Path) -> list[Table]:
    """Every table of a folder, by name. Files whose configurations are not described by numbers
    (no ``X``) are no tables in this sense, and left out."""
    found = []
    for path in sorted(folder.glob("*.npz")):
        with np.load(path, allow_pickle=False) as file:
            described = "X" in file.files
        if described:
            found.append(load(path))
    return found


PARAMETERS = Objective("parameters", "minimize", "static")
MEMORY = Objective("memory", "minimize", "static", unit="B")
TIME = Objective("time", "minimize", "static", unit="s")


def with_objectives(path: Path) -> Table:
    """The table in a file with all objectives that are recorded in it: the time of the full run,
    and where they are known, peak memory and trainable parameters. The configurations of
    ``peft_metamathqa`` are its adapter's type, learning rate and parameters.

    Raises:
        TableError: it holds nothing beside the curves.
    """
    with np.load(path, allow_pickle=False) as file:
        if "time" not in file.files:
            raise TableError(f"{path}: no array 'time', and so no second objective")
        if "peft_type" not in file.files:
            table = load(path)
            return replace(table, static=((TIME, file["time"][:, -1].astype(np.float64)),))
        names, code = np.unique(file["peft_type"], return_inverse=True)
        parameters = file["n_params"].astype(np.float64)
        numbers, active = _unit_cube(
            np.stack([file["lr"], parameters], axis=1), np.array([True, True])
        )
        raw, seconds = file["Y"].astype(np.float64), file["time"].astype(np.float64)
        static = ((MEMORY, file["mem_max"].astype(np.float64)), (PARAMETERS, parameters))
    return Table(
        path.stem,
        suite_of(path.stem),
        Objective("value", "maximize", "curve", bounds=(0.0, 1.0)),
        np.column_stack([(code + 0.5) / len(names), numbers]),
        np.column_stack([np.ones(len(raw), dtype=bool), active]),
        raw,
        raw,
        seconds,
        options=(len(names), 0, 0),
        static=(*static, (TIME, seconds[:, -1])),
    )


def suite_of(name: str) -> str:
    """The suite that a file belongs to, from its name: ``lcbench_surrogate`` or the first word."""
    first = name.split("_")[0]
    return "lcbench_surrogate" if name.startswith("lcbench_surrogate") else first


def _unit_cube(raw: FloatArray, log: NDArray[Any]) -> tuple[FloatArray, NDArray[np.bool_]]:
    active = np.isfinite(raw)
    line = raw.copy()
    for column in range(raw.shape[1]):
        values = raw[active[:, column], column]
        if log[column] and values.size and values.min() > 0:
            line[:, column] = np.log(raw[:, column])
    low = np.min(line, axis=0, where=active, initial=np.inf)
    high = np.max(line, axis=0, where=active, initial=-np.inf)
    points = (line - low) / np.where(high > low, high - low, 1.0)
    return np.where(active, points, 0.0), active


def _scaled(
    raw: FloatArray, minimise: bool, metric: str
) -> tuple[FloatArray, tuple[float, float] | None]:
    """Curves in [0, 1], more is better, and the metric's bounds where they are known."""
    finite = np.isfinite(raw)
    known, firsts = raw[finite], raw[finite[:, 0], 0]
    start = float(np.median(firsts))
    bounds: tuple[float, float] | None = None
    if not minimise and "accuracy" in metric and known.min() >= 0 and known.max() <= 1:
        bounds, scaled = (0.0, 1.0), raw
    elif minimise and known.min() >= 0 and start > 0:
        scaled = 1.0 - raw / start
    else:
        oriented = -raw if minimise else raw
        middle = -start if minimise else start
        best = float(oriented[finite].max())
        low = middle - _BELOW_START * (best - middle)
        scaled = (oriented - low) / (best - low if best > low else 1.0)
    return np.clip(np.where(finite, scaled, 0.0), 0.0, 1.0), bounds

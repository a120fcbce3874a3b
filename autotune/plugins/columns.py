"""What a trial was measured at each step, kept in columns: a study of a million observations fits
into memory, and the last step is known without looking through the rest.

A mapping of mappings would be the natural type, and is what these look like from outside; as
dictionaries they would take ten times the room.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping

import numpy as np


class _ByStep:
    """Steps in order, each with its place in the columns."""

    __slots__ = ("_steps",)

    def __init__(self) -> None:
        self._steps = array("q")

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[int]:
        return iter(self._steps)

    def __contains__(self, step: object) -> bool:
        return isinstance(step, int) and self._place(step) is not None

    def __repr__(self) -> str:
        return repr({step: self[step] for step in self})  # type: ignore[index]

    @property
    def last(self) -> int:
        """The last step, 0 if there is none."""
        return self._steps[-1] if self._steps else 0

    def _place(self, step: int) -> int | None:
        place = bisect_left(self._steps, step)
        return place if place < len(self._steps) and self._steps[place] == step else None

    def _found(self, step: int) -> int:
        place = self._place(step)
        if place is None:
            raise KeyError(step)
        return place


class Seconds(_ByStep, Mapping[int, float]):
    """A number by step, with their sum."""

    __slots__ = ("_values", "total")

    def __init__(self) -> None:
        super().__init__()
        self._values = array("d")
        self.total = 0.0

    def __getitem__(self, step: int) -> float:
        return self._values[self._found(step)]

    def put(self, step: int, value: float) -> None:
        """The number at a step, in place of an earlier one."""
        place = bisect_left(self._steps, step)
        if place < len(self._steps) and self._steps[place] == step:
            self.total += value - self._values[place]
            self._values[place] = value
            return
        self._steps.insert(place, step)
        self._values.insert(place, value)
        self.total += value


class Metrics(_ByStep, Mapping[int, dict[str, float]]):
    """Values by step and name. What is read is a copy."""

    __slots__ = ("_columns",)

    def __init__(self) -> None:
        super().__init__()
        self._columns: dict[str, tuple[array[float], bytearray]] = {}
        """By name, values and whether there is one: not a number is a value too."""

    def __getitem__(self, step: int) -> dict[str, float]:
        place = self._found(step)
        return {name: v[place] for name, (v, known) in self._columns.items() if known[place]}

    @property
    def names(self) -> frozenset[str]:
        """Of all metrics that were measured at any step."""
        return frozenset(self._columns)

    def put(self, step: int, values: Mapping[str, float]) -> None:
        """What was measured at a step, in place of all that was before."""
        place = bisect_left(self._steps, step)
        if place == len(self._steps) or self._steps[place] != step:
            self._steps.insert(place, step)
            for numbers, known in self._columns.values():
                numbers.insert(place, math.nan)
                known.insert(place, False)
        for name in values.keys() - self._columns.keys():
            count = len(self._steps)
            self._columns[name] = array("d", [math.nan]) * count, bytearray(count)
        for name, (numbers, known) in self._columns.items():
            known[place] = name in values
            numbers[place] = values.get(name, math.nan)

    def column(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values of one metric, in order of steps, shape (measured,) each; copies."""
        if name not in self._columns:
            return np.zeros(0, dtype=np.int64), np.zeros(0)
        numbers, known = self._columns[name]
        measured = np.array(known, dtype=bool)
        return np.array(self._steps)[measured], np.array(numbers)[measured]

    def curve(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of one metric, in order of steps."""
        if name not in self._columns:
            return [], []
        numbers, known = self._columns[name]
        if all(known):
            return list(self._steps), list(numbers)
        there = [place for place, measured in enumerate(known) if measured]
        return [self._steps[place] for place in there], [numbers[place] for place in there]

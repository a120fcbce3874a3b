"""A study's events, kept to be folded again, with the observations in columns: they are nearly
all of them, and as objects a million would take a gigabyte."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping

from autotune.plugins.search import Event, Observed

_Layout = tuple[tuple[str, ...], tuple[str, ...]]


class History:
    """Events in order; equal to those that were appended."""

    def __init__(self) -> None:
        self._others: list[Event] = []
        self._layouts: dict[_Layout, int] = {}
        self._whole = array("q")
        """By event, a row of five for an observation: layout (-1: another event), trial, step,
        what was paid, and where its numbers begin."""
        self._numbers = array("d")

    def append(self, event: Event) -> None:
        """Constant work."""
        if not isinstance(event, Observed):
            self._whole.extend((-1, len(self._others), 0, 0, 0))
            self._others.append(event)
            return
        layout = (tuple(event.metrics), tuple(event.held_out))
        number = self._layouts.setdefault(layout, len(self._layouts))
        begin = len(self._numbers)
        self._whole.extend((number, event.trial, event.step, event.paid, begin))
        self._numbers.extend((event.seconds, event.at))
        self._numbers.extend(event.metrics.values())
        self._numbers.extend(event.held_out.values())

    def __iter__(self) -> Iterator[Event]:
        layouts = list(self._layouts)
        for row in range(0, len(self._whole), 5):
            number, trial, step, paid, begin = self._whole[row : row + 5]
            if number < 0:
                yield self._others[trial]
                continue
            metrics, held_out = layouts[number]
            middle = begin + 2 + len(metrics)
            seconds, at = self._numbers[begin : begin + 2]
            told = self._named(metrics, begin + 2)
            yield Observed(trial, step, told, seconds, at, self._named(held_out, middle), paid)

    def _named(self, names: tuple[str, ...], begin: int) -> Mapping[str, float]:
        return dict(zip(names, self._numbers[begin : begin + len(names)], strict=True))

"""Outcome constraints: limits on metrics that a winner must keep, such as ``latency_ms <= 5``.

How far metrics are beyond their limits is one number, the sum over the constraints of the excess as
a share of the bound (Deb 2000, An efficient constraint handling method for genetic algorithms,
section 3, which asks for such a scale). What keeps all limits ranks before what does not, and of
what does not the less violating first (his rule). A metric that was not measured yet speaks neither
for nor against.
"""

from __future__ import annotations

import math
import operator
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
_CONSTRAINT = re.compile(r"\s*([^<>=\s]+)\s*(<=|>=|<|>)\s*(\S+)\s*")


@dataclass(frozen=True)
class Constraint:
    """A limit on a metric.

    Args:
        name: the metric.
        comparison: one of ``<= >= < >``.
        bound: finite, in the metric's unit.

    Raises:
        ValueError: if one of them is anything else.
    """

    name: str
    comparison: str
    bound: float

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"a constraint on {self.name!r}; expected the name of a metric")
        if self.comparison not in _COMPARISONS:
            raise ValueError(
                f"the constraint on {self.name!r} compares by {self.comparison!r}; expected one "
                f"of {', '.join(_COMPARISONS)}"
            )
        number = isinstance(self.bound, int | float) and not isinstance(self.bound, bool)
        if not number or not math.isfinite(self.bound):
            raise ValueError(
                f"the constraint on {self.name!r} is bounded by {self.bound!r}; expected a finite "
                f"number"
            )

    @classmethod
    def parse(cls, text: str) -> Constraint:
        """Read ``name <= number``; the inverse of `str`.

        Raises:
            ValueError: if the text is anything else; the message says what was expected.
        """
        match = _CONSTRAINT.fullmatch(text)
        bound = math.nan
        if match:
            try:
                bound = float(match[3])
            except ValueError:
                match = None
        if match is None or not math.isfinite(bound):
            raise ValueError(f"{text!r} is no constraint; expected one like 'latency_ms <= 5'")
        return cls(match[1], match[2], bound)

    @property
    def wants_less(self) -> bool:
        """Whether the bound is an upper one."""
        return self.comparison.startswith("<")

    def excess(self, value: float) -> float:
        """How far a value is beyond the bound, as a share of the bound (of 1 where that is 0):
        above 0 exactly where the limit is not kept; NaN of NaN, which was not measured."""
        away = value - self.bound if self.wants_less else self.bound - value
        share = away / (abs(self.bound) or 1.0)
        if math.isnan(share):
            return math.nan
        if _COMPARISONS[self.comparison](value, self.bound):
            return min(share, 0.0)
        return max(share, sys.float_info.min)

    def __str__(self) -> str:
        short = f"{self.bound:g}"
        bound = short if float(short) == self.bound else repr(self.bound)
        return f"{self.name} {self.comparison} {bound}"


def violation(constraints: Iterable[Constraint], metrics: Mapping[str, float]) -> float:
    """The sum of what `metrics` are beyond each limit; 0 where every one that was measured keeps
    its own."""
    found = (c.excess(metrics.get(c.name, math.nan)) for c in constraints)
    return sum(excess for excess in found if excess > 0)


def feasibility(constraints: Iterable[Constraint], metrics: Mapping[str, float]) -> bool | None:
    """Whether `metrics` keep all limits; None where none that was measured is broken, but not all
    were measured."""
    found = [c.excess(metrics.get(c.name, math.nan)) for c in constraints]
    if any(excess > 0 for excess in found):
        return False
    return None if any(math.isnan(excess) for excess in found) else True

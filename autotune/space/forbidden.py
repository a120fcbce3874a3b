"""Forbidden combinations: clauses over a whole configuration, compiled once, looked up fast."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from autotune.space.choices import Choice
from autotune.space.errors import MISSING, SpaceError, nearest, unknown
from autotune.space.parameters import (
    Constant,
    Float,
    Integer,
    Parameter,
    is_number,
    is_scalar,
    same,
)

Clause: TypeAlias = Mapping[str, Any]
"""Conditions by dotted path: a scalar, a list of scalars, or a comparison like ``"> 0.1"``."""

_COMPARISON = re.compile(
    r"\s*(<=|>=|<|>|!=)\s*([-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?)\s*\Z"
)
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "!=": operator.ne,
}
_EXPECTED = 'a value, a list of values, or a comparison with a number such as "> 0.1"'

_INACTIVE = object()


@dataclass(frozen=True)
class Term:
    """One condition of a clause: `values` it may equal, or a comparison with `bound`."""

    path: tuple[str, ...]
    values: tuple[Any, ...] = ()
    compare: str | None = None
    bound: float = 0.0

    def holds(self, configuration: Mapping[str, Any]) -> bool:
        """Whether it is true of a configuration; false where its path is inactive."""
        value: Any = configuration
        for part in self.path:
            if not isinstance(value, Mapping) or part not in value:
                return False
            value = value[part]
        if isinstance(value, Mapping):
            value = value.get("name", _INACTIVE)
        if self.compare is None:
            return any(same(value, other) for other in self.values)
        return is_number(value) and _OPERATORS[self.compare](value, self.bound)


@dataclass(frozen=True)
class Rule:
    """A compiled clause: forbidden where all terms hold."""

    clause: Clause
    terms: tuple[Term, ...]

    def forbids(self, configuration: Mapping[str, Any]) -> bool:
        """Whether the configuration is forbidden by it."""
        return all(term.holds(configuration) for term in self.terms)


def parse_condition(path: str, condition: Any) -> Term:
    """A term from what stands in a clause. Raises SpaceError without the clause's place."""
    keys = tuple(path.split("."))
    if isinstance(condition, str) and (match := _COMPARISON.match(condition)):
        return Term(keys, compare=match[1], bound=float(match[2]))
    if isinstance(condition, str) and re.match(r"\s*(<|>|!=)", condition):
        raise SpaceError(path, condition, _EXPECTED)
    if is_scalar(condition):
        return Term(keys, (condition,))
    if isinstance(condition, list | tuple) and condition:
        for index, value in enumerate(condition):
            if not is_scalar(value):
                raise SpaceError((path, index), value, "a number, a string, true, false or null")
        return Term(keys, tuple(condition))
    raise SpaceError(path, condition, _EXPECTED)


def compile_rules(forbidden: Sequence[Clause]) -> tuple[Rule, ...]:
    """Rules for clauses whose paths have been checked."""
    return tuple(
        Rule(clause, tuple(parse_condition(path, condition) for path, condition in clause.items()))
        for clause in forbidden
    )


def normalise(forbidden: Any) -> tuple[dict[str, Any], ...]:
    """Clauses of the right shape, lists as lists. Raises SpaceError at ``forbidden[i]...``."""
    if isinstance(forbidden, str) or not isinstance(forbidden, Sequence):
        raise SpaceError("forbidden", forbidden, "a list of clauses")
    clauses = []
    for index, clause in enumerate(forbidden):
        place = ("forbidden", index)
        if not isinstance(clause, Mapping) or not clause:
            raise SpaceError(place, clause, "a mapping of parameter to condition")
        plain: dict[str, Any] = {}
        for path, condition in clause.items():
            if not isinstance(path, str):
                raise SpaceError(place, path, "the dotted path of a parameter")
            try:
                parse_condition(path, condition)
            except SpaceError as error:
                raise error.under(*place) from None
            plain[path] = list(condition) if isinstance(condition, list | tuple) else condition
        clauses.append(plain)
    return tuple(clauses)


def under(prefix: str, clause: Clause, conditions: Clause) -> dict[str, Any]:
    """A nested space's clause as its parent sees it: paths prefixed, and only while the
    `conditions` that make the nested space active hold."""
    return {**conditions, **{f"{prefix}.{path}": value for path, value in clause.items()}}


def check_term(path: str, condition: Any, at: Mapping[str, list[Any]]) -> None:
    """Whether a condition can be met by anything that stands at `path`."""
    if path not in at:
        raise unknown((path,), path, at, "parameter")
    term = parse_condition(path, condition)
    parameters = at[path]
    if term.compare is not None:
        if not any(_has_numbers(parameter) for parameter in parameters):
            raise SpaceError(path, condition, parameters[0].expected)
        return
    for value in term.values:
        if not any(_can_be(parameter, value) for parameter in parameters):
            names = [name for p in parameters if isinstance(p, Choice) for name in p.options]
            raise SpaceError(path, value, parameters[0].expected, nearest(value, names))


def _has_numbers(parameter: Parameter | Choice) -> bool:
    if isinstance(parameter, Float | Integer):
        return True
    if isinstance(parameter, Choice):
        return False
    values = [parameter.value] if isinstance(parameter, Constant) else parameter._values
    return any(is_number(value) for value in values)


def _can_be(parameter: Parameter | Choice, value: Any) -> bool:
    if isinstance(parameter, Choice):
        return isinstance(value, str) and value in parameter.options
    return parameter.canonical(value) is not MISSING

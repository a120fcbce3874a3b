"""What users write, as values: objectives, constraints, budgets, limits, the final phase, utility;
by Python or on the command line. Study files are read in `autotune.study_file`, with every
mistake's line.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from autotune.checks import known_objective
from autotune.header import StudyError
from autotune.plugins.constraints import Constraint
from autotune.plugins.execution import Limits
from autotune.plugins.search import Budget, Final, Holdout, Objective, Utility

LARGEST = 2**53
"""No limit is larger: what counts to it is exact."""

_LIMITS = ("epochs", "steps", "trials", "minutes", "seconds", "evaluations", "gpu_seconds")
_GAINS = ("improvement", "percent")
_PRICES = ("epochs", "steps", "minutes", "seconds")


def as_objectives(
    wanted: Sequence[str | Objective | Mapping[str, Any]],
) -> tuple[Objective, ...]:
    """Objectives by name, as they are, or by their fields. Raises `StudyError`."""
    if isinstance(wanted, str | Objective | Mapping):
        wanted = [wanted]
    found = []
    for given in wanted:
        if isinstance(given, Objective):
            found.append(given)
        elif isinstance(given, str):
            found.append(known_objective(given))
        else:
            try:
                found.append(Objective(**given))
            except TypeError as error:
                raise StudyError(f"objectives: {dict(given)!r}: {error}") from None
    return tuple(found)


def as_constraints(given: str | Sequence[str | Constraint]) -> tuple[Constraint, ...]:
    """Constraints such as ``latency_ms <= 5``. Raises `StudyError`."""
    listed = [given] if isinstance(given, str | Constraint) else given
    if isinstance(listed, Mapping) or not isinstance(listed, Iterable):
        raise StudyError(
            f"constraints: are {given!r}; expected a list of limits like 'latency_ms <= 5'"
        )
    found = []
    for one in listed:
        try:
            found.append(one if isinstance(one, Constraint) else Constraint.parse(one))
        except (TypeError, ValueError) as error:
            raise StudyError(f"constraints: {error}") from None
    return tuple(found)


def as_budget(given: Budget | Mapping[str, float]) -> tuple[Budget, Any]:
    """A budget and what the user calls its units, None if it has none. Raises `StudyError`."""
    if isinstance(given, Budget):
        return given, None
    if not isinstance(given, Mapping):
        raise StudyError(f"budget: is {given!r}; expected a mapping such as {{'epochs': 300}}")
    if unknown := [key for key in given if key not in _LIMITS]:
        raise StudyError(
            f"budget: there is no limit {unknown[0]!r}; the limits are {', '.join(_LIMITS)}"
        )
    for pair in (("epochs", "steps"), ("minutes", "seconds")):
        if all(key in given for key in pair):
            raise StudyError(f"budget: give either {pair[0]} or {pair[1]}")
    for key, value in given.items():
        whole = key not in ("minutes", "seconds", "gpu_seconds")
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
            expected = "a whole number" if whole else "a number"
            raise StudyError(f"budget: {key} is {value!r}; expected {expected}")
        if abs(value) > LARGEST:
            raise StudyError(f"budget: {key} is out of all proportion; leave the limit out")
    units = given.get("epochs", given.get("steps"))
    seconds = given["minutes"] * 60.0 if "minutes" in given else given.get("seconds")
    unit = "epoch" if "epochs" in given else ("step" if "steps" in given else None)
    budget = Budget(
        units,  # type: ignore[arg-type]
        given.get("trials"),  # type: ignore[arg-type]
        seconds,
        given.get("evaluations"),  # type: ignore[arg-type]
        given.get("gpu_seconds"),
    )
    return budget, unit


def with_limits(
    budget: Budget, unit: Any, limits: Mapping[str, float | None]
) -> tuple[Budget, Any]:
    """A budget with some limits replaced, None dropping one, and what its units are called now.
    Raises `StudyError`."""
    changed, named = as_budget(
        {key: 1 if value is None else value for key, value in limits.items()}
    )
    field_of = {"epochs": "units", "steps": "units", "minutes": "seconds"}
    fields = {field_of.get(key, key) for key in limits}
    dropped = {field_of.get(key, key) for key, value in limits.items() if value is None}
    values = {key: None if key in dropped else getattr(changed, key) for key in fields}
    return replace(budget, **values), named or unit


def as_final(given: bool | Final | Mapping[str, Any]) -> Final | None:
    """The final phase: True for the default one, False for none. Raises `StudyError`."""
    if isinstance(given, bool):
        return Final() if given else None
    values = asdict(given) if isinstance(given, Final) else given
    if not isinstance(values, Mapping):
        raise StudyError(
            f"final: is {given!r}; expected true, false, or a mapping such as "
            f"{{'candidates': 3, 'seeds': 3}}"
        )
    if unknown := [key for key in values if key not in asdict(Final())]:
        raise StudyError(
            f"final: there is no {unknown[0]!r}; expected {', '.join(asdict(Final()))}"
        )
    for key, value in values.items():
        if key in ("share", "cooldown"):
            from_zero = key == "cooldown"
            if not (_is_number(value) and (0 < value < 1 or (from_zero and value == 0))):
                expected = "a number from 0 to below 1" if from_zero else "a number between 0 and 1"
                raise StudyError(f"final: {key} is {value!r}; expected {expected}")
            continue
        least = 0 if key == "refine" else 1
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            expected = "a whole number" + (" above 0" if least else " from 0 on")
            raise StudyError(f"final: {key} is {value!r}; expected {expected}")
    return Final(**values)


def as_utility(given: Utility | Mapping[str, float] | None) -> tuple[Utility | None, Any]:
    """What an improvement is worth, and what the user calls the units it is worth, None if it
    is worth seconds. Raises `StudyError`."""
    if given is None or isinstance(given, Utility):
        return given, None
    what = (
        "expected what is gained (improvement, or percent of the best value) and what that is "
        "worth (epochs, steps, seconds or minutes), such as {'percent': 1, 'epochs': 30}"
    )
    if not isinstance(given, Mapping):
        raise StudyError(f"utility: is {given!r}; {what}")
    gains, prices = ([key for key in given if key in known] for known in (_GAINS, _PRICES))
    if len(gains) != 1 or len(prices) != 1 or len(given) != 2:
        raise StudyError(f"utility: is {dict(given)!r}; {what}")
    for key, value in given.items():
        if not (_is_number(value) and 0 < value < math.inf):
            raise StudyError(f"utility: {key} is {value!r}; expected a number above 0")
    (gain,), (price,) = gains, prices
    values: dict[str, float] = {gain: float(given[gain])}
    if price in ("epochs", "steps"):
        return Utility(**values, units=float(given[price])), price.removesuffix("s")
    seconds = given[price] * (60.0 if price == "minutes" else 1.0)
    return Utility(**values, seconds=seconds), None


def as_holdout(given: Holdout | Mapping[str, Any] | None) -> Holdout | None:
    """The reusable hold-out; None for none. Raises `StudyError`."""
    if given is None:
        return None
    values = asdict(given) if isinstance(given, Holdout) else given
    known = asdict(Holdout())
    if not isinstance(values, Mapping) or any(key not in known for key in values):
        raise StudyError(f"holdout: is {given!r}; expected a mapping of any of {', '.join(known)}")
    for key, value in values.items():
        if key == "budget" and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise StudyError(f"holdout: budget is {value!r}; expected a whole number above 0")
        if not (_is_number(value) and 0 < value < math.inf):
            raise StudyError(f"holdout: {key} is {value!r}; expected a number above 0")
    return Holdout(**values)


def as_limits(given: Limits | Mapping[str, Any] | None, before: Limits | None = None) -> Limits:
    """What execution may take; what is not given stays as it was, or takes its default. Raises
    `StudyError`."""
    if isinstance(given, Limits):
        return given
    known = ("segment_minutes", "checkpoint_gb")
    if given is not None and (
        not isinstance(given, Mapping) or any(key not in known for key in given)
    ):
        raise StudyError(f"limits: is {given!r}; expected a mapping of any of {', '.join(known)}")
    changes: dict[str, Any] = {}
    for key, value in (given or {}).items():
        if not (_is_number(value) and 0 < value < math.inf):
            raise StudyError(f"limits: {key} is {value!r}; expected a number above 0")
        if key == "segment_minutes":
            changes["segment_seconds"] = value * 60.0
        else:
            changes["checkpoint_bytes"] = int(value * 1e9)
    return replace(before or Limits(), **changes)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def as_numbers(option: str, given: Sequence[str]) -> dict[str, float | None]:
    """``KEY=NUMBER`` texts of the command line as a mapping; ``none`` is None. Raises
    `StudyError` with the option's name."""
    found: dict[str, float | None] = {}
    for text in given:
        key, equals, number = text.partition("=")
        try:
            value = None if number == "none" else (float(number) if "." in number else int(number))
        except ValueError:
            equals = ""
        if not equals:
            examples = {"--budget": "a limit such as epochs=300", "--final": "such as seeds=3"}
            example = examples.get(option, "such as epochs=30")
            raise StudyError(f"{option}: got {text!r}, expected {example}")
        if key in found:
            raise StudyError(f"{option}: {key} is given twice")
        found[key] = value
    return found

"""Earlier studies as the beginning of a new one (`warm_start`): their trials, fitted to the new
space, and what was done to them in words. All of it goes into the header, so that the earlier
study may be gone when the new one is resumed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from autotune.decide.configurations import identity
from autotune.decide.final import winner
from autotune.header import Header, StudyError
from autotune.plugins.search import Earlier, EarlierTrial
from autotune.plugins.trials import Trial, Trials
from autotune.result import Result, StudyView
from autotune.space import Choice, Configuration, Space, SpaceError
from autotune.space.errors import MISSING
from autotune.space.parameters import Constant, Float, Integer, Ordinal, is_number

CANDIDATES = 4
"""So many of an earlier study's best configurations are tried first."""

CURVES = 100
"""No more curves are kept of an earlier study: the better half by their best value, the rest
evenly over the others."""

POINTS = 16
"""A curve is thinned to so many units: dense at the beginning, with the first and the last."""


class _Gone(Exception):
    """The configuration has a choice that the new space lacks."""


def earlier_studies(
    sources: Sequence[StudyView | Result], header: Header
) -> tuple[tuple[Earlier, ...], tuple[Configuration, ...]]:
    """What earlier studies bring to the study of `header`, and the configurations to try first.

    Raises:
        StudyError: a study has another primary objective or counts another unit.
    """
    space = header.context().space
    found: list[Earlier] = []
    first: dict[str, Configuration] = {}
    for source in sources:
        view = source.view if isinstance(source, Result) else source
        _check(view, header)
        earlier, best = _fitted(view, space)
        found.append(earlier)
        for configuration in best:
            first.setdefault(identity(configuration), configuration)
    return tuple(found), tuple(first.values())


def _check(view: StudyView, header: Header) -> None:
    was, now = view.context.objective, header.context().objective
    if (was.name, was.direction) != (now.name, now.direction):
        raise StudyError(
            f"warm_start: study {view.name!r} is driven by {was.name} ({was.direction}), this one "
            f"by {now.name} ({now.direction}); their values cannot be compared"
        )
    if view.header.unit != header.unit:
        raise StudyError(
            f"warm_start: study {view.name!r} counts {view.header.unit}s, this one {header.unit}s"
        )


def _fitted(view: StudyView, space: Space) -> tuple[Earlier, list[Configuration]]:
    """The study's trials in the new space. A configuration of which a number had to be moved
    into its range is a candidate, but its curve is not that of the configuration it became."""
    trials = view.trials
    notes: Counter[str] = Counter()
    exact: dict[int, Configuration] = {}
    fitted: dict[int, Configuration] = {}
    for number in _ranked(trials):
        moved: list[str] = []
        try:
            partial = _fit(space, trials[number].configuration, "", moved, notes)
            configuration = space.complete(partial)
        except _Gone as error:
            notes[str(error)] += 1
            continue
        except SpaceError as error:
            notes[f"left out: {error}"] += 1
            continue
        fitted[number] = configuration
        notes.update(moved)
        if not moved:
            exact[number] = configuration
    # What failed there is a curve to learn from, and nothing to try first.
    best = {identity(c): c for number, c in fitted.items() if trials[number].status != "failed"}
    kept = _chosen(list(exact))
    curves = tuple(_curve(trials, trials[number], exact[number]) for number in kept)
    candidates = [] if trials.best is None else list(best.values())[:CANDIDATES]
    words = [f"{len(candidates)} configurations to try first, {len(curves)} curves"]
    words += [f"{text} ({count} trials)" for text, count in notes.items()]
    return Earlier(view.name, curves, tuple(words)), candidates


def _ranked(trials: Trials) -> list[int]:
    """Trials in their own right, best first: the winner of a final phase, then by what they
    violate and their best value, failed ones last."""
    first = winner(trials)

    def rank(number: int) -> tuple[bool, bool, tuple[float, float], int]:
        failed = trials[number].status == "failed"
        return first is None or first.trial != number, failed, trials.standing(number), number

    own = [n for n, t in trials.all.items() if t.own and (t.metrics or t.failure)]
    return sorted(own, key=rank)


def _chosen(ranked: list[int]) -> list[int]:
    if len(ranked) <= CURVES:
        return ranked
    half, rest = ranked[: CURVES // 2], ranked[CURVES // 2 :]
    count = CURVES - len(half)
    return half + [rest[index * len(rest) // count] for index in range(count)]


def _curve(trials: Trials, trial: Trial, configuration: Configuration) -> EarlierTrial:
    steps, values = trial.curve(trials.objective.name)
    finite = [i for i, value in enumerate(values) if math.isfinite(value)]
    last = len(finite) - 1
    places = {round(last * (index / (POINTS - 1)) ** 2) for index in range(POINTS)}
    kept = [finite[place] for place in sorted(places)] if finite else []
    return EarlierTrial(
        configuration,
        trial.horizon,
        tuple(steps[i] for i in kept),
        tuple(values[i] for i in kept),
        tuple(trial.seconds.get(steps[i], 0.0) for i in kept),
        trial.status == "failed",
    )


def _fit(
    space: Space, values: Mapping[str, Any], path: str, moved: list[str], notes: Counter[str]
) -> dict[str, Any]:
    """The part of a configuration that the space has; `moved` says which numbers were moved,
    `notes` what is new or missing. Raises `_Gone`."""
    partial: dict[str, Any] = {}
    for name, node in space.parameters.items():
        here = f"{path}{name}"
        if name not in values:
            notes[f"{here}: not in the earlier study, taken at its default"] += 1
        elif isinstance(node, Space):
            inner = values[name] if isinstance(values[name], Mapping) else {}
            partial[name] = _fit(node, inner, f"{here}.", moved, notes)
        elif isinstance(node, Choice):
            partial[name] = _option(node, values[name], here, moved, notes)
        else:
            partial[name] = _value(node, values[name], here, moved, notes)
    for name in values:
        if name not in space.parameters and name != "name":
            notes[f"{path}{name}: not in this study, dropped"] += 1
    return partial


def _option(
    choice: Choice, value: Any, here: str, moved: list[str], notes: Counter[str]
) -> dict[str, Any]:
    given = value if isinstance(value, Mapping) else {"name": value}
    name = str(given.get("name"))
    if name not in choice.options:
        raise _Gone(f"{here}: {name!r} is no option any more, left out")
    return {"name": name, **_fit(choice.options[name], given, f"{here}.{name}.", moved, notes)}


def _value(node: Any, value: Any, here: str, moved: list[str], notes: Counter[str]) -> Any:
    if node.canonical(value) is not MISSING:
        return value
    if isinstance(node, Constant):
        moved.append(f"{here}: fixed at {node.value!r} now")
        return node.value
    if is_number(value) and isinstance(node, Float | Integer):
        inside = min(node.high, max(node.low, value))
        moved.append(f"{here}: outside of {node.low:g} to {node.high:g}, moved to its nearest end")
        # Off the grid of a stepped range or between whole numbers: the nearest of these.
        return inside if node.canonical(inside) is not MISSING else node.decode(node.encode(inside))
    if is_number(value) and isinstance(node, Ordinal) and all(map(is_number, node.values)):
        moved.append(f"{here}: not among the values, moved to the nearest")
        return min(node.values, key=lambda other: abs(float(other) - value))  # type: ignore[arg-type]
    raise _Gone(f"{here}: {value!r} is not allowed any more, left out")

"""Decisions, numbers, durations and configurations in words, alike in terminal and report."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from autotune.decide.final import Standing
from autotune.plugins.search import (
    Decision,
    Doubt,
    Evaluate,
    Finalists,
    Measure,
    Objective,
    Origin,
    Start,
    Stop,
    Thaw,
)

BLOCKS = "▁▂▃▄▅▆▇█"
ASCII_BLOCKS = "_.-~=+*#"


def number(value: float | int | None, digits: int = 4) -> str:
    """A metric for people: integers in full with thin grouping, others to `digits` figures."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if float(value).is_integer() and abs(value) < 1e12:
        return f"{int(value):,}"
    return f"{value:.{digits}g}"


def quantity(value: float | None, objective: Objective) -> str:
    """A metric with its unit."""
    text = number(value)
    return f"{text} {objective.unit}" if objective.unit and value is not None else text


def constraint_counts(counts: Mapping[bool | None, int]) -> str:
    """How many trials keep all constraints."""
    kept, open_ = counts.get(True, 0), counts.get(None, 0)
    keep = "keeps them" if kept == 1 else "keep them"
    rest = f", of {open_} it is not known yet" if open_ else ""
    return f"{plural(kept, 'trial')} {keep}, {counts.get(False, 0)} violate any{rest}"


def duration(seconds: float | None) -> str:
    """Seconds in the two largest units that matter: ``0.4 s``, ``12 s``, ``3 min 05 s``."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def plural(count: int, noun: str) -> str:
    """``1 epoch``, ``2 epochs``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def mean_text(standing: Standing) -> str:
    """A finalist's mean over seeds with its standard error."""
    error = standing.standard_error
    around = "" if error is None else f" ± {number(error, 2)}"
    return number(standing.mean) + around


def spaced(name: str) -> str:
    """A metric's or parameter's key as words: underscores become spaces."""
    return name.replace("_", " ")


def metric(objective: Objective) -> str:
    """An objective's name in words, without the unit that its value brings along
    (``latency_ms`` in ms)."""
    return spaced(objective.name.removesuffix("_" + objective.unit))


def title(objective: Objective) -> str:
    """An axis title: the name in words and the unit."""
    return metric(objective) + (f" [{objective.unit}]" if objective.unit else "")


def leaves(configuration: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a nested configuration with its dotted path; an option's name stands
    under the path of its choice."""
    for key, value in configuration.items():
        path = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Mapping):
            yield from leaves(value, path)
        elif key == "name" and prefix:
            yield prefix, value
        else:
            yield path, value


def choices(configuration: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """The option taken at every choice, by the choice's path."""
    found: dict[str, str] = {}
    for key, value in configuration.items():
        if isinstance(value, Mapping):
            path = f"{prefix}.{key}" if prefix else str(key)
            if "name" in value:
                found[path] = str(value["name"])
            found.update(choices(value, path))
    return found


def label(configuration: Mapping[str, Any]) -> str:
    """A configuration in a few words: the options taken at its top level."""
    return " · ".join(name for path, name in choices(configuration).items() if "." not in path)


def value_text(value: Any) -> str:
    """One value of a configuration."""
    if isinstance(value, float):
        return number(value, 5)
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def describe(decision: Decision, unit: str = "epoch") -> str:
    """A decision as a sentence without its subject: ``thaw trial 12 to epoch 8``."""
    match decision:
        case Start(trial=trial, to=to, origin=Origin() as origin):
            text = f"{origin_text(origin, unit)}, as trial {trial} to {unit} {to}"
            again = decision.repeat_of
            return text if again is None else f"{text}, again for trial {again}"
        case Start(trial=trial, to=to, repeat_of=int(original)):
            return f"train trial {original} again on another seed, as trial {trial} to {unit} {to}"
        case Finalists(trials=trials, seeds=seeds):
            named = ", ".join(map(str, trials))
            return (
                f"final phase: finish {'trial' if len(trials) == 1 else 'trials'} {named}, then "
                f"train each again on {plural(seeds, 'other seed')}"
            )
        case Start(trial=trial, to=to, configuration=configuration):
            text = label(configuration)
            return f"start trial {trial} to {unit} {to}" + (f": {text}" if text else "")
        case Thaw(trial=trial, to=to):
            return f"thaw trial {trial} to {unit} {to}"
        case Evaluate(trial=trial, step=step, evaluation=evaluation):
            text = label(evaluation)
            return f"evaluate trial {trial} at {unit} {step}" + (f" with {text}" if text else "")
        case Measure(trial=trial, step=step, evaluation=evaluation):
            text = label(evaluation)
            return f"measure trial {trial} at {unit} {step}" + (f" with {text}" if text else "")
        case Doubt(reason=reason):
            return f"doubt: {reason}"
        case Stop(reason=reason):
            return f"stop: {reason}"
        case _:
            return "wait"


def origin_text(origin: Origin, unit: str) -> str:
    """What a trial of the final phase was derived from, as a sentence without its subject."""
    if origin.how == "cooldown":
        return f"cool trial {origin.trial} down from {unit} {origin.step}"
    return f"refine trial {origin.trial} by its gradient norms"


def sparkline(values: Sequence[float], width: int, blocks: str = BLOCKS) -> str:
    """A line of block characters, one a column; the mean where several values share one.
    Values that are not finite are left blank."""
    if width < 1 or not values:
        return ""
    columns: list[float] = []
    count = min(width, len(values))
    for index in range(count):
        part = values[index * len(values) // count : (index + 1) * len(values) // count]
        finite = [value for value in part if math.isfinite(value)]
        columns.append(sum(finite) / len(finite) if finite else math.nan)
    finite = [value for value in columns if math.isfinite(value)]
    if not finite:
        return " " * count
    low, span = min(finite), max(finite) - min(finite)
    last = len(blocks) - 1
    return "".join(
        " "
        if not math.isfinite(value)
        else blocks[round((value - low) / span * last) if 0 < span < math.inf else 0]
        for value in columns
    )

"""Ray Tune's search spaces as spaces of ours."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from ray.tune.search.sample import Categorical as TuneCategorical
from ray.tune.search.sample import Domain, LogUniform, Normal, Quantized
from ray.tune.search.sample import Float as TuneFloat
from ray.tune.search.sample import Integer as TuneInteger

from autotune.space import Categorical, Float, Integer, Space, SpaceError

Meanings = Mapping[tuple[str, ...], Mapping[Any, Any]]
"""What a categorical's values stand for, where they are not plain themselves; by its place."""


def converted(param_space: Mapping[str, Any]) -> tuple[Space, Meanings]:
    """The space of what varies in a ``param_space``, as it is nested; and what the values of its
    categoricals stand for.

    Raises:
        SpaceError: a domain that has no bounds, or grid_search, which is no domain.
    """
    meanings: dict[tuple[str, ...], Mapping[Any, Any]] = {}
    return Space(_group(param_space, (), meanings)), meanings


def _group(
    values: Mapping[str, Any],
    place: tuple[str, ...],
    meanings: dict[tuple[str, ...], Mapping[Any, Any]],
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        here = (*place, name)
        if isinstance(value, Domain):
            found[name] = _parameter(here, value)
            if isinstance(value, TuneCategorical):
                names = _names(value.categories)
                meanings[here] = dict(zip(names, value.categories, strict=True))
        elif isinstance(value, Mapping):
            if set(value) == {"grid_search"}:
                raise SpaceError(
                    here, value, "a domain such as tune.choice", problem="a grid is no domain"
                )
            inside = _group(value, here, meanings)
            if inside:
                found[name] = inside
    return found


def as_tune(configuration: Mapping[str, Any], meanings: Meanings) -> dict[str, Any]:
    """A configuration as Tune hands it to a trainable."""
    return _meant(configuration, (), meanings)


def _meant(values: Mapping[str, Any], place: tuple[str, ...], meanings: Meanings) -> dict[str, Any]:
    found = {}
    for name, value in values.items():
        here = (*place, name)
        if isinstance(value, Mapping):
            found[name] = _meant(value, here, meanings)
        else:
            found[name] = meanings[here][value] if here in meanings else value
    return found


def from_tune(point: Mapping[str, Any], meanings: Meanings) -> dict[str, Any]:
    """The inverse, of a user's own point."""
    return _named(point, (), meanings)


def _named(values: Mapping[str, Any], place: tuple[str, ...], meanings: Meanings) -> dict[str, Any]:
    found = {}
    for name, value in values.items():
        here = (*place, name)
        if here in meanings:
            names = (known for known, meant in meanings[here].items() if meant == value)
            found[name] = next(names, value)
        else:
            inner = isinstance(value, Mapping)
            found[name] = _named(value, here, meanings) if inner else value
    return found


def _parameter(place: tuple[str, ...], domain: Domain) -> Any:
    sampler = domain.get_sampler()
    step = None
    if isinstance(sampler, Quantized):
        step, sampler = sampler.q, sampler.get_sampler()
    if isinstance(domain, TuneCategorical):
        return Categorical(tuple(_names(domain.categories)))
    number = domain if isinstance(domain, TuneFloat | TuneInteger) else None
    if (
        number is None
        or isinstance(sampler, Normal)
        or not (math.isfinite(number.lower) and math.isfinite(number.upper))
    ):
        raise SpaceError(
            place,
            type(domain).__name__,
            "a choice, or a number with bounds: uniform, loguniform, randint, lograndint, or one "
            "of these quantised",
            problem="this domain cannot be searched",
        )
    log = isinstance(sampler, LogUniform)
    if isinstance(number, TuneInteger):
        # The upper bound of Tune's integers is left out, that of its quantised ones is not.
        high = number.upper if step not in (None, 1) else number.upper - 1
        return Integer(number.lower, high, log=log)
    if step is not None and not log:
        return Float(number.lower, number.upper, step=step)
    return Float(number.lower, number.upper, log=log)


def _names(categories: Any) -> list[Any]:
    """The categories if they are plain, else a text for each, all different."""
    plain = all(isinstance(value, str | int | float | bool) for value in categories)
    if plain and len(set(map(repr, categories))) == len(categories):
        return list(categories)
    return [f"{index}: {_shown(value)}" for index, value in enumerate(categories)]


def _shown(value: Any) -> str:
    try:
        return json.dumps(value)
    except (TypeError, ValueError):
        return type(value).__name__

"""The two levels of a space: what affects training, and what affects only evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from autotune.space.choices import Plugins
from autotune.space.codec import Configuration
from autotune.space.parameters import Constant

if TYPE_CHECKING:
    from autotune.space.space import Entry, Space


def join(training: Mapping[str, Any], evaluation: Mapping[str, Any]) -> Configuration:
    """The whole configuration of its two parts; groups that both have are merged."""
    whole = dict(training)
    for key, value in evaluation.items():
        inner = whole.get(key)
        both = isinstance(inner, Mapping) and isinstance(value, Mapping)
        whole[key] = join(inner, value) if both else value  # type: ignore[arg-type]
    return whole


def part_of_space(space: Space, evaluation: bool) -> dict[str, Entry]:
    """The parameters of `space` on one level; inside a choice all is of the choice's level."""
    part: dict[str, Entry] = {}
    entry: Any
    for name, entry in space.parameters.items():
        if hasattr(entry, "parameters"):
            inner = part_of_space(entry, evaluation)
            # An empty group belongs to training, so that the whole can be put together again.
            if inner or (not evaluation and entry.is_empty):
                part[name] = type(space)(inner)
        elif _marked(entry) == evaluation:
            part[name] = entry
    return part


def configuration_part(
    space: Space, configuration: Mapping[str, Any], evaluation: bool
) -> Configuration:
    """What a configuration of `space` holds on one level."""
    part: Configuration = {}
    entry: Any
    for name, entry in space.parameters.items():
        if name not in configuration:
            continue
        if hasattr(entry, "parameters"):
            inner = configuration_part(entry, configuration[name], evaluation)
            if inner or (not evaluation and entry.is_empty):
                part[name] = inner
        elif _marked(entry) == evaluation:
            part[name] = configuration[name]
    return part


def _marked(entry: Any) -> bool:
    if isinstance(entry, Plugins):
        return entry.evaluation_only
    return not isinstance(entry, Constant) and bool(entry.evaluation)

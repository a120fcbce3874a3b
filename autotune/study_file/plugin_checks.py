"""Stage two of reading a study file: what depends on the installed plugins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autotune.plugins import PluginError
from autotune.plugins.discovery import GROUPS, Catalogue
from autotune.plugins.search import AUTO
from autotune.space import Choice, Plugins, Space, SpaceError
from autotune.space.errors import Path as Place
from autotune.space.errors import listed, unknown
from autotune.study_file.reading import StudyFile

SPACE_KINDS = ("optimizer", "schedule", "adapter", "tta")
"""The plugin kinds that a space may choose from; the others are the engine's own parts."""


def check_against_plugins(described: StudyFile, problems: list[SpaceError]) -> None:
    """Append what is wrong with kinds, plugin names, overrides, clauses, `first`, and the
    hyperparameters of the search and executor. Imports the plugins that are looked at."""
    catalogue = Catalogue()
    _check_kinds(described.space, (), problems)
    if not problems:
        try:
            resolved = described.space.resolve(catalogue)
        except SpaceError as error:
            outer = error.path[:1] == ("forbidden",)
            problems.append(error if outer else error.under("space"))
        else:
            _check_first(described.first, resolved, problems)
    for part, chosen in described.search.items():
        _check_part(part, chosen, ("search", part), catalogue, problems)
    _check_executor(described.executor, catalogue, problems)


def _check_kinds(space: Space, place: Place, problems: list[SpaceError]) -> None:
    for name, entry in space.parameters.items():
        here = (*place, name)
        if isinstance(entry, Space):
            _check_kinds(entry, here, problems)
        elif isinstance(entry, Choice):
            for option, inner in entry.options.items():
                _check_kinds(inner, (*here, "options", option), problems)
        elif isinstance(entry, Plugins) and entry.kind not in SPACE_KINDS:
            problem = unknown((*here, "plugins"), entry.kind, SPACE_KINDS, "plugin kind")
            if entry.kind in GROUPS.values():
                expected = f"one of {listed(SPACE_KINDS)}; this one stands under search or executor"
                problem = SpaceError((*here, "plugins"), entry.kind, expected)
            problems.append(problem.under("space"))


def _check_first(
    first: Sequence[Mapping[str, Any]], space: Space, problems: list[SpaceError]
) -> None:
    for index, partial in enumerate(first):
        try:
            space.complete(partial)
        except SpaceError as error:
            problems.append(error.under("first", index))


def _check_part(
    kind: str,
    chosen: Mapping[str, Any],
    place: Place,
    catalogue: Catalogue,
    problems: list[SpaceError],
) -> None:
    if (kind, chosen["name"]) == ("policy", AUTO):
        for key in chosen:
            if key != "name":
                problems.append(unknown((*place, key), key, ("name",), "key of policy auto"))
        return
    plugin = _plugin(kind, chosen, place, catalogue, problems)
    if plugin is None:
        return
    given = {key: value for key, value in chosen.items() if key != "name"}
    try:
        plugin.space().complete(given)
    except SpaceError as error:
        problems.append(error.under(*place))


def _check_executor(
    chosen: Mapping[str, Any], catalogue: Catalogue, problems: list[SpaceError]
) -> None:
    plugin = _plugin("executor", chosen, ("executor",), catalogue, problems)
    if plugin is None:
        return
    known = plugin.option_names
    for key in chosen:
        if key != "name" and key not in known:
            names = ("name", "workers", "device", *known)
            problems.append(unknown(("executor", key), key, names, "option"))


def _plugin(
    kind: str,
    chosen: Mapping[str, Any],
    place: Place,
    catalogue: Catalogue,
    problems: list[SpaceError],
) -> Any:
    name = chosen["name"]
    names = catalogue.names(kind)
    try:
        return catalogue.get(kind, name)
    except PluginError as error:
        if name not in names and ":" not in name:
            names = [AUTO, *names] if kind == "policy" else names
            problems.append(unknown(place, name, names, kind))
        else:
            problems.append(SpaceError(place, name, "", problem=str(error)))
    return None

"""Decides what to train next: pure folds of a study's events, without files, processes, clocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from autotune.decide.search import Search
from autotune.plugins.search import Event, SearchContext

__all__ = ["Search", "build_search"]


def build_search(
    context: SearchContext,
    search: Mapping[str, Mapping[str, Any]],
    get_plugin: Callable[[str, str], Any],
    past: Callable[[], Iterable[Event]] | None = None,
) -> Search:
    """A search from names.

    Args:
        context: what the deciding parts are told.
        search: for each of ``policy``, ``proposer`` and ``forecaster`` a mapping of ``name`` and
            hyperparameters of the plugin's own space.
        get_plugin: ``get_plugin(kind, name)`` gives the class.
        past: as `Search` takes it.

    Raises:
        SpaceError: a hyperparameter is unknown or out of range.
    """
    parts = []
    for kind in ("policy", "proposer", "forecaster"):
        plugin = get_plugin(kind, search[kind]["name"])
        given = {key: value for key, value in search[kind].items() if key != "name"}
        plugin.space().validate(plugin.space().complete(given))
        parts.append(plugin(given))
    policy, proposer, forecaster = parts
    return Search(context, policy, proposer, forecaster, past)

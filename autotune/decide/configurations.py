"""Configurations by identity: which come first, and which were not tried yet."""

from __future__ import annotations

import json

import numpy as np

from autotune.plugins.search import SearchContext
from autotune.space import Configuration, Space

TRIES = 50
"""Draws made for each configuration wanted before a space counts as exhausted."""


def identity(configuration: Configuration) -> str:
    """The same text for the same configuration, whatever the order of its keys."""
    return json.dumps(configuration, sort_keys=True)


def first_configurations(context: SearchContext) -> list[Configuration]:
    """The default configuration, then the user's own, each once: tried before all others."""
    found: dict[str, Configuration] = {}
    for configuration in (context.space.default(), *context.first):
        found.setdefault(identity(configuration), configuration)
    return list(found.values())


def unseen(
    space: Space, generator: np.random.Generator, count: int, taken: set[str], prior: bool = False
) -> list[Configuration]:
    """Up to `count` random configurations that are not in `taken`, all different; fewer if
    `TRIES` draws for each did not find them (a small space without any left)."""
    seen = set(taken)
    found: list[Configuration] = []
    for _ in range(count * TRIES):
        if len(found) == count:
            break
        configuration = space.sample(generator, prior=prior)
        if identity(configuration) not in seen:
            seen.add(identity(configuration))
            found.append(configuration)
    return found

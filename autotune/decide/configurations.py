"""Configurations by identity: which come first, which were not tried yet, which are nearly the
same as another."""

from __future__ import annotations

import json
from collections.abc import Container

import numpy as np

from autotune.plugins.search import FloatArray, SearchContext
from autotune.plugins.trials import Trials
from autotune.space import Configuration, Space

TRIES = 50
"""Draws made for each configuration wanted before a space counts as exhausted."""

NEAR = 0.005
"""Two configurations are nearly the same if no number differs by more than this share of its range
(on its own scale), and nothing else differs."""

_NOWHERE = -1.0
"""Stands for an inactive number: farther than `NEAR` from any that is active."""


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
    space: Space,
    generator: np.random.Generator,
    count: int,
    *taken: Container[str],
    prior: bool = False,
) -> list[Configuration]:
    """Up to `count` random configurations that are in none of `taken`, all different; fewer if
    `TRIES` draws for each did not find them (a small space without any left)."""
    found: dict[str, Configuration] = {}
    for _ in range(count * TRIES):
        if len(found) == count:
            break
        configuration = space.sample(generator, prior=prior)
        text = identity(configuration)
        if not any(text in texts for texts in (*taken, found)):
            found[text] = configuration
    return list(found.values())


def apart(configurations: list[Configuration], trials: Trials) -> list[Configuration]:
    """Those that are not nearly the same as a trial's or an earlier one; all of them if none is,
    so that a space of narrow ranges is searched to its end."""
    if not configurations:
        return []
    pairs = [trials.space.encode(configuration) for configuration in configurations]
    encoded, mask = np.stack([e for e, _ in pairs]), np.stack([m for _, m in pairs])
    points = np.where(mask, encoded, _NOWHERE)
    known = np.empty((0, points.shape[1]))
    if len(trials):
        rows = [(trial.encoded, trial.mask) for trial in trials.all.values()]
        known = np.where(np.stack([m for _, m in rows]), np.stack([e for e, _ in rows]), _NOWHERE)
    kept = [
        index
        for index, point in enumerate(points)
        if not _near(point, known) and not _near(point, points[:index])
    ]
    return [configurations[index] for index in kept] or configurations


def _near(point: FloatArray, others: FloatArray) -> bool:
    """Whether a point is nearly the same as one of the others, (points, slots)."""
    if not point.size:
        return bool(len(others))
    return bool((np.abs(others - point) <= NEAR).all(axis=1).any())

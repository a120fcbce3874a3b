"""Spaces, contexts and made-up learning curves that the tests here share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from autotune.decide import Search
from autotune.decide.forecasters.parametric import Parametric
from autotune.decide.policies.asha import ASHA
from autotune.decide.policies.freeze_thaw import FreezeThaw
from autotune.decide.policies.hyperband import Hyperband
from autotune.decide.policies.mo_asha import MOASHA
from autotune.decide.policies.pasha import PASHA
from autotune.decide.policies.random_search import RandomSearch
from autotune.decide.proposers.random import Random
from autotune.decide.proposers.sobol import Sobol
from autotune.decide.proposers.tpe import TPE
from autotune.plugins.search import Budget, Objective, SearchContext, known_objectives
from autotune.space import Categorical, Choice, Configuration, Float, Integer, Ordinal, Space

POLICIES = {
    plugin.name: plugin for plugin in (FreezeThaw, ASHA, Hyperband, PASHA, MOASHA, RandomSearch)
}
PROPOSERS = {plugin.name: plugin for plugin in (Random, Sobol, TPE)}
KNOWN = known_objectives()
LOSS = KNOWN["validation_loss"]

SPACE = Space(
    {
        "width": Integer(8, 64, log=True),
        "activation": Categorical(("relu", "gelu", "tanh")),
        "batch_size": Ordinal((32, 64, 128)),
        "optimizer": Choice(
            {
                "one": {"learning_rate": Float(1e-4, 1.0, log=True, default=0.01)},
                "two": {
                    "learning_rate": Float(1e-4, 1.0, log=True, default=0.01),
                    "inner": Choice({"plain": {}, "decayed": {"decay": Float(0.0, 1.0)}}),
                },
            }
        ),
        "adaptation": Choice(
            {"none": {}, "entropy": {"rate": Float(0.0, 1.0)}, "prior": {"count": Integer(1, 5)}},
            evaluation=True,
        ),
    },
    forbidden=[
        {"optimizer": "two", "batch_size": 32},
        {"optimizer": "two", "adaptation": "prior"},
    ],
)
TRAINING, EVALUATION = SPACE.split()


def context(
    budget: Budget | None = None,
    objectives: tuple[Objective, ...] = (LOSS,),
    **changes: Any,
) -> SearchContext:
    """A search without evaluation choices, unless they are given."""
    values: dict[str, Any] = {
        "space": TRAINING,
        "evaluation_space": Space({}),
        "objectives": objectives,
        "horizon": 10,
        "budget": budget or Budget(units=120),
        "seed": 0,
        "workers": 2,
    }
    return SearchContext(**{**values, **changes})


def search(
    found: SearchContext, policy: str = "random_search", proposer: str = "random", past: Any = None
) -> Search:
    return Search(found, POLICIES[policy](), PROPOSERS[proposer](), Parametric(), past)


def curve(configuration: Configuration, step: int) -> Mapping[str, float]:
    """A loss that falls by a power law to an end that depends on the configuration; tanh with a
    high learning rate diverges at the third unit."""
    rate = configuration["optimizer"]["learning_rate"]
    if configuration["activation"] == "tanh" and rate > 0.2 and step >= 3:
        return {"validation_loss": math.nan}
    away = (math.log10(rate) + 2.3) ** 2 / 4 + abs(math.log2(configuration["width"] / 40)) / 4
    end = 0.1 + away + 0.2 * (configuration["optimizer"]["name"] == "one")
    return {"validation_loss": end + (2.3 - min(end, 2.0)) * (1 + step) ** -0.8}

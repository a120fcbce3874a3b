"""``policy: auto``, the default: which policy suits a study, and why.

It looks at what is known before the first event: the space, the objectives, the horizon and the
budget. That a trial can be frozen and gone on with is no question: every task's contract says so.
"""

from __future__ import annotations

import math

from autotune.decide.final import kept_at_first
from autotune.plugins.search import Budget, Final, Objective
from autotune.space import Choice, Float, Space

SEGMENTS = 20_000
"""From so many segments on, deciding by forecasts, at tenths of a second each, costs hours."""

SEGMENTS_A_TRIAL = 10


def chosen_policy(
    space: Space,
    objectives: tuple[Objective, ...],
    horizon: int,
    budget: Budget,
    final: Final | None = None,
) -> tuple[str, str]:
    """The policy's name, and why it, in words.

    Args:
        space: resolved.
        final: of the final phase, whose share of the budget trains nothing new.
    """
    trained = [objective.name for objective in objectives if objective.kind != "evaluation"]
    if horizon == 1:
        return "random_search", (
            "a trial is trained for one unit, so there is nothing to freeze: the proposer alone "
            "decides"
        )
    count = configurations(space.split()[0])
    if _pays_for(budget, kept_at_first(final, budget, horizon), count, horizon):
        return "random_search", (
            f"the budget pays for training each of the {count:.0f} configurations to its end, so "
            f"none has to be guessed at"
        )
    segments = _segments(budget)
    if segments >= SEGMENTS:
        return "asha" if len(trained) == 1 else "mo_asha", (
            f"the budget allows about {segments:,.0f} segments; to decide each by forecasts would "
            f"cost hours"
        )
    aim = f"it aims at the front of {', '.join(trained)}, and " if len(trained) > 1 else ""
    return "freeze_thaw", (
        f"{aim}the budget leaves time to forecast each of the trials that it could go to"
    )


def configurations(space: Space) -> float:
    """How many configurations a resolved space holds at most; infinite with a parameter of real
    numbers. What is forbidden is counted too."""
    count = 1.0
    for node in space.parameters.values():
        match node:
            case Float():
                return math.inf
            case Choice():
                count *= sum(configurations(option) for option in node.options.values())
            case Space():
                count *= configurations(node)
            case _:
                count *= getattr(node, "size", 1)  # a fixed value has none
    return count


def _pays_for(budget: Budget, kept: int, count: float, horizon: int) -> bool:
    """Whether so many trials can be trained to the horizon beside the units that are kept back;
    what seconds pay for is not known."""
    if budget.timed or math.isinf(count):
        return False
    units, trials = budget.units, budget.trials
    if units is not None and count * horizon > units - kept:
        return False
    return trials is None or count <= trials


def _segments(budget: Budget) -> float:
    """How many segments the budget allows at most, where it counts units or trials; else 0."""
    limits = [] if budget.units is None else [float(budget.units)]
    limits += [] if budget.trials is None else [float(budget.trials * SEGMENTS_A_TRIAL)]
    return min(limits, default=0.0)

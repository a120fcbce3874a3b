"""Where a model-based policy looks: frozen trials, and configurations that were never started."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet

import numpy as np

from autotune.decide.configurations import apart, identity, unseen
from autotune.decide.proposers.sobol import rotated
from autotune.plugins.search import ProposeFunction, SearchContext
from autotune.plugins.trials import Trial, Trials
from autotune.space import Configuration

PARENTS = 5
"""New configurations are also looked for near so many of the best trials."""


def frozen(trials: Trials, bests: Mapping[int, float], most: int) -> list[Trial]:
    """Frozen trials that may go on, by number; of more than `most` the better half by their best
    value and of the rest the newest.

    Args:
        bests: best oriented value of every trial that has one.
    """
    found = [t for t in trials.all.values() if t.status == "frozen" and t.number in bests]
    if len(found) > most:
        ranked = sorted(found, key=lambda trial: (bests[trial.number], trial.number))
        best, rest = ranked[: most // 2], ranked[most // 2 :]
        newest = sorted(rest, key=lambda trial: -trial.number)[: most - len(best)]
        found = sorted([*best, *newest], key=lambda trial: trial.number)
    return found


def new(
    context: SearchContext,
    trials: Trials,
    bests: Mapping[int, float],
    started: AbstractSet[str],
    propose: ProposeFunction,
    generator: np.random.Generator,
    counts: Mapping[str, int],
) -> list[Configuration]:
    """Configurations that were never started, all different, none nearly that of a trial.

    Args:
        bests: best oriented value of every trial that has one.
        started: identities of all configurations that were started.
        counts: how many at most of ``proposals`` (of the study's proposer), ``neighbours`` (of the
            best trials), ``sobol`` (a piece of a Sobol sequence, elsewhere in each decision) and
            ``prior`` (drawn from the priors of the space).
    """
    space = context.space
    found = propose(counts["proposals"]) if counts["proposals"] else []
    taken = {*started, *(identity(configuration) for configuration in found)}

    def add(configurations: Iterable[Configuration]) -> None:
        for configuration in configurations:
            text = identity(configuration)
            if text not in taken and space.forbids(configuration) is None:
                taken.add(text)
                found.append(configuration)

    parents = sorted(bests, key=lambda number: (bests[number], number))[:PARENTS]
    add(
        space.neighbour(trials[parents[index % len(parents)]].configuration, generator)
        for index in range(counts["neighbours"] if parents else 0)
    )
    add(rotated(space, counts["sobol"], generator))
    found += unseen(space, generator, counts["prior"], taken, prior=True)
    return apart(found, trials)

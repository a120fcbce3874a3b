"""Where a model-based policy looks: frozen trials, and configurations that were never started."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from types import MappingProxyType

import numpy as np

from autotune.decide.configurations import apart, identity, unseen
from autotune.decide.proposers.sobol import rotated
from autotune.plugins.search import ProposeFunction, SearchContext
from autotune.plugins.trials import Trial, Trials
from autotune.space import Configuration

SHARE = 1 / 3
"""Of the trials trained as long, so many may go on."""

PARENTS = 5
"""New configurations are also looked for near so many of the best trials, or of the front's."""


class Standing:
    """How trials stand among all that were trained as long: at every unit, the best values that
    trials had found by then, ascending; oriented so that less is better."""

    def __init__(self) -> None:
        self.found: dict[int, list[float]] = {}
        self.last: dict[int, tuple[int, float]] = {}
        self.failed: list[int] = []

    def note(self, number: int, step: int, value: float) -> None:
        """A trial's value at a unit; units that are trained again count once."""
        before, best = self.last.get(number, (0, math.inf))
        if step > before:
            best = min(best, value) if math.isfinite(value) else best
            self.last[number] = (step, best)
            insort(self.found.setdefault(step, []), best)

    def fail(self, number: int) -> None:
        """A trial ended badly: at every unit that it did not reach it is the worst."""
        insort(self.failed, self.last.get(number, (0, 0.0))[0])

    def leads(self, trial: Trial) -> bool:
        """Whether a trial is among the best `SHARE` of those trained as long as it is frozen."""
        step, best = self.last[trial.number]
        values = self.found[step]
        count = len(values) + bisect_left(self.failed, step)
        return bisect_left(values, best) < max(1, math.ceil(count * SHARE))


def frozen(
    trials: Trials,
    bests: Mapping[int, float],
    standing: Standing | None,
    most: int,
    kept: AbstractSet[int] = frozenset(),
    violations: Mapping[int, float] = MappingProxyType({}),
) -> list[Trial]:
    """Frozen trials that may go on, by number: those that lead at their length, or all if none
    does; of more than `most` the better half by their best value and of the rest the newest.

    A forecast leaves every poor curve a small chance to take off. With many of them the likeliest
    candidate is then one of these, again and again; the rule of successive halving, that only the
    best of those trained as long go on, ended that on recorded tables.

    Args:
        bests: best oriented value of every trial that has one.
        standing: None where trials that do not lead may go on as well: with several objectives a
            poor value of the primary one says little.
        kept: trials of the front, which count as better than all others.
        violations: of the constraints, of every trial that violates any; the more, the worse.
    """
    found = [t for t in trials.all.values() if t.status == "frozen" and t.number in bests]
    if standing is not None:
        found = [trial for trial in found if standing.leads(trial)] or found
    if len(found) > most:

        def rank(trial: Trial) -> tuple[bool, float, float, int]:
            number = trial.number
            return number not in kept, violations.get(number, 0.0), bests[number], number

        ranked = sorted(found, key=rank)
        best, rest = ranked[: most // 2], ranked[most // 2 :]
        newest = sorted(rest, key=lambda trial: -trial.number)[: most - len(best)]
        found = sorted([*best, *newest], key=lambda trial: trial.number)
    return found


def new(
    context: SearchContext,
    trials: Trials,
    parents: Sequence[int],
    started: AbstractSet[str],
    propose: ProposeFunction,
    generator: np.random.Generator,
    counts: Mapping[str, int],
) -> list[Configuration]:
    """Configurations that were never started, all different, none nearly that of a trial.

    Args:
        parents: trials near which new ones are looked for.
        started: identities of all configurations that were started.
        counts: how many at most of ``proposals`` (of the study's proposer), ``neighbours`` (of the
            parents), ``sobol`` (a piece of a Sobol sequence, elsewhere in each decision) and
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

    add(
        space.neighbour(trials[parents[index % len(parents)]].configuration, generator)
        for index in range(counts["neighbours"] if parents else 0)
    )
    add(rotated(space, counts["sobol"], generator))
    found += unseen(space, generator, counts["prior"], taken, prior=True)
    return apart(found, trials)

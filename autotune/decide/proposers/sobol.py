"""Proposals from a scrambled Sobol sequence: they fill the space evenly."""

from __future__ import annotations

from functools import lru_cache
from itertools import chain, islice
from typing import Any

import numpy as np
from scipy.stats import qmc

from autotune.decide.configurations import TRIES, identity
from autotune.plugins.search import FloatArray, Key, Proposer, SearchContext
from autotune.plugins.trials import Trials
from autotune.space import Configuration, Space

_BLOCK = 64


class Sobol(Proposer):
    """The points of one scrambled Sobol sequence over the unit cube, in order.

    A point is a function of (study seed, index) alone. Proposed are the first points, from the
    index of the next trial on, that are allowed and not among the study's trials; fewer than
    asked for where the sequence turns up none.
    """

    name = "sobol"
    summary = "scrambled Sobol sequence: fills the space more evenly than random draws"
    reference = "Owen 1998, Scrambling Sobol' and Niederreiter-Xing Points, J. of Complexity 14(4)"

    def propose(
        self, context: SearchContext, state: Any, trials: Trials, key: Key, count: int
    ) -> list[Configuration]:
        """The next allowed points of the sequence; the same whatever the decision's number."""
        dimensions = len(context.space.slots)
        if not dimensions:
            return [context.space.default()][:count]
        taken = {identity(trial.configuration) for trial in trials.all.values()}
        found: list[Configuration] = []
        index = len(trials)
        for index in range(len(trials), len(trials) + TRIES * count):
            if len(found) == count:
                break
            block, row = divmod(index, _BLOCK)
            configuration = context.space.decode(_points(context.seed, dimensions, block)[row])
            text = identity(configuration)
            if text not in taken and context.space.forbids(configuration) is None:
                taken.add(text)
                found.append(configuration)
        return found


def rotated(space: Space, count: int, generator: np.random.Generator) -> list[Configuration]:
    """`count` points of one Sobol sequence, all moved by the same random vector modulo 1 (Cranley
    and Patterson 1976): as even as the sequence, and elsewhere at every draw. Forbidden ones are
    among them."""
    dimensions = len(space.slots)
    if not dimensions:
        return [space.default()][:count]
    shift = generator.random(dimensions)
    blocks = [_points(0, dimensions, block) for block in range(-(-count // _BLOCK))]
    points = chain.from_iterable(blocks)
    return [space.decode((point + shift) % 1.0) for point in islice(points, count)]


@lru_cache(maxsize=256)
def _points(seed: int, dimensions: int, block: int) -> FloatArray:
    """Points `block * _BLOCK` and the following, shape (_BLOCK, dimensions)."""
    sequence = qmc.Sobol(dimensions, scramble=True, rng=seed)
    if block:
        sequence.fast_forward(block * _BLOCK)
    return sequence.random(_BLOCK)

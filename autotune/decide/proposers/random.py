"""Random proposals, drawn from the space and, in part, from its priors."""

from __future__ import annotations

from typing import Any

from autotune.plugins.search import Key, Proposer, SearchContext
from autotune.plugins.trials import Trials
from autotune.space import Configuration, Float, Space

_STREAM = 11


class Random(Proposer):
    """Independent draws: with probability `prior_share` from the priors of the space, else
    uniform. Where the space has no priors the two are the same."""

    name = "random"
    summary = "independent random draws, in part from the space's priors"
    reference = "Bergstra and Bengio 2012, Random Search for Hyper-Parameter Optimization, JMLR 13"

    @classmethod
    def space(cls) -> Space:
        """The share of proposals that follows the priors."""
        return Space({"prior_share": Float(0.0, 1.0, default=0.5)})

    def propose(
        self, context: SearchContext, state: Any, trials: Trials, key: Key, count: int
    ) -> list[Configuration]:
        """`count` draws from a generator that depends on the key alone."""
        generator = key.generator(_STREAM)
        share = self.configuration["prior_share"]
        return [
            context.space.sample(generator, prior=bool(generator.random() < share))
            for _ in range(count)
        ]

"""Discounted Thompson sampling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from autotune.decide.arms.bandit import Bandit, Pull
from autotune.decide.arms.policy import ArmPolicy
from autotune.plugins.search import FloatArray
from autotune.space import Float


@dataclass
class _State:
    """Discounted rewards and discounted shortfalls of the arms, both (arms,)."""

    gains: FloatArray
    losses: FloatArray
    rounds: int = 0


class Thompson(Bandit):
    """Every arm's worth has a Beta posterior that forgets: at each reward all evidence shrinks by
    `discount`, so that an arm left alone is looked at again. The arm with the highest draw is
    pulled. A reward between 0 and 1 counts as that share of a success, in place of the coin that
    Agrawal and Goyal (2012) toss. With `discount` 1 it is plain Thompson sampling.

    Source: Raj and Kalyani 2017, algorithm 1 (dTS), with a uniform prior.
    """

    def __init__(self, arms: int, discount: float = 0.98) -> None:
        super().__init__(arms)
        self.discount = discount

    def initial(self) -> _State:
        """No evidence."""
        return _State(np.zeros(self.arms), np.zeros(self.arms))

    def choose(self, state: _State, generator: np.random.Generator) -> list[int]:
        """Arms by a draw from the posterior of each, the highest first."""
        draws = generator.beta(1.0 + state.gains, 1.0 + state.losses)
        return np.argsort(-draws, kind="stable").tolist()

    def pulled(self, state: _State, arm: int, among: Sequence[int]) -> Pull:
        """Nothing is learned before the reward arrives."""
        state.rounds += 1
        return Pull(arm, 1.0, state.rounds - 1)

    def rewarded(self, state: _State, pull: Pull, reward: float) -> None:
        """Forget a little, and add the evidence."""
        state.gains *= self.discount
        state.losses *= self.discount
        state.gains[pull.arm] += reward
        state.losses[pull.arm] += 1.0 - reward


class ThompsonArms(ArmPolicy):
    """A budget shared among families by discounted Thompson sampling (`Thompson`)."""

    name = "thompson_arms"
    summary = "shares the budget among plugins by Thompson sampling; ASHA inside each"
    reference = (
        "Raj and Kalyani 2017, Taming Non-stationary Bandits: A Bayesian Approach, 1707.09727; "
        "Thompson 1933"
    )

    @classmethod
    def bandit_space(cls) -> Mapping[str, Any]:
        """How much evidence is kept from one reward to the next."""
        return {"discount": Float(0.5, 1.0, default=0.98)}

    def bandit(self, arms: int) -> Thompson:
        """By the policy's own hyperparameters."""
        return Thompson(arms, float(self.configuration["discount"]))

"""EXP3 with restarts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from autotune.decide.arms.bandit import Bandit, Pull, drawn, share_of
from autotune.decide.arms.policy import ArmPolicy
from autotune.plugins.search import FloatArray
from autotune.space import Integer


@dataclass
class _State:
    """Logarithms of the weights since the last restart, (arms,)."""

    logarithms: FloatArray
    rounds: int = 0


class EXP3(Bandit):
    """Exponential weights with rewards divided by the probability of their pull, begun anew every
    `batch` pulls so that old evidence does not bind: Rexp3. A reward that arrives after the restart
    that followed its pull belongs to a batch that is over, and is dropped.

    Source: Besbes, Gur and Zeevi 2014, algorithm Rexp3: gamma = min(1, sqrt(K log K / ((e - 1) *
    batch))), p = (1 - gamma) w / sum w + gamma / K, w <- w exp(gamma * reward / (p K)). With batch
    of order (K log K)^(1/3) (T / V)^(2/3) its regret against the best arm of every round is of
    order (K V log K)^(1/3) T^(2/3), V being how much the rewards drift in all (their theorem 2).
    """

    def __init__(self, arms: int, batch: int = 100) -> None:
        super().__init__(arms)
        self.batch = batch
        few = arms * math.log(arms) / ((math.e - 1) * batch)
        self.gamma = min(1.0, math.sqrt(few))

    def initial(self) -> _State:
        """Equal weights."""
        return _State(np.zeros(self.arms))

    def probabilities(self, state: _State) -> FloatArray:
        """Of the next pull, shape (arms,)."""
        begun = state.rounds % self.batch == 0
        weights = np.ones(self.arms) if begun else np.exp(state.logarithms - state.logarithms.max())
        share = weights / weights.sum()
        return np.asarray((1.0 - self.gamma) * share + self.gamma / self.arms)

    def choose(self, state: _State, generator: np.random.Generator) -> list[int]:
        """Arms as drawn."""
        return drawn(self.probabilities(state) + np.finfo(float).tiny, generator)

    def pulled(self, state: _State, arm: int, among: Sequence[int]) -> Pull:
        """Note the probability; restart where a batch begins."""
        probability = share_of(self.probabilities(state), arm, among)
        if state.rounds % self.batch == 0:
            state.logarithms[:] = 0.0
        state.rounds += 1
        return Pull(arm, probability, state.rounds - 1)

    def rewarded(self, state: _State, pull: Pull, reward: float) -> None:
        """Raise the weight of the arm, if the pull is of this batch."""
        if state.rounds and pull.round // self.batch == (state.rounds - 1) // self.batch:
            state.logarithms[pull.arm] += self.gamma * reward / (pull.probability * self.arms)


class EXP3Arms(ArmPolicy):
    """A budget shared among families by EXP3 with restarts (`EXP3`)."""

    name = "exp3_arms"
    summary = "shares the budget among plugins by EXP3 with restarts; ASHA inside each"
    reference = (
        "Besbes, Gur and Zeevi 2014, Stochastic Multi-Armed-Bandit Problem with Non-stationary "
        "Rewards, NIPS; Auer et al. 2002, The Nonstochastic Multiarmed Bandit Problem"
    )

    @classmethod
    def bandit_space(cls) -> Mapping[str, Any]:
        """Pulls between restarts."""
        return {"batch": Integer(10, 10_000, log=True, default=100)}

    def bandit(self, arms: int) -> EXP3:
        """By the policy's own hyperparameters."""
        return EXP3(arms, int(self.configuration["batch"]))

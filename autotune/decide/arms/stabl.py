"""StABL: EXP3 learners of many memories under a meta-learner, and a second pull to learn from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from autotune.decide.arms.bandit import Bandit, Pull, drawn, share_of
from autotune.decide.arms.policy import ArmPolicy
from autotune.plugins.search import FloatArray
from autotune.space import Float


@dataclass
class _State:
    """The learners, from short memory to long.

    Args:
        logarithms: of each learner's weights, (learners, arms).
        trust: the meta-learner's weights, (learners,).
        pulls: so far; two make a round.
        learned: estimates that have arrived.
    """

    logarithms: FloatArray
    trust: FloatArray
    pulls: int = 0
    learned: int = 0


class StABL(Bandit):
    """Regret of order sqrt(n |I|), up to logarithms, on *every* interval I at once, by two pulls
    a round: the first plays, the second explores and is what all learners learn from.

    Learner k is EXP3 with step size `step_size` * sqrt(log n / (n 2^k)), begun anew every 2^k
    estimates, for 2^k from 1 to the number of estimates so far. The meta-learner holds a weight
    for each, begun at c = min(1/2, sqrt(log T / 2^k)), and multiplies it by 1 + c * (loss of the
    mixture - loss of the learner), both estimated. The first pull draws an arm from the mixture p
    of the learners, the second from q = (1 - `exploration`) p + `exploration` / n. Its loss over q
    estimates all losses without bias and with variance of at most n / `exploration`, whatever
    interval it serves; the estimate from one pull, with p below the line, has no such bound, which
    is why one pull cannot do (their lower bound).

    Source: Lu et al. 2024. The structure (EXP3 restarted at lengths 2^k, a multiplicative
    meta-learner, a second query that explores) is the paper's; the paper itself could not be
    opened, so c and both hyperparameters' defaults are ours (three times the textbook step did
    better on switching arms). T, which the paper takes as given, is the number of estimates so far.

    An author's code (Google Vizier, ensemble_design.py, AdaptiveEnsembleDesign) differs: both pulls
    are learned from, as rewards; learners explore by themselves at 1 / sqrt(1 + age); the second
    pull is half in proportion to the learners' largest squared probability and half to their sum;
    weights are multiplied by exp(step * estimate * (p_k - p) / sqrt(2^k)) and begin at
    (2^k n)^(-1/2). Written plainly, with the steps 1 / sqrt(n) that it calls right in theory, its
    regret on five switching arms (4,096 rounds, switches every 16, 64, 256, 1,024) is 1.0, 1.2,
    1.6 and 2.4 times this one's.
    """

    def __init__(self, arms: int, exploration: float = 0.5, step_size: float = 3.0) -> None:
        super().__init__(arms)
        self.exploration = exploration
        self.step_size = step_size

    def initial(self) -> _State:
        """One learner, which remembers nothing."""
        return _State(np.zeros((1, self.arms)), np.array([0.5]))

    def probabilities(self, state: _State) -> FloatArray:
        """Of the next pull, shape (arms,): the mixture, or, every second time, its exploration."""
        mixture = self._mixture(state)
        if state.pulls % 2 == 0:
            return mixture
        return np.asarray((1.0 - self.exploration) * mixture + self.exploration / self.arms)

    def choose(self, state: _State, generator: np.random.Generator) -> list[int]:
        """Arms as drawn."""
        return drawn(self.probabilities(state) + np.finfo(float).tiny, generator)

    def pulled(self, state: _State, arm: int, among: Sequence[int]) -> Pull:
        """Note which of a round's two it is, and its probability."""
        probability = share_of(self.probabilities(state), arm, among)
        state.pulls += 1
        return Pull(arm, probability, state.pulls - 1)

    def rewarded(self, state: _State, pull: Pull, reward: float) -> None:
        """All learn from the second pull of a round."""
        if pull.round % 2 == 0:
            return
        estimate = np.zeros(self.arms)
        estimate[pull.arm] = (1.0 - reward) / pull.probability
        shares = self._shares(state)
        losses = shares @ estimate
        mean = float(state.trust @ losses) / float(state.trust.sum())
        lengths = 2.0 ** np.arange(len(state.trust))
        rates = self._rates(state)
        # Estimates may be large where they are rare: a weight stays positive.
        state.trust *= np.maximum(1.0 + rates * (mean - losses), 0.5)
        sizes = self.step_size * np.sqrt(math.log(self.arms) / (self.arms * lengths))
        state.logarithms -= sizes[:, None] * estimate
        state.learned += 1
        over = state.learned % lengths == 0
        state.logarithms[over] = 0.0
        state.trust[over] = rates[over]
        if state.learned >= 2 * lengths[-1]:
            state.logarithms = np.vstack([state.logarithms, np.zeros(self.arms)])
            state.trust = np.append(state.trust, 0.0)
            state.trust[-1] = self._rates(state)[-1]

    def _rates(self, state: _State) -> FloatArray:
        lengths = 2.0 ** np.arange(len(state.trust))
        return np.minimum(0.5, np.sqrt(math.log(max(state.learned, 2)) / lengths))

    def _shares(self, state: _State) -> FloatArray:
        """Each learner's distribution, (learners, arms)."""
        weights = np.exp(state.logarithms - state.logarithms.max(1, keepdims=True))
        return np.asarray(weights / weights.sum(1, keepdims=True))

    def _mixture(self, state: _State) -> FloatArray:
        return np.asarray(state.trust @ self._shares(state) / state.trust.sum())


class StABLArms(ArmPolicy):
    """A budget shared among families by StABL (`StABL`): two segments a round."""

    name = "stabl_arms"
    summary = "shares the budget among plugins by StABL, for any drift; ASHA inside each"
    reference = (
        "Lu et al. 2024, Adaptive Regret for Bandits Made Possible: Two Queries Suffice, 2401.09278"
    )

    @classmethod
    def bandit_space(cls) -> Mapping[str, Any]:
        """How much of the second pull is uniform, and the scale of the learners' steps."""
        return {
            "exploration": Float(0.1, 1.0, default=0.5),
            "step_size": Float(0.01, 10.0, log=True, default=3.0),
        }

    def bandit(self, arms: int) -> StABL:
        """By the policy's own hyperparameters."""
        return StABL(
            arms, float(self.configuration["exploration"]), float(self.configuration["step_size"])
        )

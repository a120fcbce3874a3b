"""Contract of the arm bandits: pulls are told when they are decided, rewards when they arrive.

A reward may arrive any number of pulls later, and what an arm is worth may drift. States are
folds: `choose` only looks, `pulled` and `rewarded` change the state in place, and neither draws a
random number.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from autotune.plugins.search import FloatArray


@dataclass(frozen=True)
class Pull:
    """One pull whose reward is on its way.

    Args:
        arm: that was pulled.
        probability: with which it was, of those that could be, where the bandit weighs rewards by
            that.
        round: in which it was pulled, counted from 0.
    """

    arm: int
    probability: float
    round: int


class Bandit(ABC):
    """Shares pulls among `arms` arms with rewards from 0 to 1."""

    def __init__(self, arms: int) -> None:
        self.arms = arms

    @abstractmethod
    def initial(self) -> Any:
        """State before any pull."""

    @abstractmethod
    def choose(self, state: Any, generator: np.random.Generator) -> list[int]:
        """All arms, the one to pull first. The rest are for when it cannot be pulled."""

    @abstractmethod
    def pulled(self, state: Any, arm: int, among: Sequence[int]) -> Pull:
        """Note a pull of the first arm, in the order of `choose`, of those that could be pulled
        then."""

    @abstractmethod
    def rewarded(self, state: Any, pull: Pull, reward: float) -> None:
        """Note the reward of an earlier pull."""


def share_of(probabilities: FloatArray, arm: int, among: Sequence[int]) -> float:
    """Probability that of `among` the arm comes first in the order of `drawn`."""
    return float(probabilities[arm] / probabilities[list(among)].sum())


def drawn(probabilities: FloatArray, generator: np.random.Generator) -> list[int]:
    """All arms in the order of draws without replacement (Efraimidis and Spirakis 2006): the
    first has the given probabilities, shape (arms,), each of them positive."""
    return np.argsort(-np.log(probabilities) - generator.gumbel(size=len(probabilities))).tolist()

"""TVLARS: LARS whose layer-wise rates are high at first and fall by themselves, without warm-up."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from autotune.plugins import Optimizer
from autotune.space import Float, Ordinal, Prior, Space

from ._foreach import Lists
from ._layerwise import scaled_groups
from ._spaces import learning_rate, momentum, weight_decay
from .lars import LARSOptimizer

LARGEST_EXPONENT = 700.0
"""Beyond it the exponential overflows, and its reciprocal is zero to all digits anyway."""


class TVLARSOptimizer(LARSOptimizer):
    """LARS with its local rates multiplied by ``phi_t``.

    ``phi_t = 1 / (alpha + exp(decay_rate * (t - delay))) + floor``, with ``t`` from 1; the rest
    as in `LARSOptimizer`.

    Args:
        parameters: parameters or groups of them.
        lr: global learning rate.
        momentum: factor of the velocity.
        trust: how far a layer may move relative to its size.
        weight_decay: added to the gradient, times the weight.
        alpha: its reciprocal is the largest factor.
        decay_rate: the paper's lambda, per step.
        delay: steps before the fall.
        floor: the paper's gamma_min.
    """

    title = "TVLARS"

    def __init__(
        self,
        parameters: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        trust: float = 1e-3,
        weight_decay: float = 0.0,
        alpha: float = 0.1,
        decay_rate: float = 1e-3,
        delay: int = 0,
        floor: float = 1e-3,
    ) -> None:
        shape = {"alpha": alpha, "decay_rate": decay_rate, "delay": delay, "floor": floor}
        super().__init__(parameters, lr, momentum, trust, weight_decay, **shape)

    def factor(self, lists: Lists) -> float:
        """``phi_t``."""
        group = lists.group
        exponent = group["decay_rate"] * (lists.step - group["delay"])
        sigmoid = 1 / (group["alpha"] + math.exp(min(exponent, LARGEST_EXPONENT)))
        return float(sigmoid + group["floor"])


class TVLARS(Optimizer):
    """LARS that explores at first and settles later.

    Follows the paper. The authors' code leaves out the floor and the delay of ``phi_t``, clips
    both norms at 10, and divides by the norm of the decayed gradient; with ``delay_steps`` 0
    and a ``floor`` of nearly 0 the factors agree. As in `LARS`, the global rate stands outside
    the velocity, and vectors are neither decayed nor scaled.
    """

    name: ClassVar[str] = "tvlars"
    summary: ClassVar[str] = (
        "LARS with trust times 1 / (alpha + exp(decay_rate * (t - delay_steps))) + floor."
    )
    reference: ClassVar[str] = (
        "Do et al.: Revisiting LARS for Large Batch Training Generalization of Neural Networks, "
        "IEEE TAI 2024, arXiv 2309.14053; code: github.com/KhoiDOO/tvlars"
    )
    carries_over: ClassVar[bool] = False

    @classmethod
    def space(cls) -> Space:
        """LARS's own, and the shape of the falling factor."""
        return Space(
            {
                "learning_rate": learning_rate(1.0, 0.05, 10.0),
                "momentum": momentum(),
                "trust_coefficient": Float(
                    1e-4, 2e-2, log=True, default=1e-3, prior=Prior(1e-3, "medium")
                ),
                "weight_decay": weight_decay(5e-4, 1e-6, 1e-2),
                "alpha": Float(0.1, 1.0, log=True, default=0.1, prior=Prior(0.1, "low")),
                "decay_rate": Float(
                    1e-6, 1e-2, log=True, default=1e-3, prior=Prior(1e-3, "medium")
                ),
                "delay_steps": Ordinal((0, 100, 300, 1000, 3000), default=0),
                "floor": Float(1e-4, 1e-1, log=True, default=1e-3, prior=Prior(1e-3, "low")),
            }
        )

    def normalises(self) -> Literal["nothing", "elements", "tensors"]:
        """Each tensor's step as a whole."""
        return "tensors"

    def build(self, named_parameters: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """A `TVLARSOptimizer` over the decayed and scaled, and the other parameters."""
        configuration = self.configuration
        return TVLARSOptimizer(
            scaled_groups(named_parameters, configuration["weight_decay"]),
            lr=configuration["learning_rate"],
            momentum=configuration["momentum"],
            trust=configuration["trust_coefficient"],
            alpha=configuration["alpha"],
            decay_rate=configuration["decay_rate"],
            delay=configuration["delay_steps"],
            floor=configuration["floor"],
        )

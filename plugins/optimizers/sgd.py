"""Stochastic gradient descent with momentum: torch's own, fused where the device has it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import nn

from autotune.plugins import Optimizer
from autotune.space import Categorical, Float, Ordinal, Prior, Space

from ._groups import can_fuse, parameter_groups


class SGD(Optimizer):
    """Gradient descent with (Nesterov) momentum and L2 decay added to the gradient.

    ``d = g + weight_decay * w``; ``b = momentum * b + d``; ``w -= lr * b``, or with Nesterov
    ``w -= lr * (d + momentum * b)``. The rate stands outside the momentum buffer, so that a
    schedule acts at once, as in torch, which is followed (in the paper it stands inside). Without
    momentum ``nesterov`` has no effect: there is nothing to look ahead with. Momentum's values
    follow the practice of tuning ``1 - momentum`` on a log scale (Choi et al., arXiv 1910.05446).
    """

    name: ClassVar[str] = "sgd"
    summary: ClassVar[str] = "Stochastic gradient descent with (Nesterov) momentum."
    reference: ClassVar[str] = (
        "Sutskever, Martens, Dahl, Hinton: On the importance of initialization and momentum in "
        "deep learning, ICML 2013; code: torch.optim.SGD"
    )

    @classmethod
    def space(cls) -> Space:
        """Learning rate, momentum, Nesterov, weight decay."""
        return Space(
            {
                "learning_rate": Float(
                    1e-3, 1.0, log=True, default=0.1, prior=Prior(0.1, "medium")
                ),
                "momentum": Ordinal(
                    (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99), default=0.9, prior=Prior(0.9, "medium")
                ),
                "nesterov": Categorical((True, False), default=True),
                "weight_decay": Float(
                    1e-6, 1e-2, log=True, default=1e-4, prior=Prior(1e-4, "medium")
                ),
            }
        )

    def normalises(self) -> Literal["nothing", "elements", "tensors"]:
        """Nothing: it descends along the gradient."""
        return "nothing"

    def build(self, named_parameters: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """``torch.optim.SGD`` over the decayed and the other parameters."""
        momentum = self.configuration["momentum"]
        optimizer = torch.optim.SGD(
            parameter_groups(named_parameters, self.configuration["weight_decay"]),
            lr=self.configuration["learning_rate"],
            momentum=momentum,
            nesterov=bool(self.configuration["nesterov"]) and momentum > 0,
            fused=can_fuse(parameter for _, parameter in named_parameters),
        )
        # The scaler of gradients shall skip steps itself: told of an overflow at the first step,
        # torch's fused one (2.13) makes its momenta of whatever lies in memory, and goes on so.
        optimizer._step_supports_amp_scaling = False
        return optimizer

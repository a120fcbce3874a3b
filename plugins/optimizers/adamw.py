"""AdamW: torch's own, fused where the device has it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import nn

from autotune.plugins import Optimizer
from autotune.space import Float, Ordinal, Prior, Space

from ._groups import can_fuse, parameter_groups


class AdamW(Optimizer):
    """Adam with decoupled weight decay.

    The decay of a step is ``lr * weight_decay * w`` with the scheduled rate, as in torch, which
    is followed; ``lr`` is ``eta_t * alpha`` of the paper's algorithm 2, which multiplies the
    decay by ``eta_t`` alone, so that a ``weight_decay`` here is the paper's divided by
    ``alpha``. The range of ``epsilon`` follows Choi et al. (arXiv 1910.05446).
    """

    name: ClassVar[str] = "adamw"
    summary: ClassVar[str] = "Adam with decoupled weight decay."
    reference: ClassVar[str] = (
        "Loshchilov, Hutter: Decoupled Weight Decay Regularization, ICLR 2019, arXiv 1711.05101; "
        "code: torch.optim.AdamW, github.com/loshchil/AdamW-and-SGDW"
    )
    preferred: ClassVar[bool] = True

    @classmethod
    def space(cls) -> Space:
        """Learning rate, both averages' factors, epsilon, weight decay."""
        return Space(
            {
                "learning_rate": Float(
                    1e-5, 1e-1, log=True, default=1e-3, prior=Prior(1e-3, "medium")
                ),
                "beta1": Ordinal((0.8, 0.9, 0.95), default=0.9, prior=Prior(0.9, "high")),
                "beta2": Ordinal(
                    (0.95, 0.98, 0.99, 0.999), default=0.999, prior=Prior(0.999, "medium")
                ),
                "epsilon": Float(1e-10, 1e-5, log=True, default=1e-8, prior=Prior(1e-8, "high")),
                "weight_decay": Float(
                    1e-5, 0.5, log=True, default=1e-2, prior=Prior(1e-2, "medium")
                ),
            }
        )

    def build(self, named_parameters: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """``torch.optim.AdamW`` over the decayed and the other parameters."""
        return torch.optim.AdamW(
            parameter_groups(named_parameters, self.configuration["weight_decay"]),
            lr=self.configuration["learning_rate"],
            betas=(self.configuration["beta1"], self.configuration["beta2"]),
            eps=self.configuration["epsilon"],
            fused=can_fuse(parameter for _, parameter in named_parameters),
        )

"""Adan as autotune sees it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import nn

from autotune.plugins import Optimizer
from autotune.space import Float, Prior, Space
from autotune_adan.adan import Adan as AdanOptimizer


class Adan(Optimizer):
    """Adaptive Nesterov momentum; no weight decay on biases and normalisation layers."""

    name: ClassVar[str] = "adan"
    summary: ClassVar[str] = "Adam with Nesterov momentum estimated from gradient differences."
    reference: ClassVar[str] = (
        "Xie, Zhou, Li, Lin, Yan: Adan: Adaptive Nesterov Momentum Algorithm for Faster "
        "Optimizing Deep Models, 2022, arXiv 2208.06677; code: github.com/sail-sg/Adan"
    )

    @classmethod
    def space(cls) -> Space:
        """Rate, decay and the three averages; the author code's values as priors."""
        return Space(
            {
                "learning_rate": Float(
                    1e-5, 1e-1, log=True, default=1e-3, prior=Prior(1e-3, "medium")
                ),
                "beta1": Float(0.9, 0.99, default=0.98, prior=Prior(0.98, "high")),
                "beta2": Float(0.8, 0.99, default=0.92, prior=Prior(0.92, "high")),
                "beta3": Float(0.9, 0.999, default=0.99, prior=Prior(0.99, "high")),
                "weight_decay": Float(1e-4, 1e-1, log=True, default=0.02),
            }
        )

    def build(self, named_parameters: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """The optimizer over the trainable parameters, in up to two groups."""
        chosen = self.configuration
        groups = [
            {"params": [p for _, p in named_parameters if p.ndim > 1]},
            {"params": [p for _, p in named_parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        return AdanOptimizer(
            [group for group in groups if group["params"]],
            lr=chosen["learning_rate"],
            betas=(chosen["beta1"], chosen["beta2"], chosen["beta3"]),
            weight_decay=chosen["weight_decay"],
        )

"""Yogi as autotune sees it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import nn

from autotune.plugins import Optimizer
from autotune.space import Float, Prior, Space
from autotune_yogi.yogi import Yogi as YogiOptimizer


class Yogi(Optimizer):
    """Adam with an additive second moment; no weight decay on biases and normalisation layers."""

    name: ClassVar[str] = "yogi"
    summary: ClassVar[str] = "Adam whose second moment grows and shrinks by controlled steps."
    reference: ClassVar[str] = (
        "Zaheer, Reddi, Sachan, Kale, Kumar: Adaptive Methods for Nonconvex Optimization, "
        "NeurIPS 2018"
    )

    @classmethod
    def space(cls) -> Space:
        """Rate, decay, both averages and epsilon; the paper's values as priors."""
        return Space(
            {
                "learning_rate": Float(
                    1e-5, 1e-1, log=True, default=1e-2, prior=Prior(1e-2, "medium")
                ),
                "beta1": Float(0.8, 0.99, default=0.9, prior=Prior(0.9, "high")),
                "beta2": Float(0.9, 0.9999, default=0.999, prior=Prior(0.999, "high")),
                "epsilon": Float(1e-8, 1e-2, log=True, default=1e-3, prior=Prior(1e-3, "medium")),
                "weight_decay": Float(1e-4, 1e-1, log=True, default=0.01),
            }
        )

    def build(self, named_parameters: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """The optimizer over the trainable parameters, in up to two groups."""
        chosen = self.configuration
        groups = [
            {"params": [p for _, p in named_parameters if p.ndim > 1]},
            {"params": [p for _, p in named_parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        return YogiOptimizer(
            [group for group in groups if group["params"]],
            lr=chosen["learning_rate"],
            betas=(chosen["beta1"], chosen["beta2"]),
            epsilon=chosen["epsilon"],
            weight_decay=chosen["weight_decay"],
        )

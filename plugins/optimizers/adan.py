"""Adan: Adam with Nesterov's momentum written through differences of gradients."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import nn

from autotune.plugins import Optimizer
from autotune.space import Ordinal, Prior, Space

from ._adam import adamw_step
from ._foreach import ListOptimizer, Lists
from ._groups import parameter_groups
from ._spaces import epsilon, learning_rate, weight_decay

KEPT = 1 - 2.0**-10
"""How much of `before` is kept when Adam's kernel averages: nearly all, so that little cancels."""


class AdanOptimizer(ListOptimizer):
    """The rule of the paper's algorithm 1, with the biases corrected as in the authors' code.

    With ``d = g_t - g_{t-1}`` (zero at first): ``m`` averages ``g`` by ``beta1``, ``u`` averages
    ``d`` by ``beta2``, ``n`` averages ``(g + beta2 * d)^2`` by ``beta3``; then
    ``w = (w - lr * (m_hat + beta2 * u_hat) / (sqrt(n_hat) + eps)) / (1 + lr * weight_decay)``.

    Four buffers, gradient and weights are read and all but the gradient written: eleven ways
    through a model's worth of memory a step, of which AdamW needs seven.

    Args:
        parameters: parameters or groups of them.
        lr: learning rate.
        betas: factors of the averages; the paper's are one minus these.
        eps: added to the divisor.
        weight_decay: by the proximal step above.
    """

    title = "Adan"
    buffers = ("mean", "difference", "square", "previous_gradient")

    def __init__(
        self,
        parameters: Iterable[Any],
        lr: float,
        betas: tuple[float, float, float] = (0.98, 0.92, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(parameters, defaults)

    def take_step(self, everything: list[Lists]) -> None:
        """The step; before a parameter's first, its gradient counts as the previous one."""
        for lists in everything:
            if lists.step == 1:
                torch._foreach_copy_(lists.state["previous_gradient"], lists.grads)
        super().take_step(everything)

    def update(self, lists: Lists) -> None:
        """See the class."""
        group, step, state = lists.group, lists.step, lists.state
        beta1, beta2, beta3 = group["betas"]
        torch._foreach_lerp_(state["mean"], lists.grads, 1 - beta1)
        changes = torch._foreach_sub(lists.grads, state["previous_gradient"])
        torch._foreach_lerp_(state["difference"], changes, 1 - beta2)
        ahead = torch._foreach_add(lists.grads, changes, alpha=beta2)
        torch._foreach_copy_(state["previous_gradient"], lists.grads)
        # The numerator, divided by the sum of both its weights.
        of_mean, of_difference = 1 / (1 - beta1**step), beta2 / (1 - beta2**step)
        size = of_mean + of_difference
        before = torch._foreach_lerp(state["mean"], state["difference"], of_difference / size)
        # Adam's kernel does the rest in one pass: `before` is what becomes the numerator once
        # it has averaged `ahead` into it.
        torch._foreach_lerp_(before, ahead, (KEPT - 1) / KEPT)
        adam = replace(
            lists,
            group={**group, "betas": (KEPT, beta3)},
            grads=ahead,
            state={"mean": list(before), "square": state["square"]},
        )
        shrink = 1 / (1 + group["lr"] * group["weight_decay"])
        rate = group["lr"] * shrink * size * (1 - KEPT**step)
        adamw_step(adam, rate, (1 - shrink) / rate if rate else 0.0)


class Adan(Optimizer):
    """Adam's step along a gradient extrapolated by its latest change.

    The paper's algorithm 1 starts the averages at the first gradient's values; the authors' code
    is followed, which starts them at 0 and corrects the biases. Its optional clipping of the
    global norm is the training loop's business here.
    """

    name: ClassVar[str] = "adan"
    summary: ClassVar[str] = "Adaptive Nesterov momentum from differences of gradients."
    reference: ClassVar[str] = (
        "Xie et al.: Adan: Adaptive Nesterov Momentum Algorithm for Faster Optimizing Deep "
        "Models, TPAMI 2024, arXiv 2208.06677; code: github.com/sail-sg/Adan"
    )

    @classmethod
    def space(cls) -> Space:
        """Learning rate, the three averages' factors, epsilon, weight decay."""
        return Space(
            {
                "learning_rate": learning_rate(1e-3, 1e-5, 3e-2),
                "beta1": Ordinal((0.9, 0.95, 0.98), default=0.98, prior=Prior(0.98, "high")),
                "beta2": Ordinal((0.85, 0.92, 0.99), default=0.92, prior=Prior(0.92, "high")),
                "beta3": Ordinal((0.95, 0.99, 0.999), default=0.99, prior=Prior(0.99, "high")),
                "epsilon": epsilon(),
                "weight_decay": weight_decay(2e-2),
            }
        )

    def build(self, named_parameters: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """An `AdanOptimizer` over the decayed and the other parameters."""
        configuration = self.configuration
        return AdanOptimizer(
            parameter_groups(named_parameters, configuration["weight_decay"]),
            lr=configuration["learning_rate"],
            betas=(configuration["beta1"], configuration["beta2"], configuration["beta3"]),
            eps=configuration["epsilon"],
        )

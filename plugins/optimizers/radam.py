"""RAdam: Adam without its adaptivity while the second average rests on too few gradients."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from autotune.plugins import Optimizer
from autotune.space import Space

from ._adam import MOMENTS, decay, update_moments
from ._foreach import ListOptimizer, Lists
from ._groups import parameter_groups
from ._spaces import beta1, beta2, epsilon, learning_rate, weight_decay

RELIABLE = 5.0
"""Length of the average from which on its variance is trusted."""


class RAdamOptimizer(ListOptimizer):
    """The rule of the paper's algorithm 2, as torch.optim.RAdam has it.

    With ``r_inf = 2 / (1 - beta2) - 1`` and ``r = r_inf - 2 t beta2^t / (1 - beta2^t)``: while
    ``r <= 5`` the step is ``lr * m_hat``, then it is
    ``lr * sqrt((r - 4)(r - 2) r_inf / ((r_inf - 4)(r_inf - 2) r)) * m_hat`` times
    ``sqrt(1 - beta2^t) / (sqrt(v) + eps)``.

    Args:
        parameters: parameters or groups of them.
        lr: learning rate.
        betas: factors of the two averages.
        eps: added to the divisor.
        weight_decay: decoupled, multiplied by the scheduled rate.
    """

    title = "RAdam"
    buffers = MOMENTS

    def __init__(
        self,
        parameters: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(parameters, defaults)

    def update(self, lists: Lists) -> None:
        """See the class."""
        group, step, means = lists.group, lists.step, lists.state["mean"]
        beta1, beta2 = group["betas"]
        update_moments(lists)
        size = -group["lr"] / (1 - beta1**step)
        longest = 2 / (1 - beta2) - 1
        length = longest - 2 * step * beta2**step / (1 - beta2**step)
        if length <= RELIABLE:
            decay(lists)
            torch._foreach_add_(lists.weights, means, alpha=size)
            return
        rectified = (length - 4) * (length - 2) * longest
        rectified /= (longest - 4) * (longest - 2) * length
        roots = torch._foreach_sqrt(lists.state["square"])
        torch._foreach_add_(roots, group["eps"])
        size *= (rectified * (1 - beta2**step)) ** 0.5
        decay(lists)
        torch._foreach_addcdiv_(lists.weights, means, roots, size)


class RAdam(Optimizer):
    """Adam with the variance of its early rates rectified, instead of a warm-up.

    Equal to ``torch.optim.RAdam(decoupled_weight_decay=True)`` but for rounding; written here
    since torch's passes over memory more often. The paper trusts the second average from a
    length of 4 on; the authors' code and torch from 5 on, which is followed. The authors'
    code leaves the early steps out by default; here they are taken, as in the paper and torch.
    """

    name: ClassVar[str] = "radam"
    summary: ClassVar[str] = "Adam with rectified early rates and decoupled weight decay."
    reference: ClassVar[str] = (
        "Liu et al.: On the Variance of the Adaptive Learning Rate and Beyond, ICLR 2020, "
        "arXiv 1908.03265; code: torch.optim.RAdam, github.com/LiyuanLucasLiu/RAdam"
    )

    @classmethod
    def space(cls) -> Space:
        """Learning rate, both averages' factors, epsilon, weight decay."""
        return Space(
            {
                "learning_rate": learning_rate(1e-3),
                "beta1": beta1(),
                "beta2": beta2(),
                "epsilon": epsilon(),
                "weight_decay": weight_decay(),
            }
        )

    def build(self, named_parameters: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """A `RAdamOptimizer` over the decayed and the other parameters."""
        return RAdamOptimizer(
            parameter_groups(named_parameters, self.configuration["weight_decay"]),
            lr=self.configuration["learning_rate"],
            betas=(self.configuration["beta1"], self.configuration["beta2"]),
            eps=self.configuration["epsilon"],
        )

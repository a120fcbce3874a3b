"""AdaBound and AMSBound: Adam whose step of each coordinate is bounded ever more tightly."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from autotune.plugins import Optimizer
from autotune.space import Categorical, Float, Prior, Space

from ._adam import MOMENTS, update_moments
from ._foreach import ListOptimizer, Lists, zeros_like
from ._groups import parameter_groups
from ._spaces import beta1, beta2, epsilon, learning_rate, weight_decay


class AdaBoundOptimizer(ListOptimizer):
    """The rule of the paper's algorithms 2 and 3.

    With ``rate = lr * sqrt(1 - beta2^t) / (1 - beta1^t) / (sqrt(v) + eps)``:
    ``w -= clip(rate, low, high) * m`` where ``low = final_lr * (1 - 1 / (gamma * t + 1))`` and
    ``high = final_lr * (1 + 1 / (gamma * t))``. A schedule scales ``final_lr`` as it does ``lr``.

    Args:
        parameters: parameters or groups of them.
        lr: learning rate at first, as Adam's.
        final_lr: the rate that every coordinate tends to, as SGD's.
        betas: factors of the two averages.
        gamma: how fast the bounds close.
        eps: added to the divisor.
        weight_decay: added to the gradient, times the weight.
        amsbound: divide by the largest ``v`` so far.
    """

    title = "AdaBound"
    buffers = MOMENTS

    def __init__(
        self,
        parameters: Iterable[Any],
        lr: float,
        final_lr: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.999),
        gamma: float = 1e-3,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsbound: bool = False,
    ) -> None:
        self._amsbound = amsbound
        defaults = {"lr": lr, "final_ratio": final_lr / lr, "betas": betas, "gamma": gamma}
        super().__init__(parameters, {**defaults, "eps": eps, "weight_decay": weight_decay})

    def new_state(self, parameter: Tensor) -> dict[str, Tensor]:
        """Both averages, and for AMSBound the largest of the second."""
        largest = {"largest_square": zeros_like(parameter)} if self._amsbound else {}
        return {**super().new_state(parameter), **largest}

    def update(self, lists: Lists) -> None:
        """See the class."""
        group, step = lists.group, lists.step
        beta1, beta2 = group["betas"]
        if group["weight_decay"] != 0:
            grads = torch._foreach_add(lists.grads, lists.weights, alpha=group["weight_decay"])
            lists = Lists(group, lists.weights, grads, lists.state, step)
        update_moments(lists)
        squares = lists.state["square"]
        if self._amsbound:
            torch._foreach_maximum_(lists.state["largest_square"], squares)
            squares = lists.state["largest_square"]
        rates = torch._foreach_sqrt(squares)
        torch._foreach_add_(rates, group["eps"])
        torch._foreach_reciprocal_(rates)
        size = group["lr"] * (1 - beta2**step) ** 0.5 / (1 - beta1**step)
        torch._foreach_mul_(rates, size)
        final = group["final_ratio"] * group["lr"]
        torch._foreach_clamp_min_(rates, final * (1 - 1 / (group["gamma"] * step + 1)))
        torch._foreach_clamp_max_(rates, final * (1 + 1 / (group["gamma"] * step)))
        torch._foreach_addcmul_(lists.weights, rates, lists.state["mean"], value=-1)


class AdaBound(Optimizer):
    """Adam at first, gradient descent with momentum in the end.

    Follows the authors' code: it corrects Adam's biases, adds epsilon and does not divide the
    rate by the square root of the step, where the paper's algorithm 2 has it the other way round
    (the paper says in section 4 that the root is for the proof); and its ``gamma`` is free,
    where the paper has ``1 - beta2``. The weight decay is the code's too: added to the gradient,
    not decoupled.
    """

    name: ClassVar[str] = "adabound"
    summary: ClassVar[str] = (
        "Adam whose rates are clipped towards SGD's; AMSBound on request; L2 weight decay."
    )
    reference: ClassVar[str] = (
        "Luo, Xiong, Liu, Sun: Adaptive Gradient Methods with Dynamic Bound of Learning Rate, "
        "ICLR 2019, arXiv 1902.09843; code: github.com/Luolc/AdaBound"
    )
    carries_over: ClassVar[bool] = False

    @classmethod
    def space(cls) -> Space:
        """Both rates, how fast the bounds close, Adam's own, and AMSBound."""
        return Space(
            {
                "learning_rate": learning_rate(1e-3, 1e-4, 1e-2),
                "final_learning_rate": Float(
                    1e-2, 1.0, log=True, default=0.1, prior=Prior(0.1, "medium")
                ),
                "gamma": Float(1e-4, 1e-2, log=True, default=1e-3, prior=Prior(1e-3, "medium")),
                "beta1": beta1(),
                "beta2": beta2(),
                "epsilon": epsilon(),
                "weight_decay": weight_decay(5e-4, 1e-6, 1e-2),
                "amsbound": Categorical((False, True), default=False),
            }
        )

    def build(self, named_parameters: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """An `AdaBoundOptimizer` over the decayed and the other parameters."""
        return AdaBoundOptimizer(
            parameter_groups(named_parameters, self.configuration["weight_decay"]),
            lr=self.configuration["learning_rate"],
            final_lr=self.configuration["final_learning_rate"],
            betas=(self.configuration["beta1"], self.configuration["beta2"]),
            gamma=self.configuration["gamma"],
            eps=self.configuration["epsilon"],
            amsbound=self.configuration["amsbound"],
        )

"""AdaGrad: each weight's steps shrink with all its gradients that there have been."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from autotune.plugins import Optimizer
from autotune.space import Space

from ._foreach import ListOptimizer, Lists, can_fuse
from ._groups import parameter_groups
from ._spaces import epsilon, learning_rate


class AdaGradOptimizer(ListOptimizer):
    """``G += g^2`` and ``w -= lr * g / (sqrt(G) + eps)``, as torch.optim.Adagrad; but ``G`` of
    parameters in half precision is float32, where torch's is of half precision too.

    Args:
        parameters: parameters or groups of them.
        lr: learning rate.
        eps: added to the divisor.
    """

    title = "AdaGrad"
    buffers = ("sum",)

    def __init__(self, parameters: Iterable[Any], lr: float, eps: float = 1e-10) -> None:
        super().__init__(parameters, {"lr": lr, "eps": eps})

    def update(self, lists: Lists) -> None:
        """See the class."""
        sums, rate, eps = lists.state["sum"], float(lists.group["lr"]), lists.group["eps"]
        if can_fuse(lists):
            torch._fused_adagrad_(
                lists.weights,
                list(lists.grads),
                sums,
                [torch.tensor(float(lists.step))] * len(sums),
                lr=rate,
                lr_decay=0.0,
                weight_decay=0.0,
                eps=eps,
                maximize=False,
            )
            return
        torch._foreach_addcmul_(sums, lists.grads, lists.grads)
        roots = torch._foreach_sqrt(sums)
        torch._foreach_add_(roots, eps)
        torch._foreach_addcdiv_(lists.weights, lists.grads, roots, -rate)


class AdaGrad(Optimizer):
    """The oldest adaptive rule, whose rates fall as gradients add up.

    With the schedule ``norm_test`` and its test ``coordinate_wise`` it is AdAdaGrad, whose
    batches grow.
    """

    name: ClassVar[str] = "adagrad"
    summary: ClassVar[str] = "Rates that fall with the sum of each weight's squared gradients."
    reference: ClassVar[str] = (
        "Duchi, Hazan, Singer: Adaptive Subgradient Methods for Online Learning and Stochastic "
        "Optimization, JMLR 2011; code: torch.optim.Adagrad"
    )

    @classmethod
    def space(cls) -> Space:
        """Learning rate, epsilon."""
        return Space({"learning_rate": learning_rate(1e-2, 1e-4, 1.0), "epsilon": epsilon(1e-10)})

    def build(self, named_parameters: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """An `AdaGradOptimizer`, without weight decay."""
        return AdaGradOptimizer(
            parameter_groups(named_parameters, weight_decay=0.0),
            self.configuration["learning_rate"],
            self.configuration["epsilon"],
        )

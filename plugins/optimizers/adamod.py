"""AdaMod: Adam whose rates may not exceed their own long average, so that it needs no warm-up."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from autotune.plugins import Optimizer
from autotune.space import Ordinal, Prior, Space

from ._adam import MOMENTS, decay, update_moments
from ._foreach import ListOptimizer, Lists
from ._groups import parameter_groups
from ._spaces import beta1, beta2, epsilon, learning_rate, weight_decay


class AdaModOptimizer(ListOptimizer):
    """The rule of the paper's algorithm 1.

    ``eta = lr / (sqrt(v_hat) + eps)``; ``s = beta3 * s + (1 - beta3) * eta``;
    ``w -= min(eta, s) * m_hat``, with bias-corrected ``m_hat`` and ``v_hat``.

    Args:
        parameters: parameters or groups of them.
        lr: learning rate.
        betas: factors of the averages of gradients, of their squares, and of the rates.
        eps: added to the divisor.
        weight_decay: decoupled, multiplied by the scheduled rate.
    """

    title = "AdaMod"
    buffers = (*MOMENTS, "rate")

    def __init__(
        self,
        parameters: Iterable[Any],
        lr: float,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(parameters, defaults)

    def update(self, lists: Lists) -> None:
        """See the class."""
        group, step, means = lists.group, lists.step, lists.state["rate"]
        beta1, beta2, beta3 = group["betas"]
        update_moments(lists)
        # lr / (sqrt(v_hat) + eps)
        of_root = (1 - beta2**step) ** 0.5
        rates = torch._foreach_sqrt(lists.state["square"])
        torch._foreach_add_(rates, group["eps"] * of_root)
        torch._foreach_reciprocal_(rates)
        torch._foreach_mul_(rates, group["lr"] * of_root)
        torch._foreach_lerp_(means, rates, 1 - beta3)
        torch._foreach_minimum_(rates, means)
        decay(lists)
        size = -1 / (1 - beta1**step)
        torch._foreach_addcmul_(lists.weights, rates, lists.state["mean"], value=size)


class AdaMod(Optimizer):
    """Adam with a bound on each coordinate's rate from the average of its rates so far.

    Follows the paper, where the mean's bias is corrected outside the bound. The authors' code
    puts ``1 / (1 - beta1^t)`` inside: at first its rates are larger by that factor, and so is
    the bound; and it adds epsilon before the bias correction of ``v``, the paper (followed) after
    it. The weight decay is decoupled, as in the code and the paper's experiments.
    """

    name: ClassVar[str] = "adamod"
    summary: ClassVar[str] = "Adam with rates bounded by their long-term average."
    reference: ClassVar[str] = (
        "Ding, Ren, Luo, Sun: An Adaptive and Momental Bound Method for Stochastic Learning, "
        "arXiv 1910.12249; code: github.com/lancopku/AdaMod"
    )

    @classmethod
    def space(cls) -> Space:
        """Learning rate, the three averages' factors, epsilon, weight decay."""
        return Space(
            {
                "learning_rate": learning_rate(1e-3, 1e-5, 1e-1),
                "beta1": beta1(),
                "beta2": beta2(),
                "beta3": Ordinal(
                    (0.9, 0.99, 0.999, 0.9999, 0.99999),
                    default=0.999,
                    prior=Prior(0.999, "medium"),
                ),
                "epsilon": epsilon(),
                "weight_decay": weight_decay(),
            }
        )

    def build(self, named_parameters: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """An `AdaModOptimizer` over the decayed and the other parameters."""
        configuration = self.configuration
        return AdaModOptimizer(
            parameter_groups(named_parameters, configuration["weight_decay"]),
            lr=configuration["learning_rate"],
            betas=(configuration["beta1"], configuration["beta2"], configuration["beta3"]),
            eps=configuration["epsilon"],
        )

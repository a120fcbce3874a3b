"""AdaBelief: Adam that divides by how far the gradient strays from its own average."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from autotune.plugins import Optimizer
from autotune.space import Float, Ordinal, Prior, Space

from ._adam import decay, divisors, update_squares
from ._foreach import ListOptimizer, Lists
from ._groups import parameter_groups
from ._spaces import wide_beta2


class AdaBeliefOptimizer(ListOptimizer):
    """The rule of the paper's algorithm 2.

    ``m = beta1 * m + (1 - beta1) * g``; ``s = beta2 * s + (1 - beta2) * (g - m)^2 + epsilon``;
    ``w -= lr * m_hat / (sqrt(s_hat) + epsilon)`` with bias-corrected ``m_hat`` and ``s_hat``.
    ``epsilon`` stays in ``s`` from step to step.

    Args:
        parameters: parameters or groups of them.
        lr: learning rate.
        betas: factors of the two averages.
        eps: see above; added twice.
        weight_decay: decoupled, multiplied by the scheduled rate.
    """

    title = "AdaBelief"
    buffers = ("mean", "variance")

    def __init__(
        self,
        parameters: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-16,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(parameters, defaults)

    def update(self, lists: Lists) -> None:
        """See the class."""
        group, weights, grads = lists.group, lists.weights, lists.grads
        means, variances = lists.state["mean"], lists.state["variance"]
        beta1, beta2 = group["betas"]
        torch._foreach_lerp_(means, grads, 1 - beta1)
        deviations = torch._foreach_sub(grads, means)
        update_squares(variances, deviations, beta2)
        torch._foreach_add_(variances, group["eps"])
        roots = divisors(variances, 1 - beta2**lists.step, group["eps"])
        decay(lists)
        size = -group["lr"] / (1 - beta1**lists.step)
        torch._foreach_addcdiv_(weights, means, roots, size)


class AdaBelief(Optimizer):
    """Large steps where the gradient is as expected, small ones where it surprises.

    Follows the paper's algorithm 2, with decoupled decay as the author package has it. The
    package (0.2) adds RAdam's rectification by default; the paper is followed, without it. The
    paper's ``epsilon`` is 1e-8 on images, the package's default 1e-16; since it is added to a
    squared quantity each step, it matters more than Adam's and is worth tuning.
    """

    name: ClassVar[str] = "adabelief"
    summary: ClassVar[str] = "Adam scaled by the gradient's deviation from its average."
    reference: ClassVar[str] = (
        "Zhuang et al.: AdaBelief Optimizer: Adapting Stepsizes by the Belief in Observed "
        "Gradients, NeurIPS 2020, arXiv 2010.07468; "
        "code: github.com/juntang-zhuang/Adabelief-Optimizer"
    )

    @classmethod
    def space(cls) -> Space:
        """Learning rate, both averages' factors, epsilon, weight decay."""
        return Space(
            {
                "learning_rate": Float(
                    1e-5, 1e-1, log=True, default=1e-3, prior=Prior(1e-3, "medium")
                ),
                "beta1": Ordinal((0.8, 0.9, 0.95), default=0.9, prior=Prior(0.9, "high")),
                "beta2": wide_beta2(),
                "epsilon": Float(1e-16, 1e-8, log=True, default=1e-16, prior=Prior(1e-16, "low")),
                "weight_decay": Float(
                    1e-5, 0.5, log=True, default=1e-2, prior=Prior(1e-2, "medium")
                ),
            }
        )

    def build(self, named_parameters: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """An `AdaBeliefOptimizer` over the decayed and the other parameters."""
        return AdaBeliefOptimizer(
            parameter_groups(named_parameters, self.configuration["weight_decay"]),
            lr=self.configuration["learning_rate"],
            betas=(self.configuration["beta1"], self.configuration["beta2"]),
            eps=self.configuration["epsilon"],
        )

"""SGD-SaI: momentum descent with one rate a tensor, fixed by the first gradient."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from autotune.plugins import Optimizer
from autotune.space import Space

from ._adam import decay
from ._foreach import ListOptimizer, Lists, of_owners, pieces
from ._groups import parameter_groups
from ._spaces import learning_rate, momentum, weight_decay


class SGDSaIOptimizer(ListOptimizer):
    """The paper's algorithm 1 as the authors' package has it.

    At a tensor's first step ``scale = |g| / (std(g) + eps)``, and ``m = g``; later
    ``m = momentum * m + (1 - momentum) * g``. Always ``w -= lr * (scale * m + decay * w)``.

    Args:
        parameters: parameters or groups of them.
        lr: learning rate.
        momentum: factor of the running mean.
        eps: added to the standard deviation.
        weight_decay: decoupled, multiplied by the scheduled rate.
    """

    title = "SGD-SaI"
    buffers = ("mean",)
    apart = ("step", "scale")
    elementwise = False

    def __init__(
        self,
        parameters: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "eps": eps, "weight_decay": weight_decay}
        super().__init__(parameters, defaults)

    def new_state(self, parameter: Tensor) -> dict[str, Tensor]:
        """The running mean, and the scale."""
        state = super().new_state(parameter)
        return {**state, "scale": torch.zeros_like(state["mean"]).sum()}

    def update(self, lists: Lists) -> None:
        """See the class."""
        group = lists.group
        scales = [self.state[parameter]["scale"] for parameter in lists.parameters]
        if lists.step == 1:
            torch._foreach_copy_(lists.state["mean"], lists.grads)
            torch._foreach_copy_(scales, [_scale(grad, group["eps"]) for grad in lists.grads])
        for part in pieces(lists):
            means = part.state["mean"]
            if part.step > 1:
                torch._foreach_lerp_(means, part.grads, 1 - group["momentum"])
            decay(part)
            of_parts = of_owners(scales, part)
            torch._foreach_addcmul_(part.weights, means, of_parts, value=-float(group["lr"]))


def _scale(grad: Tensor, eps: float) -> Tensor:
    if grad.numel() == 1:
        return grad.norm()
    return grad.norm() / (grad.std() + eps)


class SGDSaI(Optimizer):
    """Momentum descent, each tensor scaled by its first gradient's signal-to-noise ratio.

    Follows the authors' package 1.0.3, which computes the ratio from the first batch's gradient
    and lets the mean begin at it, as the paper does; but the package does not divide the ratios
    by the largest of all tensors', as the paper's algorithm does. A tensor of one number has no
    standard deviation: its scale is the gradient's size (the package divides by epsilon, and
    diverges). pytorch_optimizer does that for all vectors and starts the mean at zero; it is not
    followed.
    """

    name: ClassVar[str] = "sgd_sai"
    summary: ClassVar[str] = (
        "Momentum SGD, each tensor scaled by |g| / std(g) of its first gradient."
    )
    reference: ClassVar[str] = (
        "Xu, Xiang, Cai, Wen: No More Adam: Learning Rate Scaling at Initialization is All You "
        "Need, arXiv 2412.11768; code: github.com/AnonymousAlethiometer/SGD_SaI"
    )
    carries_over: ClassVar[bool] = False

    @classmethod
    def space(cls) -> Space:
        """Learning rate, momentum, weight decay."""
        return Space(
            {
                "learning_rate": learning_rate(1e-2, 1e-5, 1.0),
                "momentum": momentum(),
                "weight_decay": weight_decay(1e-2),
            }
        )

    def normalises(self) -> Literal["nothing", "elements", "tensors"]:
        """Nothing: it descends along the gradient."""
        return "nothing"

    def build(self, named_parameters: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """An `SGDSaIOptimizer` over the decayed and the other parameters."""
        return SGDSaIOptimizer(
            parameter_groups(named_parameters, self.configuration["weight_decay"]),
            lr=self.configuration["learning_rate"],
            momentum=self.configuration["momentum"],
        )

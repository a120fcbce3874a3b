"""Lion: the sign of an interpolated momentum, with one buffer a parameter."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from autotune.plugins import Optimizer
from autotune.space import Float, Ordinal, Prior, Space

from ._foreach import ListOptimizer, Lists, can_fuse
from ._groups import parameter_groups


class LionOptimizer(ListOptimizer):
    """The rule of the paper's algorithm 2.

    ``c = beta1 * m + (1 - beta1) * g``; ``w -= lr * (sign(c) + weight_decay * w)``;
    ``m = beta2 * m + (1 - beta2) * g``.

    Args:
        parameters: parameters or groups of them.
        lr: step size of every coordinate.
        betas: ``beta1`` of the update, ``beta2`` of the buffer.
        weight_decay: decoupled, multiplied by the scheduled rate.
    """

    title = "Lion"
    buffers = ("momentum",)

    def __init__(
        self,
        parameters: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    def update(self, lists: Lists) -> None:
        """See the class."""
        group, weights, momenta = lists.group, lists.weights, lists.state["momentum"]
        beta1, beta2 = group["betas"]
        updates = torch._foreach_lerp(momenta, lists.grads, 1 - beta1)
        torch._foreach_lerp_(momenta, lists.grads, 1 - beta2)
        torch._foreach_sign_(updates)
        if can_fuse(lists):  # what is left is plain descent, for which torch has one pass
            torch._fused_sgd_(
                weights,
                updates,
                [],
                weight_decay=group["weight_decay"],
                momentum=0.0,
                lr=group["lr"],
                dampening=0.0,
                nesterov=False,
                maximize=False,
                is_first_step=False,
            )
            return
        if group["weight_decay"] != 0:
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(weights, updates, alpha=-group["lr"])


class Lion(Optimizer):
    """Every coordinate moves by the learning rate, in the direction of the momentum's sign.

    Paper and author code (google/automl) agree. The paper advises a rate 3 to 10 times lower
    and a decay 3 to 10 times higher than AdamW's, and (0.95, 0.98) for language models.
    """

    name: ClassVar[str] = "lion"
    summary: ClassVar[str] = "Sign of an interpolated momentum; half of Adam's state."
    reference: ClassVar[str] = (
        "Chen et al.: Symbolic Discovery of Optimization Algorithms, NeurIPS 2023, "
        "arXiv 2302.06675; code: github.com/google/automl/tree/master/lion"
    )

    @classmethod
    def space(cls) -> Space:
        """Learning rate, both interpolation factors, weight decay."""
        return Space(
            {
                "learning_rate": Float(
                    1e-6, 1e-2, log=True, default=3e-4, prior=Prior(3e-4, "medium")
                ),
                "beta1": Ordinal((0.9, 0.95), default=0.9, prior=Prior(0.9, "low")),
                "beta2": Ordinal((0.98, 0.99), default=0.99, prior=Prior(0.99, "low")),
                "weight_decay": Float(
                    1e-3, 10.0, log=True, default=0.1, prior=Prior(0.1, "medium")
                ),
            }
        )

    def build(self, named_parameters: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """A `LionOptimizer` over the decayed and the other parameters."""
        return LionOptimizer(
            parameter_groups(named_parameters, self.configuration["weight_decay"]),
            lr=self.configuration["learning_rate"],
            betas=(self.configuration["beta1"], self.configuration["beta2"]),
        )

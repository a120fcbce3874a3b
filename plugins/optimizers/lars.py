"""LARS: momentum descent whose rate for each layer is scaled to the size of its weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from autotune.plugins import Optimizer
from autotune.space import Float, Prior, Space

from ._foreach import ListOptimizer, Lists, of_owners, pieces
from ._layerwise import scaled_groups, trusted
from ._momentum import momentum_step
from ._spaces import learning_rate, momentum, weight_decay


class LARSOptimizer(ListOptimizer):
    """The rule of the paper's algorithm 1, with the global rate outside the velocity.

    ``local = trust * |w| / (|g| + weight_decay * |w|)`` over the whole tensor, 1 where one of
    the norms is zero and in groups whose ``scaled`` is False;
    ``v = momentum * v + local * (g + weight_decay * w)``; ``w -= lr * v``.

    Args:
        parameters: parameters or groups of them.
        lr: global learning rate.
        momentum: factor of the velocity.
        trust: the paper's eta, how far a layer may move relative to its size.
        weight_decay: added to the gradient, times the weight.
    """

    title = "LARS"
    buffers = ("velocity",)
    elementwise = False

    def __init__(
        self,
        parameters: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        trust: float = 1e-3,
        weight_decay: float = 0.0,
        **more: Any,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "trust": trust, "weight_decay": weight_decay}
        super().__init__(parameters, {**defaults, "scaled": True, **more})

    def factor(self, lists: Lists) -> float:
        """What multiplies the local rates at this step."""
        return 1.0

    def update(self, lists: Lists) -> None:
        """See the class."""
        group = lists.group
        if group["scaled"]:
            sizes = torch.stack(torch._foreach_norm(lists.weights))
            slopes = torch.stack(torch._foreach_norm(lists.grads))
            trust = group["trust"] * self.factor(lists)
            local = trusted(sizes, slopes, trust, group["weight_decay"])
        rate, momentum, weight_decay = group["lr"], group["momentum"], group["weight_decay"]
        for part in pieces(lists):
            if not group["scaled"]:
                momentum_step(part, rate, momentum, weight_decay)
                continue
            updates = torch._foreach_add(part.grads, part.weights, alpha=weight_decay)
            torch._foreach_mul_(updates, of_owners(local, part))
            momentum_step(replace(part, grads=updates), rate, momentum)


class LARS(Optimizer):
    """Layer-wise adaptive rates for training with large batches.

    In the paper's algorithm the global rate stands inside the velocity; here it is outside, as
    in most implementations, which are followed, so that a schedule acts at once. Vectors (norms,
    biases) are neither decayed nor scaled, as is usual since the paper, which excepts none: they
    take plain momentum steps at the global rate.
    """

    name: ClassVar[str] = "lars"
    summary: ClassVar[str] = (
        "Momentum SGD scaled layer by layer to the weights' norm (not for norms and biases)."
    )
    reference: ClassVar[str] = (
        "You, Gitman, Ginsburg: Large Batch Training of Convolutional Networks, arXiv 1708.03888"
    )
    carries_over: ClassVar[bool] = False

    @classmethod
    def space(cls) -> Space:
        """Global rate, momentum, trust coefficient, weight decay."""
        return Space(
            {
                "learning_rate": learning_rate(1.0, 0.05, 10.0),
                "momentum": momentum(),
                "trust_coefficient": Float(
                    1e-4, 2e-2, log=True, default=1e-3, prior=Prior(1e-3, "medium")
                ),
                "weight_decay": weight_decay(1e-4, 1e-6, 1e-2),
            }
        )

    def normalises(self) -> Literal["nothing", "elements", "tensors"]:
        """Each tensor's step as a whole."""
        return "tensors"

    def build(self, named_parameters: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """A `LARSOptimizer` over the decayed and scaled, and the other parameters."""
        return LARSOptimizer(
            scaled_groups(named_parameters, self.configuration["weight_decay"]),
            lr=self.configuration["learning_rate"],
            momentum=self.configuration["momentum"],
            trust=self.configuration["trust_coefficient"],
        )

"""Adaptive Braking: momentum descent that brakes where gradient and velocity agree."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from autotune.plugins import Optimizer
from autotune.space import Categorical, Float, Prior, Space

from ._foreach import ListOptimizer, Lists, Tensors, of_owners, pieces
from ._groups import parameter_groups
from ._spaces import learning_rate, momentum, weight_decay

SMALLEST = 1e-30
"""Below this product of norms there is no direction, and nothing is scaled."""


class AdaptiveBrakingOptimizer(ListOptimizer):
    """Gradient descent with momentum and a scaled gradient.

    With ``d = g + weight_decay * w``: ``alpha = 1 - rho * cos(d, v)``, the cosine being zero
    while there is no velocity; ``v = momentum * v + alpha * d``; ``w -= lr * v``.

    Args:
        parameters: parameters or groups of them.
        lr: learning rate.
        momentum: factor of the velocity.
        rho: strength of the braking; 0 is plain momentum.
        by_filter: a cosine for each output channel (first dimension) instead of each tensor,
            where a tensor has more than one dimension.
        weight_decay: added to the gradient, times the weight.
    """

    title = "Adaptive Braking"
    buffers = ("velocity",)
    elementwise = False

    def __init__(
        self,
        parameters: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        rho: float = 1.0,
        by_filter: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "rho": rho, "by_filter": by_filter}
        super().__init__(parameters, {**defaults, "weight_decay": weight_decay})

    def update(self, lists: Lists) -> None:
        """See the class."""
        group = lists.group
        found = [
            (owner, _products(slope, velocity, group["by_filter"]))
            for part in pieces(lists)
            for owner, slope, velocity in zip(
                part.owners, _slopes(part), part.state["velocity"], strict=True
            )
        ]
        if not group["by_filter"]:
            found = _summed(found)
        factors = [1 - group["rho"] * _cosine(products) for _, products in found]
        taken = 0
        for part in pieces(lists):
            slopes, velocities = _slopes(part), part.state["velocity"]
            if group["by_filter"]:
                ours = factors[taken : taken + len(slopes)]
                taken += len(slopes)
            else:
                ours = of_owners(factors, part)
            for slope, factor in zip(slopes, ours, strict=True):
                slope *= factor.view(-1, *[1] * (slope.ndim - 1)) if factor.ndim else factor
            torch._foreach_mul_(velocities, group["momentum"])
            torch._foreach_add_(velocities, slopes)
            torch._foreach_add_(part.weights, velocities, alpha=-group["lr"])


def _slopes(lists: Lists) -> Tensors:
    return torch._foreach_add(lists.grads, lists.weights, alpha=lists.group["weight_decay"])


def _products(first: Tensor, second: Tensor, by_filter: bool) -> Tensor:
    """The three inner products that make a cosine, along a new first dimension: of the whole
    tensors, or of their slices along the first dimension where they have more than one."""
    pairs = ((first, second), (first, first), (second, second))
    if by_filter and first.ndim > 1:
        return torch.stack([(one * other).flatten(1).sum(1) for one, other in pairs])
    return torch.stack([torch.dot(one.reshape(-1), other.reshape(-1)) for one, other in pairs])


def _summed(found: list[tuple[int, Tensor]]) -> list[tuple[int, Tensor]]:
    """The products of whole tensors from those of their pieces, in order."""
    sums: dict[int, Tensor] = {}
    for owner, products in found:
        sums[owner] = sums[owner] + products if owner in sums else products
    return sorted(sums.items(), key=lambda item: item[0])


def _cosine(products: Tensor) -> Tensor:
    crossed, first, second = products.unbind()
    return crossed / (first.sqrt() * second.sqrt()).clamp_min(SMALLEST)


class AdaptiveBraking(Optimizer):
    """Momentum descent whose gradients count less along the velocity and more against it.

    Made for delayed gradients, where it damps the oscillation that delay and momentum bring.
    The authors published no code. What is open is a choice here: the angle is that of the decayed
    gradient with the velocity before the step, over whole tensors or over output channels.
    """

    name: ClassVar[str] = "adaptive_braking"
    summary: ClassVar[str] = (
        "Momentum SGD with the (L2-decayed) gradient scaled by 1 - rho * cos(gradient, velocity)."
    )
    reference: ClassVar[str] = (
        "Venigalla, Kosson, Chiley, Köster: Adaptive Braking for Mitigating Gradient Delay, "
        "ICML workshop on second-order methods 2020, arXiv 2007.01397"
    )

    @classmethod
    def space(cls) -> Space:
        """Learning rate, momentum, strength and granularity of braking, weight decay."""
        return Space(
            {
                "learning_rate": learning_rate(0.1, 1e-3, 1.0),
                "momentum": momentum(),
                "rho": Float(0.0, 2.0, default=1.0, prior=Prior(1.0, "low")),
                "granularity": Categorical(("tensor", "filter"), default="tensor"),
                "weight_decay": weight_decay(1e-4, 1e-6, 1e-2),
            }
        )

    def normalises(self) -> Literal["nothing", "elements", "tensors"]:
        """Nothing: it descends along the gradient."""
        return "nothing"

    def build(self, named_parameters: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """An `AdaptiveBrakingOptimizer` over the decayed and the other parameters."""
        return AdaptiveBrakingOptimizer(
            parameter_groups(named_parameters, self.configuration["weight_decay"]),
            lr=self.configuration["learning_rate"],
            momentum=self.configuration["momentum"],
            rho=self.configuration["rho"],
            by_filter=self.configuration["granularity"] == "filter",
        )

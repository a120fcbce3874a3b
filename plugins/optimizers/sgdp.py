"""SGDP: momentum descent that does not grow the norm of scale-invariant weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from autotune.plugins import Optimizer
from autotune.space import Categorical, Float, Prior, Space

from ._foreach import ListOptimizer, Lists, Tensors
from ._groups import parameter_groups
from ._momentum import momentum_step
from ._radial import projected_step
from ._spaces import learning_rate, momentum, weight_decay


class SGDPOptimizer(ListOptimizer):
    """The rule of the paper's algorithm 1.

    ``v = momentum * v + g``; ``u = v``, with Nesterov ``g + momentum * v``;
    ``w -= lr * weight_decay / (1 - momentum) * w``; ``w -= lr * projected(u)``; see
    `_radial.projected_step`.

    Args:
        parameters: parameters or groups of them.
        lr: learning rate.
        momentum: factor of the velocity, below 1.
        weight_decay: decoupled, of the size that L2 in the gradient would have.
        delta: threshold of the cosine.
        decay_ratio: factor of the decay of weights that were projected.
        nesterov: look one step of the momentum ahead.
    """

    title = "SGDP"
    buffers = ("velocity",)
    elementwise = False

    def __init__(
        self,
        parameters: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        delta: float = 0.1,
        decay_ratio: float = 0.1,
        nesterov: bool = False,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        projection = {"delta": delta, "decay_ratio": decay_ratio, "nesterov": nesterov}
        super().__init__(parameters, {**defaults, **projection})

    def update(self, lists: Lists) -> None:
        """See the class."""
        decay_by = 1 / (1 - lists.group["momentum"])
        projected_step(lists, _step, _advance, _directions, decay_by)


def _step(lists: Lists, decay: float) -> None:
    group = lists.group
    if decay:
        torch._foreach_mul_(lists.weights, 1 - decay)
    momentum_step(lists, group["lr"], group["momentum"], nesterov=group["nesterov"])


def _advance(lists: Lists) -> Tensors:
    torch._foreach_mul_(lists.state["velocity"], lists.group["momentum"])
    torch._foreach_add_(lists.state["velocity"], lists.grads)
    return _directions(lists)


def _directions(lists: Lists) -> Tensors:
    velocities = lists.state["velocity"]
    if not lists.group["nesterov"]:
        return [velocity.clone() for velocity in velocities]
    updates = torch._foreach_mul(velocities, lists.group["momentum"])
    torch._foreach_add_(updates, lists.grads)
    return updates


class SGDP(Optimizer):
    """Momentum descent without the part of its step that only lengthens the weights.

    The paper tests one cosine; the authors' code is followed: channels (the first dimension) are
    tested before whole tensors, and tensors of one dimension not at all, 1e-8 is added to norms,
    and the decay is decoupled, divided by ``1 - momentum``, and weaker for projected weights. Its
    ``dampening`` is left at 0.
    """

    name: ClassVar[str] = "sgdp"
    summary: ClassVar[str] = (
        "Momentum SGD with radial steps of scale-invariant weights projected out."
    )
    reference: ClassVar[str] = (
        "Heo et al.: AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant "
        "Weights, ICLR 2021, arXiv 2006.08217; code: github.com/clovaai/AdamP"
    )

    @classmethod
    def space(cls) -> Space:
        """Learning rate, momentum, Nesterov, the projection's threshold and ratio of decay."""
        return Space(
            {
                "learning_rate": learning_rate(0.1, 1e-3, 1.0),
                "momentum": momentum(),
                "nesterov": Categorical((False, True), default=False),
                "weight_decay": weight_decay(1e-4, 1e-6, 1e-2),
                "delta": Float(0.01, 1.0, log=True, default=0.1, prior=Prior(0.1, "high")),
                "weight_decay_ratio": Float(
                    0.01, 1.0, log=True, default=0.1, prior=Prior(0.1, "high")
                ),
            }
        )

    def normalises(self) -> Literal["nothing", "elements", "tensors"]:
        """Nothing: it descends along the gradient."""
        return "nothing"

    def build(self, named_parameters: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """An `SGDPOptimizer` over the decayed and the other parameters."""
        configuration = self.configuration
        return SGDPOptimizer(
            parameter_groups(named_parameters, configuration["weight_decay"]),
            lr=configuration["learning_rate"],
            momentum=configuration["momentum"],
            delta=configuration["delta"],
            decay_ratio=configuration["weight_decay_ratio"],
            nesterov=configuration["nesterov"],
        )

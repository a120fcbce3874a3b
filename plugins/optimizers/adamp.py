"""AdamP: Adam that does not grow the norm of scale-invariant weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import nn

from autotune.plugins import Optimizer
from autotune.space import Categorical, Float, Prior, Space

from ._adam import MOMENTS, adam_directions, adamw_step, new_directions, update_moments
from ._foreach import ListOptimizer, Lists, Tensors
from ._groups import parameter_groups
from ._radial import projected_step
from ._spaces import beta1, beta2, epsilon, learning_rate, weight_decay


class AdamPOptimizer(ListOptimizer):
    """The rule of the paper's algorithm 2.

    ``u = m_hat / (sqrt(v_hat) + eps)``, with Nesterov ``beta1 * m + (1 - beta1) * g`` for ``m``;
    ``w -= lr * weight_decay * w``; ``w -= lr * projected(u)``; see `_radial.projected_step`.

    Args:
        parameters: parameters or groups of them.
        lr: learning rate.
        betas: factors of the two averages.
        eps: added to the divisor.
        weight_decay: decoupled, multiplied by the scheduled rate.
        delta: threshold of the cosine.
        decay_ratio: factor of the decay of weights that were projected.
        nesterov: look one step of the momentum ahead.
    """

    title = "AdamP"
    buffers = MOMENTS
    elementwise = False

    def __init__(
        self,
        parameters: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        delta: float = 0.1,
        decay_ratio: float = 0.1,
        nesterov: bool = False,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        projection = {"delta": delta, "decay_ratio": decay_ratio, "nesterov": nesterov}
        super().__init__(parameters, {**defaults, **projection})

    def update(self, lists: Lists) -> None:
        """See the class."""
        projected_step(lists, _step, _advance, _directions)


def _step(lists: Lists, decay: float) -> None:
    rate = lists.group["lr"]
    if not lists.group["nesterov"] and rate != 0:
        adamw_step(lists, rate, decay / rate)
        return
    updates = _advance(lists)
    torch._foreach_mul_(lists.weights, 1 - decay)
    torch._foreach_add_(lists.weights, updates, alpha=-rate)


def _advance(lists: Lists) -> Tensors:
    if not lists.group["nesterov"]:
        return new_directions(lists)
    update_moments(lists)
    return _directions(lists)


def _directions(lists: Lists) -> Tensors:
    if not lists.group["nesterov"]:
        return adam_directions(lists)
    ahead = torch._foreach_lerp(lists.state["mean"], lists.grads, 1 - lists.group["betas"][0])
    return adam_directions(replace(lists, state={**lists.state, "mean": list(ahead)}))


class AdamP(Optimizer):
    """Adam without the part of its step that only lengthens the weights.

    Where weights are followed by a normalisation their length does nothing but lower the
    effective rate, and momentum lengthens them. The paper tests one cosine; the authors' code is
    followed: channels (the first dimension) are tested before whole tensors, and tensors of one
    dimension not at all, 1e-8 is added to norms, and the decay of projected weights is weaker.
    """

    name: ClassVar[str] = "adamp"
    summary: ClassVar[str] = "Adam with radial steps of scale-invariant weights projected out."
    reference: ClassVar[str] = (
        "Heo et al.: AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant "
        "Weights, ICLR 2021, arXiv 2006.08217; code: github.com/clovaai/AdamP"
    )

    @classmethod
    def space(cls) -> Space:
        """Adam's own, the projection's threshold and ratio of decay, Nesterov."""
        return Space(
            {
                "learning_rate": learning_rate(1e-3),
                "beta1": beta1(),
                "beta2": beta2(),
                "epsilon": epsilon(),
                "weight_decay": weight_decay(),
                "delta": Float(0.01, 1.0, log=True, default=0.1, prior=Prior(0.1, "high")),
                "weight_decay_ratio": Float(
                    0.01, 1.0, log=True, default=0.1, prior=Prior(0.1, "high")
                ),
                "nesterov": Categorical((False, True), default=False),
            }
        )

    def build(self, named_parameters: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """An `AdamPOptimizer` over the decayed and the other parameters."""
        configuration = self.configuration
        return AdamPOptimizer(
            parameter_groups(named_parameters, configuration["weight_decay"]),
            lr=configuration["learning_rate"],
            betas=(configuration["beta1"], configuration["beta2"]),
            eps=configuration["epsilon"],
            delta=configuration["delta"],
            decay_ratio=configuration["weight_decay_ratio"],
            nesterov=configuration["nesterov"],
        )

"""NAdam: Adam with Nesterov's momentum."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from autotune.plugins import Optimizer
from autotune.space import Float, Prior, Space

from ._adam import MOMENTS, decay, divisors, update_moments
from ._foreach import ListOptimizer, Lists
from ._groups import parameter_groups
from ._spaces import beta1, beta2, epsilon, learning_rate, weight_decay


class NAdamOptimizer(ListOptimizer):
    """Algorithm 2 of the ICLR 2016 workshop paper (algorithm 8 of the Stanford report of the same
    title), as torch.optim.NAdam has it.

    ``mu_t = beta1 * (1 - 0.96^(t * momentum_decay) / 2)``; the step is ``lr`` times
    ``((1 - mu_t) / (1 - P_t) * g + mu_{t+1} / (1 - P_{t+1}) * m) / (sqrt(v_hat) + eps)`` with
    ``P_t`` the product of ``mu_1 ... mu_t``.

    Args:
        parameters: parameters or groups of them.
        lr: learning rate.
        betas: factors of the two averages.
        momentum_decay: how fast the momentum rises to ``beta1``.
        eps: added to the divisor.
        weight_decay: decoupled, multiplied by the scheduled rate.
    """

    title = "NAdam"
    buffers = MOMENTS
    apart = ("step", "momentum_product")

    def __init__(
        self,
        parameters: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        momentum_decay: float = 4e-3,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "momentum_decay": momentum_decay, "eps": eps}
        super().__init__(parameters, {**defaults, "weight_decay": weight_decay})

    def new_state(self, parameter: Tensor) -> dict[str, Tensor]:
        """Both averages, and the product of the momenta so far."""
        product = torch.ones((), dtype=torch.float64)
        return {**super().new_state(parameter), "momentum_product": product}

    def take_step(self, everything: list[Lists]) -> None:
        """The step, with the products that include its own momentum."""
        super().take_step([self._with_product(lists) for lists in everything])

    def _with_product(self, lists: Lists) -> Lists:
        momentum = _momentum(lists.group, lists.step)
        products = [self.state[parameter]["momentum_product"] for parameter in lists.parameters]
        torch._foreach_mul_(products, momentum)
        return replace(lists, scalars={"product": products[0].item()})

    def update(self, lists: Lists) -> None:
        """See the class."""
        group, step, weights = lists.group, lists.step, lists.weights
        now, then = _momentum(group, step), _momentum(group, step + 1)
        product = lists.scalars["product"]
        update_moments(lists)
        roots = divisors(lists.state["square"], 1 - group["betas"][1] ** step, group["eps"])
        decay(lists)
        of_gradient = -group["lr"] * (1 - now) / (1 - product)
        of_mean = -group["lr"] * then / (1 - product * then)
        torch._foreach_addcdiv_(weights, lists.grads, roots, of_gradient)
        torch._foreach_addcdiv_(weights, lists.state["mean"], roots, of_mean)


def _momentum(group: dict[str, Any], step: int) -> float:
    return float(group["betas"][0] * (1 - 0.5 * 0.96 ** (step * group["momentum_decay"])))


class NAdam(Optimizer):
    """Adam that looks one step of its momentum ahead.

    The paper averages the gradient by ``mu_t``; torch does by ``beta1``, and is followed. Equal to
    ``torch.optim.NAdam(decoupled_weight_decay=True)`` but for rounding (torch keeps the product of
    the ``mu_t`` in float32); written here since torch's passes over memory more often.
    """

    name: ClassVar[str] = "nadam"
    summary: ClassVar[str] = "Adam with Nesterov momentum and decoupled weight decay."
    reference: ClassVar[str] = (
        "Dozat: Incorporating Nesterov Momentum into Adam, ICLR workshop 2016; "
        "code: torch.optim.NAdam"
    )

    @classmethod
    def space(cls) -> Space:
        """Learning rate, both averages' factors, momentum's decay, epsilon, weight decay."""
        return Space(
            {
                "learning_rate": learning_rate(2e-3),
                "beta1": beta1(),
                "beta2": beta2(),
                "momentum_decay": Float(
                    1e-3, 1e-1, log=True, default=4e-3, prior=Prior(4e-3, "high")
                ),
                "epsilon": epsilon(),
                "weight_decay": weight_decay(),
            }
        )

    def build(self, named_parameters: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """A `NAdamOptimizer` over the decayed and the other parameters."""
        return NAdamOptimizer(
            parameter_groups(named_parameters, self.configuration["weight_decay"]),
            lr=self.configuration["learning_rate"],
            betas=(self.configuration["beta1"], self.configuration["beta2"]),
            momentum_decay=self.configuration["momentum_decay"],
            eps=self.configuration["epsilon"],
        )

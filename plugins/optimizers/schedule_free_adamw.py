"""Schedule-free AdamW: averaging of the iterates in the place of a falling rate."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from autotune.plugins import Optimizer
from autotune.space import Ordinal, Prior, Space

from ._adam import divisors, update_squares
from ._foreach import ListOptimizer, Lists, zeros_like
from ._groups import parameter_groups
from ._spaces import beta2, epsilon, learning_rate, weight_decay


class ScheduleFreeAdamWOptimizer(ListOptimizer):
    """The paper's algorithm 1 (AdamW schedule-free), as the authors' package computes it.

    The parameters hold ``y = (1 - beta1) * z + beta1 * x``, where gradients are taken; ``z``
    takes the steps, and ``x`` averages it with weights ``lr^2`` of the largest rate so far. `eval`
    puts ``x`` in the parameters and `train` puts ``y`` back.

    Args:
        parameters: parameters or groups of them.
        lr: learning rate.
        betas: interpolation of the two sequences, and factor of the squares' average.
        eps: added to the divisor.
        weight_decay: of ``y``, multiplied by the scheduled rate.
    """

    title = "schedule-free AdamW"
    buffers = ("square",)

    def __init__(
        self,
        parameters: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        averaging = {"largest_lr": 0.0, "weight_sum": 0.0, "training": True}
        super().__init__(parameters, {**defaults, **averaging})

    def new_state(self, parameter: Tensor) -> dict[str, Tensor]:
        """The squares' average, and ``z``, which begins at the parameter."""
        base = zeros_like(parameter).copy_(parameter)
        return {**super().new_state(parameter), "base": base}

    def eval(self) -> None:
        """Put the averages in the parameters, to be judged and kept."""
        self._move(training=False)

    def train(self) -> None:
        """Put the weights in the parameters that gradients are to be taken at."""
        self._move(training=True)

    @torch.no_grad()
    def _move(self, training: bool) -> None:
        for group in self.param_groups:
            if group["training"] == training:
                continue
            group["training"] = training
            beta1 = group["betas"][0]
            share = 1 - beta1 if training else 1 - 1 / beta1
            for parameter in group["params"]:
                if "base" in self.state[parameter]:
                    parameter.lerp_(self.state[parameter]["base"].to(parameter.dtype), share)

    def take_step(self, everything: list[Lists]) -> None:
        """The step; each group's share of the new iterate in the average is settled first."""
        shares = [_settle_share(group) for group in self.param_groups]
        of_group = dict(zip(map(id, self.param_groups), shares, strict=True))
        super().take_step(
            [replace(lists, scalars={"share": of_group[id(lists.group)]}) for lists in everything]
        )

    def update(self, lists: Lists) -> None:
        """See the class."""
        group, weights, bases = lists.group, lists.weights, lists.state["base"]
        beta1, beta2 = group["betas"]
        share, lr = lists.scalars["share"], group["lr"]
        update_squares(lists.state["square"], lists.grads, beta2)
        roots = divisors(lists.state["square"], 1 - beta2**lists.step, group["eps"])
        updates = torch._foreach_div(lists.grads, roots)
        if group["weight_decay"] != 0:
            torch._foreach_add_(updates, weights, alpha=group["weight_decay"])
        torch._foreach_lerp_(weights, bases, share)
        torch._foreach_add_(weights, updates, alpha=lr * (beta1 * (1 - share) - 1))
        torch._foreach_add_(bases, updates, alpha=-lr)


def _settle_share(group: dict[str, Any]) -> float:
    """Take the step's weight into the group's sum; its share of the sum."""
    if not group["training"]:
        raise RuntimeError(
            "schedule-free AdamW was asked for a step while its parameters hold the averages; "
            "call train() before training goes on"
        )
    if group["lr"] == 0:
        return 0.0
    group["largest_lr"] = max(group["largest_lr"], group["lr"])
    weight = group["largest_lr"] ** 2
    group["weight_sum"] += weight
    return float(weight / group["weight_sum"])


class ScheduleFreeAdamW(Optimizer):
    """AdamW that is judged by an average of its iterates and needs no falling rate.

    Best with a constant schedule, or a warm-up and then a constant. Batch norm's running
    statistics belong to the weights trained at, not to their average: the authors advise
    renewing them before judging, which is not done here. The paper weighs the average by each
    step's own squared rate; the authors' code, which is followed, by that of the largest rate so
    far. At a rate of zero nothing moves; in the authors' code the average still draws the weights
    along.
    """

    name: ClassVar[str] = "schedule_free_adamw"
    summary: ClassVar[str] = "AdamW with averaged iterates instead of a schedule."
    reference: ClassVar[str] = (
        "Defazio et al.: The Road Less Scheduled, NeurIPS 2024, arXiv 2405.15682; "
        "code: github.com/facebookresearch/schedule_free"
    )

    @classmethod
    def space(cls) -> Space:
        """Learning rate, interpolation, the squares' factor, epsilon, weight decay."""
        return Space(
            {
                "learning_rate": learning_rate(2.5e-3),
                "beta1": Ordinal((0.9, 0.95, 0.98), default=0.9, prior=Prior(0.9, "medium")),
                "beta2": beta2(),
                "epsilon": epsilon(),
                "weight_decay": weight_decay(),
            }
        )

    def build(self, named_parameters: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """A `ScheduleFreeAdamWOptimizer` over the decayed and the other parameters."""
        return ScheduleFreeAdamWOptimizer(
            parameter_groups(named_parameters, self.configuration["weight_decay"]),
            lr=self.configuration["learning_rate"],
            betas=(self.configuration["beta1"], self.configuration["beta2"]),
            eps=self.configuration["epsilon"],
        )

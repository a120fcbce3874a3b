"""Adam with critical momenta: a memory of large past momenta that keeps it exploring."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from autotune.plugins import Optimizer
from autotune.space import Ordinal, Prior, Space

from ._adam import MOMENTS, adamw_step
from ._foreach import ListOptimizer, Lists, Tensors, joint_norm
from ._groups import parameter_groups
from ._spaces import beta1, beta2, epsilon, learning_rate, weight_decay

EMPTY = -1.0
"""Priority of a place in the memory that holds nothing."""


class AdamCMOptimizer(ListOptimizer):
    """The rule of the paper's algorithm 1, with the mean as its aggregation.

    ``m = beta1 * m + (1 - beta1) * g``; ``a = m + mean(memory)``;
    ``v = beta2 * v + (1 - beta2) * a^2``; ``w -= lr * a_hat / (sqrt(v_hat) + eps)``. Then ``m``
    enters the memory with the whole gradient's norm as its priority: in a free place, or for
    the entry of lowest priority if that is lower. All priorities are multiplied by ``retention``.

    A step reads the whole memory, in one pass. A sum kept beside it would not help: an entry is
    replaced at most steps.

    Args:
        parameters: parameters or groups of them.
        lr: learning rate.
        betas: factors of the two averages.
        capacity: momenta remembered, each of the size of the parameters.
        retention: what is left of a priority from one step to the next.
        eps: added to the divisor.
        weight_decay: decoupled, multiplied by the scheduled rate.
    """

    title = "Adam with critical momenta"
    buffers = MOMENTS
    apart = ("step", "priorities")

    def __init__(
        self,
        parameters: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        capacity: int = 5,
        retention: float = 0.7,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        self._capacity = capacity
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(parameters, {**defaults, "retention": retention})

    def new_state(self, parameter: Tensor) -> dict[str, Tensor]:
        """Both averages, and the memory, of shape (rows, capacity, ...), with its priorities."""
        state = super().new_state(parameter)
        # Each momentum in one piece, which adds up fastest; cut by rows like all other state.
        memory = state["mean"].new_zeros(self._capacity, *parameter.shape)
        memory = memory.transpose(0, _places(memory))
        priorities = torch.full((self._capacity,), EMPTY, dtype=torch.float64)
        return {**state, "memory": memory, "priorities": priorities}

    def take_step(self, everything: list[Lists]) -> None:
        """The step, with the norm of the gradient of all parameters as priority."""
        norm = joint_norm([grad for lists in everything for grad in lists.grads])
        super().take_step([part for lists in everything for part in self._with_places(lists, norm)])

    def _with_places(self, lists: Lists, norm: float) -> Iterator[Lists]:
        """The lists with the place that their momenta are to take; in several parts if some
        parameters have missed gradients and so have other memories."""
        by_memory: dict[tuple[float, ...], list[int]] = defaultdict(list)
        for index, parameter in enumerate(lists.parameters):
            by_memory[tuple(self.state[parameter]["priorities"].tolist())].append(index)
        for priorities, members in by_memory.items():
            filled = sum(priority >= 0 for priority in priorities)
            lowest = min(range(len(priorities)), key=lambda place: priorities[place])
            place = lowest if norm > priorities[lowest] else -1
            after = torch.tensor(priorities, dtype=torch.float64)
            if place >= 0:
                after[place] = norm
            after.mul_(lists.group["retention"])
            kept = [self.state[lists.parameters[index]]["priorities"] for index in members]
            torch._foreach_copy_(kept, [after] * len(kept))
            yield replace(
                lists,
                weights=[lists.weights[i] for i in members],
                grads=[lists.grads[i] for i in members],
                state={key: [of[i] for i in members] for key, of in lists.state.items()},
                parameters=[lists.parameters[i] for i in members],
                scalars={"filled": filled, "place": place},
            )

    def update(self, lists: Lists) -> None:
        """See the class."""
        group, step, state = lists.group, lists.step, lists.state
        beta1, beta2 = group["betas"]
        filled, place = int(lists.scalars["filled"]), int(lists.scalars["place"])
        torch._foreach_lerp_(state["mean"], lists.grads, 1 - beta1)
        aggregates: Tensors
        if filled:
            sums = [kept.sum(_places(kept)) for kept in state["memory"]]  # free places hold zeros
            aggregates = torch._foreach_add(state["mean"], sums, alpha=1 / filled)
        else:
            aggregates = [mean.clone() for mean in state["mean"]]
        # Adam's kernel does the rest in one pass, with `a` for its gradient and, not averaged
        # any more, for its mean.
        adam = replace(
            lists,
            group={**group, "betas": (0.0, beta2)},
            grads=aggregates,
            state={"mean": list(aggregates), "square": state["square"]},
        )
        correction = 1 - beta1**step
        adamw_step(adam, group["lr"] / correction, group["weight_decay"] * correction)
        if place >= 0:
            replaced = [kept.select(_places(kept), place) for kept in state["memory"]]
            torch._foreach_copy_(replaced, state["mean"])


def _places(memory: Tensor) -> int:
    """The dimension of a memory that tells its momenta apart."""
    return min(1, memory.ndim - 1)


class AdamCM(Optimizer):
    """Adam that overshoots sharp minima by adding up its largest momenta so far.

    Follows the paper, with a momentum entering the memory after the mean is taken and with
    decoupled decay, as in the authors' code. That code takes no step at first and remembers the
    first gradient itself in the place of its momentum, adds up the norms of tensors within each
    parameter group, and offers layer-wise priorities and a queue besides; here, as in the paper,
    the priority is the norm of the whole gradient. The memory costs `capacity` times the
    parameters.
    """

    name: ClassVar[str] = "adam_cm"
    summary: ClassVar[str] = "Adam plus the mean of a buffer of critical (large-gradient) momenta."
    reference: ClassVar[str] = (
        "Malviya, Mordido, Baratin, Babanezhad, Huang, Lacoste-Julien, Pascanu, Chandar: "
        "Promoting Exploration in Memory-Augmented Adam using Critical Momenta, TMLR 2024, "
        "arXiv 2307.09638; code: github.com/chandar-lab/CMOptimizer"
    )

    @classmethod
    def space(cls) -> Space:
        """Adam's own, the memory's capacity and how long it keeps."""
        return Space(
            {
                "learning_rate": learning_rate(1e-3),
                "beta1": beta1(),
                "beta2": beta2(),
                "capacity": Ordinal((5, 10, 20), default=5, prior=Prior(5, "high")),
                "decay": Ordinal((0.7, 0.9, 0.99), default=0.7, prior=Prior(0.7, "medium")),
                "epsilon": epsilon(),
                "weight_decay": weight_decay(),
            }
        )

    def build(self, named_parameters: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """An `AdamCMOptimizer` over the decayed and the other parameters."""
        configuration = self.configuration
        return AdamCMOptimizer(
            parameter_groups(named_parameters, configuration["weight_decay"]),
            lr=configuration["learning_rate"],
            betas=(configuration["beta1"], configuration["beta2"]),
            capacity=configuration["capacity"],
            retention=configuration["decay"],
            eps=configuration["epsilon"],
        )

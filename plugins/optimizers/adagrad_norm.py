"""AdaGrad-Norm: one rate for all weights, which falls with all gradients that there have been."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from autotune.plugins import Optimizer
from autotune.space import Space

from ._foreach import ListOptimizer, Lists, in_full_precision, joint_norm
from ._groups import parameter_groups
from ._spaces import epsilon, learning_rate


class AdaGradNormOptimizer(ListOptimizer):
    """``b^2 += |g|^2`` with ``g`` the gradient of all parameters together, and ``w -= lr * g /
    (b + eps)`` (Ward, Wu, Bottou, algorithm 1); ``b`` begins at 0.

    Args:
        parameters: parameters or groups of them.
        lr: learning rate.
        eps: added to the divisor.
    """

    title = "AdaGrad-Norm"
    apart = ("step", "sum")

    def __init__(self, parameters: Iterable[Any], lr: float, eps: float = 1e-10) -> None:
        super().__init__(parameters, {"lr": lr, "eps": eps})

    def new_state(self, parameter: Tensor) -> dict[str, Tensor]:
        """The sum of squared norms so far, the same number with every parameter."""
        return {"sum": torch.zeros((), dtype=torch.float64)}

    def take_step(self, everything: list[Lists]) -> None:
        """One step over all parameters that have a gradient."""
        square = joint_norm([grad for lists in everything for grad in lists.grads]) ** 2
        # The largest, since a parameter that had no gradient before begins at zero; written to
        # all, so that those without a gradient now miss nothing.
        sums = [state["sum"] for state in self.state.values() if "sum" in state]
        total = max((one.item() for one in sums), default=0.0) + square
        for one in sums:
            one.fill_(total)
        for lists in everything:
            rate = float(lists.group["lr"]) / (total**0.5 + lists.group["eps"])
            for part in in_full_precision(lists):
                torch._foreach_add_(part.weights, part.grads, alpha=-rate)


class AdaGradNorm(Optimizer):
    """Gradient descent whose one rate finds its own size.

    The paper begins ``b^2`` above 0 and divides by ``b`` alone; here it begins at 0, and epsilon
    is added to ``b``, as in AdaGrad.

    With the schedule ``norm_test`` it is AdAdaGradNorm, whose batches grow.
    """

    name: ClassVar[str] = "adagrad_norm"
    summary: ClassVar[str] = "One rate that falls with the sum of whole gradients' squared norms."
    reference: ClassVar[str] = (
        "Ward, Wu, Bottou: AdaGrad Stepsizes: Sharp Convergence Over Nonconvex Landscapes, ICML "
        "2019, arXiv 1806.01811"
    )
    carries_over: ClassVar[bool] = False

    @classmethod
    def space(cls) -> Space:
        """Learning rate, epsilon."""
        return Space({"learning_rate": learning_rate(1e-1, 1e-3, 10.0), "epsilon": epsilon(1e-10)})

    def normalises(self) -> Literal["nothing", "elements", "tensors"]:
        """The gradient as a whole."""
        return "tensors"

    def build(self, named_parameters: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """An `AdaGradNormOptimizer`, without weight decay."""
        return AdaGradNormOptimizer(
            parameter_groups(named_parameters, weight_decay=0.0),
            self.configuration["learning_rate"],
            self.configuration["epsilon"],
        )

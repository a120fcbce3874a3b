"""TAG: adaptive steps that remember, task by task, what earlier tasks needed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from autotune.plugins import Optimizer
from autotune.space import Categorical, Float, Prior, Space

from . import _spaces
from ._foreach import TypedStateOptimizer, cut, parameters_with_gradients
from ._groups import parameter_groups
from ._matrix import step_count, wide_gradients


class TAGOptimizer(TypedStateOptimizer):
    """The paper's algorithm 1 for each tensor; tasks come one after the other.

    In task T: ``m_T = beta1 m_T + (1 - beta1) g``; ``v_T = beta2 v_T + (1 - beta2) g^2`` (with
    AdaGrad ``v_T + g^2``); ``a_t = exp(-b cos(m_T, m_t))`` for each earlier task t, ``a_T =
    exp(-b)``, or 1 in the first task; ``w -= lr * n / (sqrt(sum of a_t v_t) + eps)`` with
    ``n = g``, or with Adam ``n = m_T`` and both corrected for their bias in this task.

    `begin_task` says that the next task begins. State: two tensors a task.
    """

    def begin_task(self) -> None:
        """The steps from now on belong to a new task."""
        for group in self.param_groups:
            group["task"] += 1

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; returns what `closure`, if there is one, returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameters in parameters_with_gradients(group, "TAG"):
                for parameter, slope in zip(parameters, wide_gradients(parameters), strict=True):
                    _descend(group, parameter, slope, self.state[parameter])
        return loss


def _descend(
    group: dict[str, Any], parameter: Tensor, slope: Tensor, state: dict[str, Any]
) -> None:
    task, base, (beta1, beta2) = group["task"], group["base"], group["betas"]
    if f"mean_{task}" not in state:
        state[f"step_{task}"] = step_count()
        state[f"mean_{task}"] = torch.zeros_like(slope)
        state[f"variance_{task}"] = torch.zeros_like(slope)
    state[f"step_{task}"] += 1
    count = state[f"step_{task}"].item()
    mean, variance = state[f"mean_{task}"], state[f"variance_{task}"]
    mean.lerp_(slope, 1 - beta1)
    earlier = [t for t in range(task) if f"mean_{t}" in state]
    shares = [_share(group["b"], mean, state[f"mean_{t}"]) for t in earlier]
    own = math.exp(-group["b"]) if earlier else 1.0
    rate, correction = group["lr"], 1.0
    if base == "adam":
        rate, correction = rate / (1 - beta1**count), 1 - beta2**count
    remembered = [state[f"variance_{t}"] for t in earlier]
    # On a CPU by pieces that its cache holds: sums of the tensor's size take longer to allocate.
    for weight, gradient, average, square, *others in cut(
        (parameter, slope, mean, variance, *remembered)
    ):
        if base != "adagrad":
            square.mul_(beta2)
        square.addcmul_(gradient, gradient, value=1.0 if base == "adagrad" else 1 - beta2)
        total = square * (own / correction)
        for share, other in zip(shares, others, strict=True):
            total.addcmul_(share, other, value=1 / correction)
        total.sqrt_().add_(group["eps"])
        torch.div(average if base == "adam" else gradient, total, out=total)
        weight.add_(total, alpha=-rate)


def _share(b: float, mean: Tensor, earlier: Tensor) -> Tensor:
    """``a_t`` of an earlier task, which stays on the device."""
    return torch.exp(-b * torch.cosine_similarity(mean.flatten(), earlier.flatten(), dim=0))


class TAG(Optimizer):
    """Shorter steps where the present task disagrees with earlier ones, longer where it agrees.

    Made for a stream of tasks. A `TorchTask` is one task, on which it is RMSProp, Adam or AdaGrad
    without decay, where ``b`` does nothing, and ``beta1`` only in Adam. In a training loop of your
    own (`Trainable`), call ``begin_task`` of the optimizer that `build` gives wherever a new task
    begins. Paper and author code agree, but the code counts the steps of Adam's bias correction
    anew in each epoch; here they are counted by task.
    """

    name: ClassVar[str] = "tag"
    summary: ClassVar[str] = "Adaptive steps with one memory a task, for streams of tasks."
    reference: ClassVar[str] = (
        "Malviya, Ravindran, Chandar: TAG: Task-based Accumulated Gradients for Lifelong "
        "Learning, CoLLAs 2022, arXiv 2105.05155; code: github.com/pranshu28/TAG"
    )

    @classmethod
    def space(cls) -> Space:
        """Base rule, learning rate, weight of the past, both averages' factors, epsilon."""
        return Space(
            {
                "base": Categorical(("rms", "adam", "adagrad"), default="rms"),
                "learning_rate": _spaces.learning_rate(1e-3, 1e-4, 1e-1),
                "b": Float(1.0, 10.0, log=True, default=5.0, prior=Prior(5.0, "medium")),
                "beta1": _spaces.beta1(),
                "beta2": _spaces.beta2(0.99),
                "epsilon": _spaces.epsilon(),
            }
        )

    def build(self, named_parameters: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """A `TAGOptimizer` over all parameters, in its first task."""
        configuration = self.configuration
        return TAGOptimizer(
            parameter_groups(named_parameters, weight_decay=0.0),
            {
                "lr": configuration["learning_rate"],
                "betas": (configuration["beta1"], configuration["beta2"]),
                "eps": configuration["epsilon"],
                "base": configuration["base"],
                "b": configuration["b"],
                "task": 0,
            },
        )

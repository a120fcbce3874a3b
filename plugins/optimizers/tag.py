"""TAG: adaptive steps that remember, task by task, what earlier tasks needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from autotune.plugins import Optimizer
from autotune.space import Categorical, Float, Prior, Space

from . import _spaces
from ._foreach import TypedStateOptimizer, parameters_with_gradients
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
                slopes = wide_gradients(parameters)
                for parameter, slope in zip(parameters, slopes, strict=True):
                    direction = _direction(group, slope, self.state[parameter])
                    parameter.add_(direction, alpha=-group["lr"])
        return loss


def _direction(group: dict[str, Any], slope: Tensor, state: dict[str, Any]) -> Tensor:
    task, base, (beta1, beta2) = group["task"], group["base"], group["betas"]
    if f"mean_{task}" not in state:
        state[f"step_{task}"] = step_count()
        state[f"mean_{task}"] = torch.zeros_like(slope)
        state[f"variance_{task}"] = torch.zeros_like(slope)
    state[f"step_{task}"] += 1
    mean, variance = state[f"mean_{task}"], state[f"variance_{task}"]
    mean.lerp_(slope, 1 - beta1)
    if base == "adagrad":
        variance.addcmul_(slope, slope)
    else:
        variance.mul_(beta2).addcmul_(slope, slope, value=1 - beta2)
    total = _remembered(group["b"], task, state)
    if base != "adam":
        return slope / total.sqrt_().add_(group["eps"])
    count = state[f"step_{task}"].item()
    total.div_(1 - beta2**count).sqrt_().add_(group["eps"])
    return mean / (1 - beta1**count) / total


def _remembered(b: float, task: int, state: dict[str, Any]) -> Tensor:
    """Sum of ``a_t v_t`` over the tasks so far in which this tensor was trained."""
    mean, variance = state[f"mean_{task}"], state[f"variance_{task}"]
    earlier = [t for t in range(task) if f"mean_{t}" in state]
    if not earlier:
        return variance.clone()
    total = variance * torch.exp(variance.new_tensor(-b))
    for t in earlier:
        alike = torch.cosine_similarity(mean.flatten(), state[f"mean_{t}"].flatten(), dim=0)
        total.addcmul_(torch.exp(-b * alike), state[f"variance_{t}"])
    return total


class TAG(Optimizer):
    """Shorter steps where the present task disagrees with earlier ones, longer where it agrees.

    Made for a stream of tasks. A `TorchTask` is one task, on which it is RMSProp, Adam or AdaGrad
    without decay, and ``b`` does nothing. In a training loop of your own (`Trainable`), call
    ``begin_task`` of the optimizer that `build` gives wherever a new task begins. Paper and
    author code agree, but the code counts the steps of Adam's bias correction anew in each
    epoch; here they are counted by task.
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

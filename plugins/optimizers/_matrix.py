"""What the optimizers for matrices share: matrices go by a rule of their own, everything else
by AdamW; the state keeps its number types, whatever the parameter's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from ._foreach import TypedStateOptimizer, gradients, parameters_with_gradients


def wide(tensor: Tensor) -> Tensor:
    """The tensor in the type that state is kept and computed in: float32 for half precision."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def wide_gradients(parameters: list[Tensor]) -> list[Tensor]:
    """The gradients, in that type, of parameters that are known to have one."""
    return [wide(gradient) for gradient in gradients(parameters)]


class MatrixOptimizer(TypedStateOptimizer):
    """Steps the groups of `matrix_groups`: those of matrices by the subclass's `step_matrices`,
    the others by AdamW with the group's ``betas`` and ``eps``.

    The state of a parameter in half precision, and what is computed from it, is float32.
    """

    title: ClassVar[str]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; returns what `closure`, if there is one, returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameters in parameters_with_gradients(group, self.title):
                states = [self.state[parameter] for parameter in parameters]
                gradients = wide_gradients(parameters)
                if group["matrices"]:
                    self.step_matrices(group, parameters, gradients, states)
                else:
                    updates = adam_updates(group, gradients, states)
                    decay_(group, parameters)
                    add_(parameters, updates, -group["lr"])
        return loss

    def step_matrices(
        self,
        group: dict[str, Any],
        parameters: list[Tensor],
        gradients: list[Tensor],
        states: list[dict[str, Any]],
    ) -> None:
        """Step the matrices `parameters` of one group, device and type, by their `gradients`."""
        raise NotImplementedError


def adam_updates(
    group: dict[str, Any],
    gradients: list[Tensor],
    states: list[dict[str, Any]],
    part: str = "",
) -> list[Tensor]:
    """Adam's direction ``m_hat / (sqrt(v_hat) + eps)`` for each gradient; advances the states'
    ``step``, ``mean`` and ``variance`` (with `part` before these names), which begin at zero
    with the gradient's shape."""
    step, mean, variance = part + "step", part + "mean", part + "variance"
    for state, gradient in zip(states, gradients, strict=True):
        if mean not in state:
            state.setdefault(step, step_count())
            state[mean] = torch.zeros_like(gradient)
            state[variance] = torch.zeros_like(gradient)
    torch._foreach_add_([state[step] for state in states], 1)
    counts = [state[step].item() for state in states]
    beta1, beta2 = group["betas"]
    means = [state[mean] for state in states]
    variances = [state[variance] for state in states]
    torch._foreach_lerp_(means, gradients, 1 - beta1)
    torch._foreach_mul_(variances, beta2)
    torch._foreach_addcmul_(variances, gradients, gradients, value=1 - beta2)
    divisors = torch._foreach_sqrt(variances)
    torch._foreach_div_(divisors, [(1 - beta2**count) ** 0.5 for count in counts])
    torch._foreach_add_(divisors, group["eps"])
    torch._foreach_mul_(divisors, [1 - beta1**count for count in counts])
    return list(torch._foreach_div(means, divisors))


def step_count() -> Tensor:
    """Zero steps. On the CPU: it is read at each step, which must not wait for a GPU."""
    return torch.zeros((), dtype=torch.float64)


def decay_(group: dict[str, Any], parameters: list[Tensor]) -> None:
    """Decoupled weight decay by the scheduled rate, as AdamW's."""
    if group["weight_decay"] != 0:
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])


def add_(parameters: list[Tensor], updates: list[Tensor], size: float) -> None:
    """``parameter += size * update``; in half precision rounded once, from float32."""
    torch._foreach_add_(parameters, updates, alpha=size)

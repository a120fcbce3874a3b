"""Adan, a plain torch optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class Adan(torch.optim.Optimizer):
    """Adaptive Nesterov momentum (Xie et al., arXiv 2208.06677, Algorithm 1).

    With ``d = g - g_previous``, in the author code's form (each beta is one minus the paper's,
    averages are debiased):

        m = beta1 m + (1 - beta1) g
        v = beta2 v + (1 - beta2) d
        n = beta3 n + (1 - beta3) (g + beta2 d)^2
        p = (p - lr (m + beta2 v) / (sqrt(n) + epsilon)) / (1 + lr weight_decay)

    Args:
        parameters: tensors, or groups of them.
        lr: the learning rate.
        betas: beta1, beta2, beta3.
        epsilon: added to the root of `n`.
        weight_decay: decoupled, applied as a proximal step.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float, float] = (0.98, 0.92, 0.99),
        epsilon: float = 1e-8,
        weight_decay: float = 0.02,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "epsilon": epsilon, "weight_decay": weight_decay}
        super().__init__(parameters, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step on every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group)
        return loss

    def _move(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0)
            for average in ("m", "v", "n"):
                state[average] = torch.zeros_like(parameter)
            state["previous"] = gradient.clone()
        beta1, beta2, beta3 = group["betas"]
        state["step"] += 1
        step = state["step"].item()
        change = gradient - state["previous"]
        state["m"].lerp_(gradient, 1 - beta1)
        state["v"].lerp_(change, 1 - beta2)
        state["n"].lerp_((gradient + beta2 * change).square(), 1 - beta3)
        state["previous"].copy_(gradient)

        momentum = state["m"] / (1 - beta1**step) + beta2 * state["v"] / (1 - beta2**step)
        scale = (state["n"] / (1 - beta3**step)).sqrt() + group["epsilon"]
        parameter.addcdiv_(momentum, scale, value=-group["lr"])
        parameter.div_(1 + group["lr"] * group["weight_decay"])

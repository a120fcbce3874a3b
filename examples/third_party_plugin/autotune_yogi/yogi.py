"""Yogi, a plain torch optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class Yogi(torch.optim.Optimizer):
    """Adam whose second moment moves additively (Zaheer et al., NeurIPS 2018, Algorithm 2).

        m = beta1 m + (1 - beta1) g
        v = v - (1 - beta2) sign(v - g^2) g^2
        p = (1 - lr weight_decay) p - lr m_hat / (sqrt(v_hat) + epsilon)

    where the hats correct the averages' start at zero, as in Adam; the paper's algorithm has no
    such correction and no decay.

    Args:
        parameters: tensors, or groups of them.
        lr: the learning rate.
        betas: beta1, beta2.
        epsilon: added to the root of `v`; the paper finds 1e-3 best.
        weight_decay: decoupled.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-2,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-3,
        weight_decay: float = 0.0,
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
            state["m"] = torch.zeros_like(parameter)
            state["v"] = torch.zeros_like(parameter)
        beta1, beta2 = group["betas"]
        state["step"] += 1
        step = state["step"].item()
        square = gradient.square()
        state["m"].lerp_(gradient, 1 - beta1)
        state["v"].addcmul_((state["v"] - square).sign(), square, value=beta2 - 1)

        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        scale = (state["v"] / (1 - beta2**step)).sqrt() + group["epsilon"]
        parameter.addcdiv_(state["m"], scale, value=-group["lr"] / (1 - beta1**step))

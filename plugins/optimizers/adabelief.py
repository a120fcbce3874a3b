"""AdaBelief: Adam that divides by how far the gradient strays from its own average."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from autotune.plugins import Optimizer
from autotune.space import Float, Ordinal, Prior, Space

from ._foreach import gradients, parameters_with_gradients
from ._groups import parameter_groups


class AdaBeliefOptimizer(torch.optim.Optimizer):
    """The rule of the paper's algorithm 2, list-wise over the parameters of a group.

    ``m = beta1 * m + (1 - beta1) * g``; ``s = beta2 * s + (1 - beta2) * (g - m)^2 + epsilon``;
    ``w -= lr * m_hat / (sqrt(s_hat) + epsilon)`` with bias-corrected ``m_hat`` and ``s_hat``.
    ``epsilon`` stays in ``s`` from step to step.

    Args:
        parameters: parameters or groups of them.
        lr: learning rate.
        betas: factors of the two averages.
        eps: see above; added twice.
        weight_decay: decoupled, multiplied by the scheduled rate.
    """

    def __init__(
        self,
        parameters: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-16,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(parameters, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; returns what `closure`, if there is one, returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameters in parameters_with_gradients(group, "AdaBelief"):
                self._step_list(group, parameters)
        return loss

    def _step_list(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        beta1, beta2 = group["betas"]
        grads = gradients(parameters)
        states = [self._state(parameter) for parameter in parameters]
        means = [state["mean"] for state in states]
        variances = [state["variance"] for state in states]
        steps = [state["step"] for state in states]

        torch._foreach_add_(steps, 1)
        counts = [step.item() for step in steps]
        corrections1 = [1 - beta1**count for count in counts]
        corrections2 = [1 - beta2**count for count in counts]

        if group["weight_decay"] != 0:
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_mul_(means, beta1)
        torch._foreach_add_(means, grads, alpha=1 - beta1)
        deviations = torch._foreach_sub(grads, means)
        torch._foreach_mul_(variances, beta2)
        torch._foreach_addcmul_(variances, deviations, deviations, value=1 - beta2)
        torch._foreach_add_(variances, group["eps"])
        divisors = torch._foreach_sqrt(variances)
        torch._foreach_div_(divisors, [correction**0.5 for correction in corrections2])
        torch._foreach_add_(divisors, group["eps"])
        sizes = [-group["lr"] / correction for correction in corrections1]
        torch._foreach_addcdiv_(parameters, means, divisors, sizes)

    def _state(self, parameter: Tensor) -> dict[str, Any]:
        state = self.state[parameter]
        if not state:
            # On the CPU: read back each step, and a count must not cost a synchronisation.
            state["step"] = torch.zeros((), dtype=torch.float64)
            state["mean"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            state["variance"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return state


class AdaBelief(Optimizer):
    """Large steps where the gradient is as expected, small ones where it surprises.

    Follows the paper's algorithm 2 with decoupled decay. The author package (0.2) adds
    RAdam's rectification by default; the paper's results are without it, and so is this. The
    paper's ``epsilon`` is 1e-8 on images, the package's default 1e-16; since it is added to a
    squared quantity each step, it matters more than Adam's and is worth tuning.
    """

    name: ClassVar[str] = "adabelief"
    summary: ClassVar[str] = "Adam scaled by the gradient's deviation from its average."
    reference: ClassVar[str] = (
        "Zhuang et al.: AdaBelief Optimizer: Adapting Stepsizes by the Belief in Observed "
        "Gradients, NeurIPS 2020, arXiv 2010.07468; "
        "code: github.com/juntang-zhuang/Adabelief-Optimizer"
    )

    @classmethod
    def space(cls) -> Space:
        """Learning rate, both averages' factors, epsilon, weight decay."""
        return Space(
            {
                "learning_rate": Float(
                    1e-5, 1e-1, log=True, default=1e-3, prior=Prior(1e-3, "medium")
                ),
                "beta1": Ordinal((0.8, 0.9, 0.95), default=0.9, prior=Prior(0.9, "high")),
                "beta2": Ordinal(
                    (0.95, 0.98, 0.99, 0.999), default=0.999, prior=Prior(0.999, "medium")
                ),
                "epsilon": Float(1e-16, 1e-8, log=True, default=1e-16, prior=Prior(1e-12, "low")),
                "weight_decay": Float(
                    1e-5, 0.5, log=True, default=1e-2, prior=Prior(1e-2, "medium")
                ),
            }
        )

    def build(self, named_parameters: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """An `AdaBeliefOptimizer` over the decayed and the other parameters."""
        return AdaBeliefOptimizer(
            parameter_groups(named_parameters, self.configuration["weight_decay"]),
            lr=self.configuration["learning_rate"],
            betas=(self.configuration["beta1"], self.configuration["beta2"]),
            eps=self.configuration["epsilon"],
        )

"""What optimizers that evaluate the loss again, or differentiate it twice, share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ._foreach import TypedStateOptimizer
from ._matrix import step_count, wide


def evaluate(closure: Callable[[], Any] | None, optimizer_name: str) -> Any:
    """Call the closure with gradients enabled.

    Raises:
        RuntimeError: there is no closure.
    """
    if closure is None:
        raise RuntimeError(f"{optimizer_name} needs step(closure); got no closure")
    with torch.enable_grad():
        return closure()


def hessian_times(
    slopes: Sequence[Tensor], parameters: Sequence[Tensor], vectors: Sequence[Tensor]
) -> list[Tensor]:
    """Product of the loss's second derivative with `vectors`, each shaped as its parameter.

    Args:
        slopes: gradients that carry their graph (``backward(create_graph=True)``).
        parameters: what they are gradients of.
        vectors: one a parameter.
    """
    curved = [(s, v) for s, v in zip(slopes, vectors, strict=True) if s.requires_grad]
    if not curved:  # the gradient does not depend on the parameters at all
        return [torch.zeros_like(parameter) for parameter in parameters]
    products = torch.autograd.grad(
        [slope for slope, _ in curved],
        parameters,
        grad_outputs=[vector for _, vector in curved],
        retain_graph=True,
        allow_unused=True,
    )
    return [
        torch.zeros_like(parameter) if product is None else product.detach()
        for product, parameter in zip(products, parameters, strict=True)
    ]


def signs_like(parameters: Sequence[Tensor]) -> list[Tensor]:
    """Random signs of the parameters' shapes, from torch's global generators."""
    return [torch.empty_like(p).bernoulli_(0.5).mul_(2).sub_(1) for p in parameters]


class Draws:
    """The state of torch's global generators at one moment, to draw the same again: two
    gradients are to be compared on one batch under one dropout mask."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        devices = {parameter.device for parameter in parameters}
        self._devices = [device for device in devices if device.type == "cuda"]
        self._states = self._now()

    @contextmanager
    def again(self) -> Iterator[None]:
        """Inside, the generators stand where they stood then; afterwards where they did."""
        present = self._now()
        self._set(self._states)
        try:
            yield
        finally:
            self._set(present)

    def _now(self) -> list[Tensor]:
        return [torch.get_rng_state(), *(torch.cuda.get_rng_state(d) for d in self._devices)]

    def _set(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        for device, state in zip(self._devices, states[1:], strict=True):
            torch.cuda.set_rng_state(state, device)


class HutchinsonOptimizer(TypedStateOptimizer):
    """Keeps a running mean of estimates of the Hessian's diagonal, ``z * (H z)`` with random signs
    z; every group has the hyperparameters ``every`` (steps between estimates) and ``beta2``."""

    def diagonals(
        self, parameters: list[Tensor], graphs: list[Tensor], floor: float
    ) -> list[Tensor]:
        """``max(|D|, floor)``, after another estimate where one is due."""
        settings = self.param_groups[0]
        states = [self.state[parameter] for parameter in parameters]
        count = max((int(state["step"]) for state in states if state), default=0)
        if count % settings["every"] == 0 or not all(states):
            signs = signs_like(parameters)
            products = hessian_times(graphs, parameters, signs)
            for state, sign, product in zip(states, signs, products, strict=True):
                estimate = wide(product) * wide(sign)
                if state:
                    state["diagonal"].lerp_(estimate, 1 - settings["beta2"])
                else:
                    state["step"] = step_count()
                    state["diagonal"] = estimate
        torch._foreach_add_([state["step"] for state in states], 1)
        sizes = torch._foreach_abs([state["diagonal"] for state in states])
        return list(torch._foreach_clamp_min(sizes, floor))

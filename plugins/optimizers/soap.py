"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from autotune.plugins import Optimizer, StepCost
from autotune.space import Ordinal, Prior, Space

from . import _spaces
from ._cost import Shapes, qr
from ._foreach import TypedStateOptimizer, parameters_with_gradients
from ._groups import parameter_groups
from ._matrix import add_, decay_, step_count, wide_gradients

LARGEST_SIDE = 10_000
"""Longer sides of a tensor keep their own basis, as in the author code."""


class SOAPOptimizer(TypedStateOptimizer):
    """The paper's algorithm 3, for tensors of any number of dimensions.

    For each side ``k`` of length ``n_k``: ``L_k = beta L_k + (1 - beta) (G's product with itself
    over all other sides)``, n_k x n_k, and a basis ``Q_k`` of its eigenvectors. ``G'`` and
    ``M'`` are the gradient and its running mean turned into those bases;
    ``V = beta2 V + (1 - beta2) G'^2``; the step is ``M' / (sqrt(V) + eps)``, bias-corrected and
    turned back. Every ``frequency`` steps the bases take one step of power iteration,
    ``Q_k = QR(L_k Q_k)``, columns in descending order of their eigenvalues. The first gradient
    only founds the bases.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; returns what `closure`, if there is one, returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameters in parameters_with_gradients(group, "SOAP"):
                for parameter, gradient in zip(parameters, wide_gradients(parameters), strict=True):
                    state = self.state[parameter]
                    if state:
                        add_([parameter], [_update(group, gradient, state)], -group["lr"])
                        decay_(group, [parameter])
                    _learn(group, gradient, state)
        return loss


def _update(group: dict[str, Any], gradient: Tensor, state: dict[str, Any]) -> Tensor:
    """Adam's direction in the turned coordinates, turned back."""
    beta1, beta2 = group["betas"]
    state["step"] += 1
    count = state["step"].item()
    turned = _turned(gradient, state, back=False)
    state["mean"].lerp_(turned, 1 - beta1)
    state["variance"].mul_(beta2).addcmul_(turned, turned, value=1 - beta2)
    size = (1 - beta2**count) ** 0.5 / (1 - beta1**count)
    update = state["mean"] / state["variance"].sqrt().add_(group["eps"])
    return _turned(update, state, back=True).mul_(size)


def _learn(group: dict[str, Any], gradient: Tensor, state: dict[str, Any]) -> None:
    """Take the gradient into the preconditioners, after it has been used."""
    beta = group["betas"][1]
    founding = not state
    if founding:
        state["step"] = step_count()
        state["mean"] = torch.zeros_like(gradient)
        state["variance"] = torch.zeros_like(gradient)
    for side in _turned_sides(gradient.shape):
        rows = gradient.movedim(side, 0).flatten(1)
        product = rows @ rows.mT
        if founding:
            state[f"preconditioner_{side}"] = product.mul_(1 - beta)
        else:
            state[f"preconditioner_{side}"].lerp_(product, 1 - beta)
    if founding:
        _found_bases(state)
    elif state["step"].item() % group["frequency"] == 0:
        _turn_bases(state)


def _turned_sides(shape: torch.Size) -> list[int]:
    """The sides that have a preconditioner: none of a vector, else all but the very long."""
    return [k for k, length in enumerate(shape) if len(shape) > 1 and length <= LARGEST_SIDE]


def _turned(tensor: Tensor, state: dict[str, Any], back: bool) -> Tensor:
    """The tensor in the coordinates of the bases, or back from them."""
    for side in _turned_sides(tensor.shape):
        basis = state[f"basis_{side}"]
        product = torch.tensordot(tensor, basis, dims=([side], [1 if back else 0]))
        tensor = product.movedim(-1, side)
    return tensor


def _found_bases(state: dict[str, Any]) -> None:
    for side in _turned_sides(state["mean"].shape):
        _, vectors = torch.linalg.eigh(state[f"preconditioner_{side}"])
        state[f"basis_{side}"] = vectors.flip(1)


def _turn_bases(state: dict[str, Any]) -> None:
    """One step of power iteration; the mean is carried into the new coordinates, the variance
    merely sorted like them."""
    mean = _turned(state["mean"], state, back=True)
    for side in _turned_sides(mean.shape):
        basis = state[f"basis_{side}"]
        image = state[f"preconditioner_{side}"] @ basis
        order = (basis * image).sum(dim=0).argsort(descending=True, stable=True)
        state["variance"] = state["variance"].index_select(side, order)
        state[f"basis_{side}"], _ = torch.linalg.qr(image[:, order])
    state["mean"] = _turned(mean, state, back=False).contiguous()


class SOAP(Optimizer):
    """Adam that works in slowly turning coordinates, in which its diagonal is the right one.

    Follows the author code, which adds to the paper's algorithm 3 that a first gradient only
    founds the bases, that the columns are sorted before the decomposition, and that the mean is
    kept in the turned coordinates; and as in the code epsilon is added before the bias is
    corrected, and decay follows the step. Each side of a matrix or convolution kernel has its basis
    unless it is longer than 10000; vectors take Adam. The library pytorch_optimizer agrees but
    for decompositions in float32.
    """

    name: ClassVar[str] = "soap"
    summary: ClassVar[str] = "Adam in the eigenbasis of Shampoo's preconditioner."
    reference: ClassVar[str] = (
        "Vyas et al.: SOAP: Improving and Stabilizing Shampoo using Adam, ICLR 2025, "
        "arXiv 2409.11321; code: github.com/nikhilvyas/SOAP"
    )
    carries_over: ClassVar[bool] = False

    @classmethod
    def space(cls) -> Space:
        """Learning rate, both averages' factors, steps between turns of the bases, epsilon,
        weight decay."""
        return Space(
            {
                "learning_rate": _spaces.learning_rate(3e-3),
                "beta1": _spaces.beta1(0.95),
                "beta2": _spaces.beta2(0.95),
                "precondition_frequency": Ordinal(
                    (1, 5, 10, 50, 100), default=10, prior=Prior(10, "high")
                ),
                "epsilon": _spaces.epsilon(),
                "weight_decay": _spaces.weight_decay(),
            }
        )

    def step_cost(self, parameter_shapes: Shapes) -> StepCost:
        """A side of n, of a tensor of N numbers: two turns and the product with itself at 2 N n
        each; every ``precondition_frequency`` steps the basis' product and decomposition at 6
        n^3, and the mean there and back."""
        flops = 0.0
        for shape in parameter_shapes.values():
            for length in (shape[side] for side in _turned_sides(torch.Size(shape))):
                product = 2.0 * torch.Size(shape).numel() * length
                turn = 2.0 * length**3 + qr(length, length) + 2 * product
                flops += 3 * product + turn / self.configuration["precondition_frequency"]
        return StepCost(flops=flops)

    def build(self, named_parameters: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """A `SOAPOptimizer` over the decayed and the other parameters."""
        configuration = self.configuration
        return SOAPOptimizer(
            parameter_groups(named_parameters, configuration["weight_decay"]),
            {
                "lr": configuration["learning_rate"],
                "betas": (configuration["beta1"], configuration["beta2"]),
                "frequency": configuration["precondition_frequency"],
                "eps": configuration["epsilon"],
            },
        )

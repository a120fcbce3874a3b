"""Small problems in float64 that plugin and reference both go through, step by step.

A problem is a start and a function of (step, weights); everything else follows from them by
differentiation, so that nothing is stated twice. Steps count from 1. Halfway the schedule halves
the learning rate: a method that keeps a rate of its own, or folds it into its state, shows it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

Weights = dict[str, Tensor]

SHAPES: Mapping[str, tuple[int, ...]] = {
    "wide.weight": (6, 14),
    "tall.weight": (13, 5),
    "square.weight": (7, 7),
    "convolution.weight": (4, 3, 3, 3),
    "wide.bias": (6,),
    "norm.weight": (9,),
}
"""Nothing but the shape tells what a parameter is: no name is like an embedding's or a head's."""


@dataclass(frozen=True)
class Problem:
    """An objective to go through.

    Args:
        name: names it in tables.
        start: the weights before the first step, by name.
        objective: a scalar of (step, weights), twice differentiable.
        steps: how many steps to take.
        losses: whether the objective is a loss: bounded below by 0.
    """

    name: str
    start: Mapping[str, Tensor]
    objective: Callable[[int, Mapping[str, Tensor]], Tensor]
    steps: int = 50
    losses: bool = False

    def weights(self) -> Weights:
        """A fresh copy of the start."""
        return {name: weight.clone() for name, weight in self.start.items()}

    def factor(self, step: int) -> float:
        """What the schedule multiplies the learning rate by in this step."""
        return 1.0 if step <= self.steps // 2 else 0.5

    def loss(self, step: int, weights: Mapping[str, Tensor]) -> float:
        """The objective's value."""
        with torch.no_grad():
            return float(self.objective(step, weights))

    def gradients(self, step: int, weights: Mapping[str, Tensor]) -> Weights:
        """The objective's gradient at `weights`."""
        leaves = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
        found = torch.autograd.grad(self.objective(step, leaves), list(leaves.values()))
        return dict(zip(leaves, found, strict=True))

    def hessian_product(
        self, step: int, weights: Mapping[str, Tensor], vectors: Mapping[str, Tensor]
    ) -> Weights:
        """The objective's Hessian at `weights` times `vectors`."""
        leaves = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
        inputs = list(leaves.values())
        first = torch.autograd.grad(self.objective(step, leaves), inputs, create_graph=True)
        found = torch.autograd.grad(first, inputs, [vectors[name] for name in leaves])
        return dict(zip(leaves, found, strict=True))


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _start(seed: int) -> Weights:
    generator = _generator(seed)
    return {name: _normal(shape, generator) for name, shape in SHAPES.items()}


@cache
def _fixed(step: int) -> Weights:
    """A gradient that changes slowly in its leading directions and has noise beside them, of a
    size that differs between tensors and rises and falls between steps."""
    steady, noise = _generator(7), _generator(1000 + step)
    size = 1.0 + 0.7 * torch.sin(torch.tensor(0.9 * step)).item()
    found = {}
    for scale, (name, shape) in zip((1.0, 0.1, 3.0, 0.5, 1.0, 0.2), SHAPES.items(), strict=True):
        rows, rest = shape[0], shape[1:]
        direction = _normal((rows, *rest), steady)
        drift = _normal((rows, *rest), steady)
        mixed = direction + 0.05 * step * drift + 0.5 * _normal(shape, noise)
        found[name] = scale * size * mixed
    return found


def fixed_gradients() -> Problem:
    """The same sequence of gradients whatever the weights."""

    def objective(step: int, weights: Mapping[str, Tensor]) -> Tensor:
        gradients = _fixed(step)
        return torch.stack([(gradients[name] * w).sum() for name, w in weights.items()]).sum()

    return Problem("fixed gradients", _start(1), objective)


def full_rank_gradients() -> Problem:
    """Fixed gradients of those parameters whose sides all have invertible statistics: the
    eigenvectors of a singular one are anybody's choice."""
    whole = fixed_gradients()
    kept = ("square.weight", "convolution.weight", "wide.bias", "norm.weight")
    return replace(
        whole, name="full-rank gradients", start={name: whole.start[name] for name in kept}
    )


def scale_invariant() -> Problem:
    """Gradients orthogonal to each row of the weights, as behind a normalisation."""

    def objective(step: int, weights: Mapping[str, Tensor]) -> Tensor:
        gradients = _fixed(step)
        parts = []
        for name, weight in weights.items():
            rows = weight.reshape(weight.shape[0], -1) if weight.ndim > 1 else weight.reshape(1, -1)
            unit = rows / rows.norm(dim=1, keepdim=True)
            parts.append((gradients[name].reshape(rows.shape) * unit).sum())
        return torch.stack(parts).sum()

    return Problem("scale-invariant", _start(2), objective)


def logistic() -> Problem:
    """A two-layer classifier on mini-batches that change from step to step."""
    generator = _generator(3)
    inputs = _normal((64, 8), generator)
    targets = (inputs @ _normal((8, 4), generator)).argmax(1)
    start = {
        "first.weight": 0.5 * _normal((6, 8), generator),
        "first.bias": 0.1 * _normal((6,), generator),
        "second.weight": 0.5 * _normal((4, 6), generator),
        "second.bias": 0.1 * _normal((4,), generator),
    }

    def objective(step: int, weights: Mapping[str, Tensor]) -> Tensor:
        rows = torch.arange(16 * step, 16 * step + 16) % 64
        hidden = functional.linear(inputs[rows], weights["first.weight"], weights["first.bias"])
        outputs = functional.linear(hidden.tanh(), weights["second.weight"], weights["second.bias"])
        return functional.cross_entropy(outputs, targets[rows])

    return Problem("logistic", start, objective, losses=True)


def separable() -> Problem:
    """A sum of convex functions of one weight each. Its Hessian is diagonal, so that Hutchinson's
    estimate is exact whatever signs are drawn: plugin and reference need not share a generator."""
    centre, curvature = _start(4), _start(5)

    def objective(step: int, weights: Mapping[str, Tensor]) -> Tensor:
        shift = _fixed(step)
        parts = []
        for name, weight in weights.items():
            distance = weight - centre[name] - 0.1 * shift[name]
            steepness = 0.05 + curvature[name].square()
            parts.append((steepness * torch.log(torch.cosh(distance))).sum())
        return torch.stack(parts).sum()

    return Problem("separable", _start(6), objective, losses=True)


def convex_quadratic() -> Problem:
    """A quadratic whose Hessian couples all weights, the same in every step."""
    start = _start(8)
    count = sum(weight.numel() for weight in start.values())
    generator = _generator(9)
    basis = torch.linalg.qr(_normal((count, count), generator))[0]
    spectrum = torch.logspace(-2, 1, count, dtype=torch.float64)
    hessian = basis @ torch.diag(spectrum) @ basis.T
    minimum = _normal((count,), generator)

    def objective(step: int, weights: Mapping[str, Tensor]) -> Tensor:
        distance = torch.cat([weight.reshape(-1) for weight in weights.values()]) - minimum
        return 0.5 * distance @ hessian @ distance

    return Problem("quadratic", start, objective, losses=True)


PROBLEMS: Mapping[str, Callable[[], Problem]] = {
    "fixed gradients": fixed_gradients,
    "full-rank gradients": full_rank_gradients,
    "scale-invariant": scale_invariant,
    "logistic": logistic,
    "separable": separable,
    "quadratic": convex_quadratic,
}

"""Adaptive Braking, from eqs. 5-7 of its paper."""

from collections.abc import Iterator

import torch
from torch import Tensor

from references.problems import Problem, Weights
from references.record import Hyperparameters, Reference, decayed, zeros


def alignment(g: Tensor, v: Tensor) -> Tensor:
    """Cosine of the angle between two tensors, 0 where one of them is zero."""
    product = g.norm() * v.norm()
    return (g * v).sum() / product if product > 0 else torch.zeros((), dtype=g.dtype)


def trajectory(problem: Problem, h: Hyperparameters) -> Iterator[Weights]:
    """The gradient is scaled by 1 - rho cos(g, v) before it enters the velocity."""
    weights = problem.weights()
    velocity = zeros(weights)
    for t in range(1, problem.steps + 1):
        rate = h["learning_rate"] * problem.factor(t)
        gradients = problem.gradients(t, weights)
        for name, w in weights.items():
            g = gradients[name] + (h["weight_decay"] * w if decayed(w) else 0.0)
            v = velocity[name]
            if h["granularity"] == "filter" and g.ndim > 1:
                brakes = [1 - h["rho"] * alignment(a, b) for a, b in zip(g, v, strict=True)]
                scaled = torch.stack([a * brake for a, brake in zip(g, brakes, strict=True)])
            else:
                scaled = (1 - h["rho"] * alignment(g, v)) * g
            velocity[name] = h["momentum"] * v + scaled
            weights[name] = w - rate * velocity[name]
        yield dict(weights)


REFERENCE = Reference(
    source="Venigalla et al. 2020 (arXiv 2007.01397), section 3",
    trajectory=trajectory,
    differences="The authors published no code. What is open is a choice here: the angle is that "
    "of the decayed gradient with the velocity before the step.",
)

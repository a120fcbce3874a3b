"""Krylov preconditioning, from section 5 of its paper."""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from references.problems import Problem, Weights
from references.record import Hyperparameters, Reference


def flat(parts: Weights) -> Tensor:
    return torch.cat([part.reshape(-1) for part in parts.values()])


def shaped(vector: Tensor, like: Mapping[str, Tensor]) -> Weights:
    parts = vector.split([tensor.numel() for tensor in like.values()])
    return {name: part.reshape(like[name].shape) for name, part in zip(like, parts, strict=True)}


def direction(
    curvature: Callable[[Tensor], Tensor], g: Tensor, degree: int, damping: float
) -> Tensor:
    """The vector in the Krylov space that minimises the model, by an orthonormal basis."""
    basis = [g / g.norm()]
    for _ in range(degree):
        vector = curvature(basis[-1])
        for _ in range(2):  # twice, for the digits
            for other in basis:
                vector = vector - (vector @ other) * other
        basis.append(vector / vector.norm())
    q = torch.stack(basis, dim=1)
    bent = torch.stack([curvature(column) for column in basis], dim=1) + damping * q
    return q @ torch.linalg.solve(q.T @ bent, q.T @ g)


def trajectory(problem: Problem, h: Hyperparameters) -> Iterator[Weights]:
    """The step in span{g, Bg, ..., B^tau g} that minimises the quadratic model with curvature
    B + damping I, B the Hessian (arXiv 2301.13194, section 5)."""
    weights = problem.weights()
    for t in range(1, problem.steps + 1):

        def curvature(vector: Tensor, t: int = t, at: Weights = weights) -> Tensor:
            return flat(problem.hessian_product(t, at, shaped(vector, at)))

        g = flat(problem.gradients(t, weights))
        steps = shaped(direction(curvature, g, h["degree"], h["damping"]), weights)
        rate = h["learning_rate"] * problem.factor(t)
        weights = {name: w - rate * steps[name] for name, w in weights.items()}
        yield dict(weights)


REFERENCE = Reference(
    source="Doikov & Rodomanov 2023 (arXiv 2301.13194), section 5 (Krylov subspaces)",
    trajectory=trajectory,
    problems=("quadratic", "separable"),
    differences="The paper is about convex functions, as are the problems here; the plugin takes "
    "negative curvature by its absolute value. The paper's smoothness constant is 1 and damping "
    "is added to the curvature. learning_rate multiplies the step: 1 is the paper's.",
    tolerance=1e-4,
    reason="minimising in a Krylov space amplifies rounding from step to step, as steepest descent "
    "does: the two agree to 1e-12 for twenty steps of the quadratic, and part after that",
)

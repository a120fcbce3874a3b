"""Krylov preconditioning, from section 5 of its paper."""

from collections.abc import Iterator

import torch

from references.problems import Problem, Weights
from references.record import Hyperparameters, Reference


def trajectory(problem: Problem, h: Hyperparameters) -> Iterator[Weights]:
    """The step in span{g, Bg, ..., B^tau g} that minimises the quadratic model with curvature
    B + damping I, B the Hessian (arXiv 2301.13194, section 5)."""
    weights = problem.weights()
    for t in range(1, problem.steps + 1):
        gradients = problem.gradients(t, weights)
        sizes = [g.numel() for g in gradients.values()]

        def flat(parts: Weights) -> torch.Tensor:
            return torch.cat([part.reshape(-1) for part in parts.values()])

        def shaped(vector: torch.Tensor) -> Weights:
            parts = zip(gradients.items(), vector.split(sizes), strict=True)
            return {name: part.reshape(g.shape) for (name, g), part in parts}

        def curvature(vector: torch.Tensor) -> torch.Tensor:
            return flat(problem.hessian_product(t, weights, shaped(vector)))

        g = flat(gradients)
        basis = [g / g.norm()]
        for _ in range(h["degree"]):
            vector = curvature(basis[-1])
            for _ in range(2):  # twice, for the digits
                for other in basis:
                    vector = vector - (vector @ other) * other
            basis.append(vector / vector.norm())
        q = torch.stack(basis, dim=1)
        bent = torch.stack([curvature(column) for column in basis], dim=1) + h["damping"] * q
        direction = q @ torch.linalg.solve(q.T @ bent, q.T @ g)
        rate = h["learning_rate"] * problem.factor(t)
        weights = {
            n: w - rate * d
            for (n, w), d in zip(weights.items(), shaped(direction).values(), strict=True)
        }
        yield dict(weights)


REFERENCE = Reference(
    source="Doikov & Rodomanov 2023 (arXiv 2301.13194), section 5 (Krylov subspaces)",
    trajectory=trajectory,
    problems=("quadratic", "separable"),
)

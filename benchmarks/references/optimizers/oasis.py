"""OASIS, from its Algorithm 1."""

from collections.abc import Iterator

import torch

from references.problems import Problem, Weights
from references.record import Hyperparameters, Reference


def trajectory(problem: Problem, h: Hyperparameters) -> Iterator[Weights]:
    """Algorithm 1 of arXiv 2109.05198, with gradients of the same batch in the local Lipschitz
    estimate (its eq. 9). The Hessian is diagonal here, so that any signs z give its diagonal."""
    weights = problem.weights()
    diagonal: Weights = {}
    before: Weights = {}
    eta, theta = h["initial_step_size"], float("inf")
    for t in range(1, problem.steps + 1):
        gradients = problem.gradients(t, weights)
        if (t - 1) % h["hessian_update_every"] == 0:
            ones = {name: torch.ones_like(w) for name, w in weights.items()}
            curvature = problem.hessian_product(t, weights, ones)
            for name, c in curvature.items():
                old = diagonal.get(name)
                diagonal[name] = c if old is None else h["beta2"] * old + (1 - h["beta2"]) * c
        scale = {name: d.abs().clamp(min=h["alpha"]) for name, d in diagonal.items()}
        if not h["adaptive"]:
            eta = 1.0
        elif before:
            earlier = problem.gradients(t, before)
            moved = sum(float((scale[n] * (w - before[n]) ** 2).sum()) for n, w in weights.items())
            turned = sum(
                float(((gradients[n] - earlier[n]) ** 2 / scale[n]).sum()) for n in weights
            )
            longest = (1 + theta) ** 0.5 * eta
            new = min(longest, 0.5 * (moved / turned) ** 0.5)
            theta, eta = new / eta, new
        before = dict(weights)
        factor = h["learning_rate"] * problem.factor(t)
        weights = {n: w - factor * eta * gradients[n] / scale[n] for n, w in weights.items()}
        yield dict(weights)


REFERENCE = Reference(
    source="Jahani et al. 2022 (arXiv 2109.05198), Algorithm 1, eqs. 4-5 and 9",
    trajectory=trajectory,
    problems=("separable",),
    differences="No author code is known to us. The paper's first diagonal is the mean of several "
    "estimates, here it is one. learning_rate multiplies the paper's adaptive step: 1 is the "
    "paper's.",
)

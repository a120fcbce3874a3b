"""AdaBound and AMSBound, from Algorithm 2 and the authors' code."""

from collections.abc import Iterator

import torch

from references.problems import Problem, Weights
from references.record import Hyperparameters, Reference, decayed, zeros


def trajectory(problem: Problem, h: Hyperparameters) -> Iterator[Weights]:
    """Algorithm 2 of arXiv 1902.09843, with Adam's bias correction; bounds of section 4."""
    weights, b1, b2, gamma = problem.weights(), h["beta1"], h["beta2"], h["gamma"]
    m, v, largest = zeros(weights), zeros(weights), zeros(weights)
    for t in range(1, problem.steps + 1):
        rate = h["learning_rate"] * problem.factor(t)
        final = h["final_learning_rate"] * problem.factor(t)
        low, high = final * (1 - 1 / (gamma * t + 1)), final * (1 + 1 / (gamma * t))
        gradients = problem.gradients(t, weights)
        for name, w in weights.items():
            g = gradients[name] + (h["weight_decay"] * w if decayed(w) else 0.0)
            m[name] = b1 * m[name] + (1 - b1) * g
            v[name] = b2 * v[name] + (1 - b2) * g**2
            largest[name] = torch.maximum(largest[name], v[name])
            root = (largest if h["amsbound"] else v)[name].sqrt() + h["epsilon"]
            corrected = rate * (1 - b2**t) ** 0.5 / (1 - b1**t)
            weights[name] = w - (corrected / root).clamp(low, high) * m[name]
        yield dict(weights)


REFERENCE = Reference(
    source="Luo et al. 2019 (arXiv 1902.09843), Algorithm 2 and 3, section 4",
    trajectory=trajectory,
    differences="The paper has no bias correction and no epsilon, and divides the rate by "
    "sqrt(t); the code (followed) has both, and does not divide. The paper's gamma is 1 - beta2; "
    "the code's (followed) is free. Decay is added to the gradient, as in the code.",
)

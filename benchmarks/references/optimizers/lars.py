"""LARS, from its Algorithm 1."""

from collections.abc import Iterator

from references.problems import Problem, Weights
from references.record import Hyperparameters, Reference, decayed, zeros


def trajectory(problem: Problem, h: Hyperparameters) -> Iterator[Weights]:
    """Algorithm 1 of arXiv 1708.03888; norms and biases are not scaled."""
    weights, beta = problem.weights(), h["weight_decay"]
    velocity = zeros(weights)
    for t in range(1, problem.steps + 1):
        rate = h["learning_rate"] * problem.factor(t)
        gradients = problem.gradients(t, weights)
        for name, w in weights.items():
            g, local = gradients[name], 1.0
            if decayed(w):
                local = h["trust_coefficient"] * w.norm() / (g.norm() + beta * w.norm())
                g = g + beta * w
            velocity[name] = h["momentum"] * velocity[name] + local * g
            weights[name] = w - rate * velocity[name]
        yield dict(weights)


REFERENCE = Reference(
    source="You, Gitman, Ginsburg 2017 (arXiv 1708.03888), Algorithm 1 and eq. 6",
    trajectory=trajectory,
    differences="The paper folds the global rate into the velocity, the libraries (followed) do "
    "not: the two differ where the rate changes. The paper scales and decays every layer, the "
    "libraries (followed) leave norms and biases out.",
)

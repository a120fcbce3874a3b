"""Lion, from its Algorithm 2."""

from collections.abc import Iterator

from references.problems import Problem, Weights
from references.record import Hyperparameters, Reference, decayed, zeros


def trajectory(problem: Problem, h: Hyperparameters) -> Iterator[Weights]:
    """Algorithm 2 of arXiv 2302.06675."""
    weights, b1, b2 = problem.weights(), h["beta1"], h["beta2"]
    momentum = zeros(weights)
    for t in range(1, problem.steps + 1):
        rate = h["learning_rate"] * problem.factor(t)
        gradients = problem.gradients(t, weights)
        for name, w in weights.items():
            g, m = gradients[name], momentum[name]
            decay = h["weight_decay"] if decayed(w) else 0.0
            weights[name] = w - rate * ((b1 * m + (1 - b1) * g).sign() + decay * w)
            momentum[name] = b2 * m + (1 - b2) * g
        yield dict(weights)


REFERENCE = Reference(
    source="Chen et al. 2023 (arXiv 2302.06675), Algorithm 2",
    trajectory=trajectory,
    differences="They agree.",
)

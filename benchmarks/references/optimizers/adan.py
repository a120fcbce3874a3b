"""Adan, from its Algorithm 1."""

from collections.abc import Iterator

from references.problems import Problem, Weights
from references.record import Hyperparameters, Reference, decayed, zeros


def trajectory(problem: Problem, h: Hyperparameters) -> Iterator[Weights]:
    """Algorithm 1 of arXiv 2208.06677 with the code's bias corrections; betas are the shares
    that are kept (1 - beta of the paper)."""
    weights, b1, b2, b3 = problem.weights(), h["beta1"], h["beta2"], h["beta3"]
    m, v, n = zeros(weights), zeros(weights), zeros(weights)
    before: Weights = {}
    for t in range(1, problem.steps + 1):
        rate = h["learning_rate"] * problem.factor(t)
        gradients = problem.gradients(t, weights)
        for name, w in weights.items():
            g = gradients[name]
            change = g - before.get(name, g)
            before[name] = g
            m[name] = b1 * m[name] + (1 - b1) * g
            v[name] = b2 * v[name] + (1 - b2) * change
            n[name] = b3 * n[name] + (1 - b3) * (g + b2 * change) ** 2
            eta = rate / ((n[name] / (1 - b3**t)).sqrt() + h["epsilon"])
            step = eta * (m[name] / (1 - b1**t) + b2 * v[name] / (1 - b2**t))
            decay = h["weight_decay"] if decayed(w) else 0.0
            weights[name] = (w - step) / (1 + rate * decay)
        yield dict(weights)


REFERENCE = Reference(
    source="Xie et al. 2024 (arXiv 2208.06677), Algorithm 1",
    trajectory=trajectory,
    differences="The code (followed) starts the averages at 0 and corrects their biases, the "
    "paper starts them at the first gradient's values. Decay is proximal in both.",
)

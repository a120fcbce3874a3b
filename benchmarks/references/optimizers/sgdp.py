"""SGDP, from its Algorithm 1."""

from collections.abc import Iterator

from references.problems import Problem, Weights
from references.radial import without_radial
from references.record import Hyperparameters, Reference, decayed, zeros


def trajectory(problem: Problem, h: Hyperparameters) -> Iterator[Weights]:
    """Algorithm 1 of arXiv 2006.08217, with the code's decay."""
    weights, mu = problem.weights(), h["momentum"]
    velocity = zeros(weights)
    for t in range(1, problem.steps + 1):
        rate = h["learning_rate"] * problem.factor(t)
        gradients = problem.gradients(t, weights)
        for name, w in weights.items():
            g = gradients[name]
            velocity[name] = mu * velocity[name] + g
            step = g + mu * velocity[name] if h["nesterov"] else velocity[name]
            decay = (h["weight_decay"] if decayed(w) else 0.0) / (1 - mu)
            if w.ndim > 1:
                step, invariant = without_radial(w, g, step, h["delta"])
                decay *= h["weight_decay_ratio"] if invariant else 1.0
            weights[name] = (1 - rate * decay) * w - rate * step
        yield dict(weights)


REFERENCE = Reference(
    source="Heo et al. 2021 (arXiv 2006.08217), Algorithm 1 and eqs. 10-12",
    trajectory=trajectory,
    problems=("fixed gradients", "scale-invariant"),
    differences="The paper tests one cosine; the code (followed) the largest of the output "
    "channels', then the whole tensor's, and no vector's. The code (followed) adds 1e-8 to the "
    "norms, decays by decay / (1 - momentum), and less where weights are projected.",
)

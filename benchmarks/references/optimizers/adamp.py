"""AdamP, from its Algorithm 2."""

from collections.abc import Iterator

from references.problems import Problem, Weights
from references.radial import without_radial
from references.record import Hyperparameters, Reference, decayed, zeros


def trajectory(problem: Problem, h: Hyperparameters) -> Iterator[Weights]:
    """Algorithm 2 of arXiv 2006.08217."""
    weights, b1, b2 = problem.weights(), h["beta1"], h["beta2"]
    m, v = zeros(weights), zeros(weights)
    for t in range(1, problem.steps + 1):
        rate = h["learning_rate"] * problem.factor(t)
        gradients = problem.gradients(t, weights)
        for name, w in weights.items():
            g = gradients[name]
            m[name] = b1 * m[name] + (1 - b1) * g
            v[name] = b2 * v[name] + (1 - b2) * g**2
            ahead = b1 * m[name] + (1 - b1) * g if h["nesterov"] else m[name]
            step = ahead / (1 - b1**t) / ((v[name] / (1 - b2**t)).sqrt() + h["epsilon"])
            decay = h["weight_decay"] if decayed(w) else 0.0
            if w.ndim > 1:
                step, invariant = without_radial(w, g, step, h["delta"])
                decay *= h["weight_decay_ratio"] if invariant else 1.0
            weights[name] = (1 - rate * decay) * w - rate * step
        yield dict(weights)


REFERENCE = Reference(
    source="Heo et al. 2021 (arXiv 2006.08217), Algorithm 2 and eqs. 10-12",
    trajectory=trajectory,
    problems=("fixed gradients", "scale-invariant"),
    differences="The paper tests one cosine; the code (followed) the largest of the output "
    "channels', then the whole tensor's, and no vector's. The code (followed) adds 1e-8 to the "
    "norms, and weakens the decay of weights that are projected.",
)

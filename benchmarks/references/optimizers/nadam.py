"""NAdam, from Algorithm 2 of the workshop paper."""

from collections.abc import Iterator

from references.problems import Problem, Weights
from references.record import Hyperparameters, Reference, decayed, zeros


def trajectory(problem: Problem, h: Hyperparameters) -> Iterator[Weights]:
    """Algorithm 2 of Dozat's ICLR 2016 workshop paper (Algorithm 8 of the Stanford report of the
    same title), with the momentum schedule mu_t = beta1 (1 - 0.96^(t momentum_decay) / 2)."""
    weights, b1, b2 = problem.weights(), h["beta1"], h["beta2"]
    m, v = zeros(weights), zeros(weights)
    product = 1.0
    for t in range(1, problem.steps + 1):
        rate = h["learning_rate"] * problem.factor(t)
        mu = b1 * (1 - 0.5 * 0.96 ** (t * h["momentum_decay"]))
        following = b1 * (1 - 0.5 * 0.96 ** ((t + 1) * h["momentum_decay"]))
        product *= mu
        gradients = problem.gradients(t, weights)
        for name, w in weights.items():
            g = gradients[name]
            m[name] = b1 * m[name] + (1 - b1) * g
            v[name] = b2 * v[name] + (1 - b2) * g**2
            ahead = following * m[name] / (1 - product * following) + (1 - mu) * g / (1 - product)
            root = (v[name] / (1 - b2**t)).sqrt() + h["epsilon"]
            decay = h["weight_decay"] if decayed(w) else 0.0
            weights[name] = (1 - rate * decay) * w - rate * ahead / root
        yield dict(weights)


REFERENCE = Reference(
    source="Dozat, ICLR workshop 2016, Algorithm 2 with the momentum schedule of its section 3",
    trajectory=trajectory,
    differences="The paper averages the gradient by mu_t, torch (followed) by beta1. torch keeps "
    "the product of the mu_t in float32, and is off by 1e-8 for that; plugin and reference do "
    "not. The paper has no decay; it is decoupled, as torch's can be.",
)

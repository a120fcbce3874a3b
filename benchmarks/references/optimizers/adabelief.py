"""AdaBelief, from its Algorithm 2."""

from collections.abc import Iterator

from references.problems import Problem, Weights
from references.record import Hyperparameters, Reference, decayed, zeros


def trajectory(problem: Problem, h: Hyperparameters) -> Iterator[Weights]:
    """Algorithm 2 of arXiv 2010.07468, with the epsilon inside s that its text states."""
    weights, b1, b2, epsilon = problem.weights(), h["beta1"], h["beta2"], h["epsilon"]
    m, s = zeros(weights), zeros(weights)
    for t in range(1, problem.steps + 1):
        rate = h["learning_rate"] * problem.factor(t)
        gradients = problem.gradients(t, weights)
        for name, w in weights.items():
            g = gradients[name]
            m[name] = b1 * m[name] + (1 - b1) * g
            s[name] = b2 * s[name] + (1 - b2) * (g - m[name]) ** 2 + epsilon
            m_hat, s_hat = m[name] / (1 - b1**t), s[name] / (1 - b2**t)
            decay = h["weight_decay"] if decayed(w) else 0.0
            weights[name] = (1 - rate * decay) * w - rate * m_hat / (s_hat.sqrt() + epsilon)
        yield dict(weights)


REFERENCE = Reference(
    source="Zhuang et al. 2020 (arXiv 2010.07468), Algorithm 2",
    trajectory=trajectory,
    differences="Paper and code add epsilon to s in each step and again to its root: followed. "
    "The code rectifies as RAdam does by default, the paper (followed) does not. Decay is "
    "decoupled, as the code's default.",
)

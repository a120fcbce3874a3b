"""LAMB, from its Algorithm 2."""

from collections.abc import Iterator

from references.problems import Problem, Weights
from references.record import Hyperparameters, Reference, decayed, zeros


def trajectory(problem: Problem, h: Hyperparameters) -> Iterator[Weights]:
    """Algorithm 2 of arXiv 1904.00962 with phi the identity; norms and biases are not scaled."""
    weights, b1, b2 = problem.weights(), h["beta1"], h["beta2"]
    m, v = zeros(weights), zeros(weights)
    for t in range(1, problem.steps + 1):
        rate = h["learning_rate"] * problem.factor(t)
        gradients = problem.gradients(t, weights)
        for name, w in weights.items():
            g = gradients[name]
            m[name] = b1 * m[name] + (1 - b1) * g
            v[name] = b2 * v[name] + (1 - b2) * g**2
            m_hat, v_hat = m[name] / (1 - b1**t), v[name] / (1 - b2**t)
            update = m_hat / (v_hat.sqrt() + h["epsilon"])
            if decayed(w):
                update = update + h["weight_decay"] * w
                update = w.norm() / update.norm() * update
            weights[name] = w - rate * update
        yield dict(weights)


REFERENCE = Reference(
    source="You et al. 2020 (arXiv 1904.00962), Algorithm 2",
    trajectory=trajectory,
    differences="The authors' code (followed) leaves norms and biases out of scaling and decay; "
    "the paper does not say so. The code's clipping of the gradient's global norm is the training "
    "loop's.",
)

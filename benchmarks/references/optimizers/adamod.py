"""AdaMod, from its Algorithm 1."""

from collections.abc import Iterator

import torch

from references.problems import Problem, Weights
from references.record import Hyperparameters, Reference, decayed, zeros


def trajectory(problem: Problem, h: Hyperparameters) -> Iterator[Weights]:
    """Algorithm 1 of arXiv 1910.12249."""
    weights, b1, b2, b3 = problem.weights(), h["beta1"], h["beta2"], h["beta3"]
    m, v, s = zeros(weights), zeros(weights), zeros(weights)
    for t in range(1, problem.steps + 1):
        rate = h["learning_rate"] * problem.factor(t)
        gradients = problem.gradients(t, weights)
        for name, w in weights.items():
            g = gradients[name]
            m[name] = b1 * m[name] + (1 - b1) * g
            v[name] = b2 * v[name] + (1 - b2) * g**2
            m_hat, v_hat = m[name] / (1 - b1**t), v[name] / (1 - b2**t)
            eta = rate / (v_hat.sqrt() + h["epsilon"])
            s[name] = b3 * s[name] + (1 - b3) * eta
            decay = h["weight_decay"] if decayed(w) else 0.0
            weights[name] = (1 - rate * decay) * w - torch.minimum(eta, s[name]) * m_hat
        yield dict(weights)


REFERENCE = Reference(
    source="Ding et al. 2019 (arXiv 1910.12249), Algorithm 1",
    trajectory=trajectory,
    differences="The paper (followed) corrects the mean's bias outside the bound, the code "
    "inside, so that its first rates and bounds are larger by 1 / (1 - beta1^t). The code adds "
    "epsilon before the bias correction of v, the paper (followed) after it. Decay is decoupled, "
    "as in the code.",
)

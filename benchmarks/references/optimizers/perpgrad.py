"""Orthogonal gradient, from eq. 12 of its paper, before AdamW."""

from collections.abc import Iterator

from references.problems import Problem, Weights
from references.record import Hyperparameters, Reference, decayed, zeros


def trajectory(problem: Problem, h: Hyperparameters) -> Iterator[Weights]:
    """The gradient of each tensor without its part along the tensor, then AdamW."""
    weights, b1, b2 = problem.weights(), h["beta1"], h["beta2"]
    m, v = zeros(weights), zeros(weights)
    for t in range(1, problem.steps + 1):
        rate = h["learning_rate"] * problem.factor(t)
        gradients = problem.gradients(t, weights)
        for name, w in weights.items():
            g = gradients[name]
            across = g - (w * g).sum() / (w * w).sum() * w
            if h["rescale"]:
                across = across * g.norm() / across.norm()
            m[name] = b1 * m[name] + (1 - b1) * across
            v[name] = b2 * v[name] + (1 - b2) * across**2
            m_hat, v_hat = m[name] / (1 - b1**t), v[name] / (1 - b2**t)
            decay = h["weight_decay"] if decayed(w) else 0.0
            step = m_hat / (v_hat.sqrt() + h["epsilon"])
            weights[name] = (1 - rate * decay) * w - rate * step
        yield dict(weights)


REFERENCE = Reference(
    source="Prieto et al. 2025 (arXiv 2501.04697), eq. 12, before AdamW",
    trajectory=trajectory,
    differences="The code scales the projected gradient to the norm it had (the default here), "
    "the paper does not (rescale=False). The paper writes the projection for all weights "
    "together, the code (followed) does it tensor by tensor.",
    skipped={"loss": "StableMax is minimised by the training loop, not by the optimizer"},
)

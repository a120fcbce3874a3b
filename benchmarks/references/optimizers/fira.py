"""Fira, from its Algorithm 1."""

from collections.abc import Iterator

from torch import Tensor

from references.problems import Problem, Weights
from references.record import Hyperparameters, Reference, decayed
from references.subspace import Subspace, leading, projected

TINY = 1e-8
"""The authors' code adds it to the norms it divides by."""


def trajectory(problem: Problem, h: Hyperparameters) -> Iterator[Weights]:
    """Eqs. 11-12 of arXiv 2410.01623 around GaLore's Algorithm 2."""
    weights, b1, b2 = problem.weights(), h["beta1"], h["beta2"]
    spaces: dict[str, Subspace] = {}
    m: Weights = {}
    v: Weights = {}
    before: dict[str, Tensor] = {}
    for t in range(1, problem.steps + 1):
        rate = h["learning_rate"] * problem.factor(t)
        gradients = problem.gradients(t, weights)
        for name, w in weights.items():
            g = gradients[name]
            if projected(w):
                if (t - 1) % h["update_projection_gap"] == 0:
                    spaces[name] = leading(g, h["rank"])
                g = spaces[name].project(g)
            m[name] = b1 * m.get(name, 0.0) + (1 - b1) * g
            v[name] = b2 * v.get(name, 0.0) + (1 - b2) * g**2
            m_hat, v_hat = m[name] / (1 - b1**t), v[name] / (1 - b2**t)
            update = m_hat / (v_hat.sqrt() + h["epsilon"])
            if projected(w):
                space = spaces[name]
                side = 0 if space.left else 1
                low = g.norm(dim=side, keepdim=True) + TINY
                scaling = update.norm(dim=side, keepdim=True) / low
                rest = scaling * (gradients[name] - space.back(g))
                limit = h["norm_growth_limit"]
                if name in before:
                    growth = rest.norm() / (before[name] + TINY)
                    rest = rest / max(growth / limit, 1.0)
                before[name] = rest.norm()
                update = h["scale"] * space.back(update) + rest
            decay = h["weight_decay"] if decayed(w) else 0.0
            weights[name] = (1 - rate * decay) * w - rate * update
        yield dict(weights)


REFERENCE = Reference(
    source="Chen et al. 2025 (arXiv 2410.01623), eqs. 11-12 and Algorithm 1",
    trajectory=trajectory,
    differences="The code takes scale * P P^T g off the gradient before it scales the rest, the "
    "paper (followed) P P^T g. The code corrects Adam's bias at the end, so that its limiter sees "
    "uncorrected norms; the paper (followed) before. The code (followed) adds 1e-8 to the norms "
    "that are divided by. The code decays after the step; here before it, as AdamW.",
    settings={"rank": 3, "update_projection_gap": 7},
)

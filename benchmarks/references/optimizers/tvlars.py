"""TVLARS, from its Algorithm 1."""

import math
from collections.abc import Iterator

from references.problems import Problem, Weights
from references.record import Hyperparameters, Reference, decayed, zeros


def trajectory(problem: Problem, h: Hyperparameters) -> Iterator[Weights]:
    """LARS whose trust is multiplied by phi_t (eq. 5 of arXiv 2309.14053)."""
    weights, beta = problem.weights(), h["weight_decay"]
    velocity = zeros(weights)
    for t in range(1, problem.steps + 1):
        rate = h["learning_rate"] * problem.factor(t)
        phi = 1 / (h["alpha"] + math.exp(h["decay_rate"] * (t - h["delay_steps"]))) + h["floor"]
        gradients = problem.gradients(t, weights)
        for name, w in weights.items():
            g, local = gradients[name], 1.0
            if decayed(w):
                local = h["trust_coefficient"] * phi * w.norm() / (g.norm() + beta * w.norm())
                g = g + beta * w
            velocity[name] = h["momentum"] * velocity[name] + local * g
            weights[name] = w - rate * velocity[name]
        yield dict(weights)


REFERENCE = Reference(
    source="Do et al. 2024 (arXiv 2309.14053), eq. 5 and Algorithm 1",
    trajectory=trajectory,
    differences="The paper's phi_t is followed: the code leaves out its floor and delay, clips "
    "both norms at 10, and divides by the norm of the decayed gradient. As in LARS, the global "
    "rate stands outside the velocity, and vectors are neither decayed nor scaled.",
)

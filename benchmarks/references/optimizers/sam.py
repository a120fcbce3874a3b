"""SAM, from its Algorithm 1."""

from collections.abc import Iterator

import torch

from references.problems import Problem, Weights
from references.record import Hyperparameters, Reference, decayed, zeros


def trajectory(problem: Problem, h: Hyperparameters) -> Iterator[Weights]:
    """Algorithm 1 of arXiv 2010.01412 with p = 2, then a step of the base optimizer."""
    weights, base = problem.weights(), h["base"]
    m, v = zeros(weights), zeros(weights)
    for t in range(1, problem.steps + 1):
        rate = base["learning_rate"] * problem.factor(t)
        ascent = problem.gradients(t, weights)
        norm = torch.cat([g.reshape(-1) for g in ascent.values()]).norm()
        worst = {n: w + h["rho"] * ascent[n] / norm for n, w in weights.items()}
        gradients = problem.gradients(t, worst)
        for name, w in weights.items():
            decay = base["weight_decay"] if decayed(w) else 0.0
            if base["name"] == "sgd":
                m[name] = base["momentum"] * m[name] + gradients[name] + decay * w
                weights[name] = w - rate * m[name]
            else:
                b1, b2 = base["beta1"], base["beta2"]
                m[name] = b1 * m[name] + (1 - b1) * gradients[name]
                v[name] = b2 * v[name] + (1 - b2) * gradients[name] ** 2
                root = (v[name] / (1 - b2**t)).sqrt() + base["epsilon"]
                weights[name] = (1 - rate * decay) * w - rate * m[name] / (1 - b1**t) / root
        yield dict(weights)


REFERENCE = Reference(
    source="Foret et al. 2021 (arXiv 2010.01412), Algorithm 1 and eq. 2",
    trajectory=trajectory,
    problems=("logistic",),
    differences="The code adds the decay to the loss of both evaluations, so that it bends the "
    "ascent too; in the paper (followed) it stands outside, and the base optimizer decays.",
)

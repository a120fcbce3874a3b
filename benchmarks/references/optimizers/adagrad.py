"""AdaGrad and AdaGrad-Norm, written out."""

import math
from collections.abc import Iterator

from references.problems import Problem, Weights
from references.record import Hyperparameters, Reference, zeros


def trajectory(problem: Problem, h: Hyperparameters) -> Iterator[Weights]:
    """G <- G + g^2, w <- w - lr g / (sqrt(G) + eps), by coordinate; or with |g|^2 of the whole
    gradient in place of its coordinates' squares."""
    weights = problem.weights()
    sums, whole = zeros(weights), 0.0
    for t in range(1, problem.steps + 1):
        rate = h["learning_rate"] * problem.factor(t)
        gradients = problem.gradients(t, weights)
        whole += math.fsum(float(g.square().sum()) for g in gradients.values())
        for name, w in weights.items():
            g = gradients[name]
            sums[name] = sums[name] + g.square()
            by_coordinate = h["by"] == "coordinate"
            root = sums[name].sqrt() if by_coordinate else math.sqrt(whole)
            weights[name] = w - rate * g / (root + h["epsilon"])
        yield dict(weights)


REFERENCE = Reference(
    source="Duchi et al. 2011, section 1.3 (diagonal); Ward et al. 2019, algorithm 1",
    trajectory=trajectory,
    differences="Neither paper divides by anything but the root; the small number added to it is "
    "torch's. Ward et al. begin the sum above 0; here it begins at 0.",
)

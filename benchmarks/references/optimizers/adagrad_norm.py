"""AdaGrad-Norm: the paper's algorithm."""

from collections.abc import Iterator

import torch

from references.problems import Problem, Weights
from references.record import Hyperparameters, Reference


def trajectory(problem: Problem, h: Hyperparameters) -> Iterator[Weights]:
    """Algorithm 1 of arXiv 1806.01811: b_{j+1}^2 = b_j^2 + |g_j|^2, x_{j+1} = x_j - eta g_j /
    b_{j+1}, where g_j is the gradient of all weights together."""
    weights = problem.weights()
    b_squared = 0.0
    for t in range(1, problem.steps + 1):
        gradients = problem.gradients(t, weights)
        whole = torch.cat([gradient.flatten() for gradient in gradients.values()])
        b_squared += float(whole @ whole)
        eta = h["learning_rate"] * problem.factor(t)
        divisor = b_squared**0.5 + h["epsilon"]
        weights = {name: w - eta * gradients[name] / divisor for name, w in weights.items()}
        yield dict(weights)


REFERENCE = Reference(
    source="Ward, Wu, Bottou 2019 (arXiv 1806.01811), Algorithm 1",
    trajectory=trajectory,
    differences="The paper begins b^2 above 0 and divides by b alone; here it begins at 0, and "
    "epsilon is added to b, as in AdaGrad.",
)

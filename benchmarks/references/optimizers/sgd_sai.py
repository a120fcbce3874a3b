"""SGD-SaI, from its Algorithm 1."""

from collections.abc import Iterator

from torch import Tensor

from references.problems import Problem, Weights
from references.record import Hyperparameters, Reference, decayed


def trajectory(problem: Problem, h: Hyperparameters) -> Iterator[Weights]:
    """Algorithm 1 of arXiv 2412.11768 without its line 14: the rate of a tensor is scaled by the
    signal-to-noise ratio of its first gradient."""
    weights, mu = problem.weights(), h["momentum"]
    momentum: Weights = {}
    ratio: dict[str, Tensor] = {}
    for t in range(1, problem.steps + 1):
        rate = h["learning_rate"] * problem.factor(t)
        gradients = problem.gradients(t, weights)
        for name, w in weights.items():
            g = gradients[name]
            if name not in ratio:
                ratio[name] = g.norm() / (g.std() + 1e-8)
            momentum[name] = mu * momentum[name] + (1 - mu) * g if name in momentum else g
            decay = h["weight_decay"] if decayed(w) else 0.0
            weights[name] = (1 - rate * decay) * w - rate * ratio[name] * momentum[name]
        yield dict(weights)


REFERENCE = Reference(
    source="Xu et al. 2024 (arXiv 2412.11768), eq. 4 and Algorithm 1; the authors' package 1.0.3",
    trajectory=trajectory,
    differences="Algorithm 1 divides the ratios by the largest of all tensors', the package "
    "(followed) does not. Both start the mean at the first gradient (followed); pytorch_optimizer "
    "starts it at zero, and takes a vector's norm for its ratio.",
)

"""SGD with (Nesterov) momentum, written out."""

from collections.abc import Iterator

from references.problems import Problem, Weights
from references.record import Hyperparameters, Reference, decayed


def trajectory(problem: Problem, h: Hyperparameters) -> Iterator[Weights]:
    """v <- mu v + g (the first v is g), w <- w - lr v; Nesterov steps along g + mu v."""
    weights, mu = problem.weights(), h["momentum"]
    velocity: Weights = {}
    for t in range(1, problem.steps + 1):
        rate = h["learning_rate"] * problem.factor(t)
        gradients = problem.gradients(t, weights)
        for name, w in weights.items():
            g = gradients[name] + (h["weight_decay"] * w if decayed(w) else 0.0)
            v = mu * velocity[name] + g if name in velocity else g
            velocity[name] = v
            weights[name] = w - rate * (g + mu * v if h["nesterov"] else v)
        yield dict(weights)


REFERENCE = Reference(
    source="Sutskever et al. 2013, eqs. 1-4, in the form that keeps the velocity free of the rate",
    trajectory=trajectory,
    differences="The paper folds the rate into the velocity, torch (followed) does not: the two "
    "differ where the rate changes. Decay is added to the gradient, as in torch.",
)

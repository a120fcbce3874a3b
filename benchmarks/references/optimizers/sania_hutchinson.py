"""SANIA with Hutchinson's diagonal, on a problem whose Hessian is diagonal."""

from collections.abc import Iterator

from references.problems import Problem, Weights
from references.record import Hyperparameters, Reference


def trajectory(problem: Problem, h: Hyperparameters) -> Iterator[Weights]:
    """Algorithm 1 of arXiv 2312.17369 with B_t from eq. 4 of arXiv 2109.05198. Where the Hessian
    is diagonal, z * (H z) is its diagonal whatever signs z are drawn: H times ones."""
    weights, mean = problem.weights(), {}
    for t in range(problem.steps):
        loss = problem.loss(t + 1, weights)
        gradients = problem.gradients(t + 1, weights)
        if t % h["hessian_update_every"] == 0:
            ones = {name: w.new_ones(w.shape) for name, w in weights.items()}
            for name, now in problem.hessian_product(t + 1, weights, ones).items():
                old = mean.get(name, now)
                mean[name] = h["beta2"] * old + (1 - h["beta2"]) * now
        directions = {
            name: g / mean[name].abs().clamp(min=h["epsilon"]) for name, g in gradients.items()
        }
        square = sum(float((gradients[n] * d).sum()) for n, d in directions.items())
        step = 1 - (1 - 2 * loss / square) ** 0.5 if 2 * loss <= square else 1.0
        rate = h["learning_rate"] * problem.factor(t + 1)
        weights = {n: w - rate * step * directions[n] for n, w in weights.items()}
        yield dict(weights)


REFERENCE = Reference(
    source="Abdukhakimov et al. 2023 (arXiv 2312.17369), eq. 12; Jahani et al. 2022 (arXiv "
    "2109.05198), eq. 4",
    trajectory=trajectory,
    problems=("separable",),
    differences="The code has no such variant; the diagonal's estimate and start are OASIS's, its "
    "floor that of the code's other variants.",
)

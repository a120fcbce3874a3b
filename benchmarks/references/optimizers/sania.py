"""SANIA: AdaGrad-SQR, Adam-SQR and their square-rooted forms."""

from collections.abc import Iterator

from references.problems import Problem, Weights
from references.record import Hyperparameters, Reference, zeros


def trajectory(problem: Problem, h: Hyperparameters) -> Iterator[Weights]:
    """Algorithm 1 of arXiv 2312.17369, the infimum of the loss taken for 0."""
    weights, variant = problem.weights(), h["variant"]["name"]
    total = zeros(weights)
    for t in range(1, problem.steps + 1):
        loss, gradients = problem.loss(t, weights), problem.gradients(t, weights)
        directions: Weights = {}
        for name, g in gradients.items():
            if variant.startswith("adagrad"):
                total[name] = total[name] + g**2
                diagonal = total[name]
            else:
                b2 = h["variant"]["beta2"]
                total[name] = b2 * total[name] + (1 - b2) * g**2
                diagonal = total[name] / (1 - b2**t)
            diagonal = diagonal.clamp(min=h["epsilon"])
            directions[name] = g / (diagonal if variant.endswith("sqr") else diagonal.sqrt())
        square = sum(float((gradients[n] * d).sum()) for n, d in directions.items())
        step = 1 - (1 - 2 * loss / square) ** 0.5 if 2 * loss <= square else 1.0
        rate = h["learning_rate"] * problem.factor(t)
        weights = {n: w - rate * step * directions[n] for n, w in weights.items()}
        yield dict(weights)


REFERENCE = Reference(
    source="Abdukhakimov et al. 2023 (arXiv 2312.17369), eq. 12 and section 3 (AdaGrad-SQR, "
    "Adam-SQR)",
    trajectory=trajectory,
    problems=("logistic", "separable"),
    differences="The paper adds epsilon to the diagonal, the code (followed) raises it to at "
    "least epsilon. The code takes a step size for each parameter group, the paper (followed) one "
    "for all. The paper has no learning rate, the code one that it never uses; here it multiplies "
    "the step: 1 is the paper's.",
    tolerance=1e-5,
    reason="with epsilon near 0 the step divides by nearly vanishing squared gradients, which "
    "amplifies rounding; 1e-12 with the default epsilon",
)

"""Schedule-Free AdamW, from its Algorithm 1."""

from collections.abc import Iterator

from references.problems import Problem, Weights
from references.record import Hyperparameters, Reference, decayed, zeros


def trajectory(problem: Problem, h: Hyperparameters) -> Iterator[Weights]:
    """Algorithm 1 of arXiv 2405.15682 without warm-up; what is measured is x."""
    z, x, beta, b2 = problem.weights(), problem.weights(), h["beta1"], h["beta2"]
    v, highest, total = zeros(z), 0.0, 0.0
    for t in range(1, problem.steps + 1):
        rate = h["learning_rate"] * problem.factor(t)
        y = {name: (1 - beta) * z[name] + beta * x[name] for name in z}
        gradients = problem.gradients(t, y)
        highest = max(highest, rate)
        total += highest**2
        c = highest**2 / total
        for name, g in gradients.items():
            v[name] = b2 * v[name] + (1 - b2) * g**2
            root = (v[name] / (1 - b2**t)).sqrt() + h["epsilon"]
            decay = h["weight_decay"] if decayed(g) else 0.0
            z[name] = z[name] - rate * g / root - rate * decay * y[name]
            x[name] = (1 - c) * x[name] + c * z[name]
        yield dict(x)


REFERENCE = Reference(
    source="Defazio et al. 2024 (arXiv 2405.15682), Algorithm 1",
    trajectory=trajectory,
    differences="The paper weighs the average by the squared rate of each step, the code "
    "(followed) by the squared largest rate so far: they differ where a schedule lowers the rate. "
    "At a rate of zero the code's average still draws the weights along; here nothing moves (no "
    "problem has that rate).",
    problems=("fixed gradients", "logistic"),
)

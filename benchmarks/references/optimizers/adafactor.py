"""Adafactor, from its Algorithm 4."""

from collections.abc import Iterator

from torch import Tensor

from references.problems import Problem, Weights
from references.record import Hyperparameters, Reference, decayed, zeros


def rms(tensor: Tensor) -> float:
    """Root of the mean square (eq. 5)."""
    return float(tensor.square().mean().sqrt())


def trajectory(problem: Problem, h: Hyperparameters) -> Iterator[Weights]:
    """Algorithms 4 and 5 of arXiv 1804.04235 with beta2_t = 1 - t^exponent (section 7.2)."""
    weights = problem.weights()
    full = zeros(weights)
    rows: Weights = {}
    columns: Weights = {}
    for t in range(1, problem.steps + 1):
        beta = 1 - t ** h["decay_exponent"]
        relative = min(h["learning_rate"] * problem.factor(t), t**-0.5)
        gradients = problem.gradients(t, weights)
        for name, w in weights.items():
            g = gradients[name]
            if w.ndim > 1:
                rows[name] = beta * rows.get(name, 0.0) + (1 - beta) * g.square().mean(-1)
                columns[name] = beta * columns.get(name, 0.0) + (1 - beta) * g.square().mean(-2)
                r, c = rows[name].unsqueeze(-1), columns[name].unsqueeze(-2)
                estimate = r * c / r.mean(-2, keepdim=True)
            else:
                full[name] = beta * full[name] + (1 - beta) * g.square()
                estimate = full[name]
            update = g / estimate.sqrt()
            update = update / max(1.0, rms(update) / h["clip_threshold"])
            decay = h["weight_decay"] if decayed(w) else 0.0
            rate = h["learning_rate"] * problem.factor(t)
            weights[name] = (1 - rate * decay) * w - max(1e-3, rms(w)) * relative * update
        yield dict(weights)


REFERENCE = Reference(
    source="Shazeer & Stern 2018 (arXiv 1804.04235), Algorithms 4 and 5, section 7",
    trajectory=trajectory,
    differences="The paper (followed) adds 1e-30 to the squared gradient, torch keeps the divisor "
    "above a tiny number: alike here. The paper factors matrices; kernels are factored over their "
    "last two dimensions, as in torch. The paper has no decay; torch's (followed) is decoupled.",
)

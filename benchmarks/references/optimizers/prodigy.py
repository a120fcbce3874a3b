"""Prodigy, from its Algorithm 4 and the authors' code."""

from collections.abc import Iterator

from references.problems import Problem, Weights
from references.record import Hyperparameters, Reference, decayed, zeros


def trajectory(problem: Problem, h: Hyperparameters) -> Iterator[Weights]:
    """Algorithm 4 of arXiv 2306.06101: Adam at the rate d, a lower bound of the distance to the
    solution; beta3 is the root of beta2."""
    weights, start = problem.weights(), problem.weights()
    b1, b2 = h["beta1"], h["beta2"]
    b3 = b2**0.5
    m, v, s = zeros(weights), zeros(weights), zeros(weights)
    d = highest = h["initial_d"]
    r = 0.0
    for t in range(1, problem.steps + 1):
        correction = (1 - b2**t) ** 0.5 / (1 - b1**t) if h["bias_correction"] else 1.0
        rate = d * problem.factor(t) * correction
        share = d / h["initial_d"]
        gradients = problem.gradients(t, weights)
        r = b3 * r
        for name, g in gradients.items():
            r += share * rate * float((g * (start[name] - weights[name])).sum())
            m[name] = b1 * m[name] + (1 - b1) * d * g
            v[name] = b2 * v[name] + (1 - b2) * d**2 * g**2
            s[name] = b3 * s[name] + share * (d if h["safeguard_warmup"] else rate) * g
        found = h["d_coefficient"] * r / sum(float(a.abs().sum()) for a in s.values())
        if d == h["initial_d"]:
            d = max(d, found)
        d = highest = max(highest, found, d)
        for name, w in weights.items():
            decay = h["weight_decay"] if decayed(w) else 0.0
            step = m[name] / (v[name].sqrt() + d * h["epsilon"])
            weights[name] = (1 - rate * decay) * w - rate * step
        yield dict(weights)


REFERENCE = Reference(
    source="Mishchenko & Defazio 2024 (arXiv 2306.06101), Algorithm 4 and the authors' prodigyopt",
    trajectory=trajectory,
    problems=("logistic", "separable"),
    differences="The paper weighs what enters both sums by 1 - beta3, the code (followed) by 1 / "
    "d0: either cancels in their ratio. The code (followed) adds d * epsilon to the root with the "
    "new d, and multiplies the step by the old one.",
)

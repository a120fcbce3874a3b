"""SANIA with Hutchinson's diagonal, from the paper's equations and the authors' experiments.

Written by someone who had not seen the plugin, nor what stood here before.
"""

from collections.abc import Iterator
from math import sqrt

import torch

from references.problems import Problem, Weights
from references.record import Hyperparameters, Reference, zeros


def trajectory(problem: Problem, h: Hyperparameters) -> Iterator[Weights]:
    """SANIA Quasi-Newton of arXiv 2312.17369 where the least loss is 0, with B the truncated
    estimate of the Hessian's diagonal; which signs are drawn does not matter where the Hessian is
    diagonal."""
    weights, beta = problem.weights(), h["beta2"]
    generator = torch.Generator().manual_seed(12)
    diagonal = zeros(weights)
    for t in range(1, problem.steps + 1):
        if (t - 1) % h["hessian_update_every"] == 0:
            signs = {
                name: torch.randint(2, w.shape, generator=generator).to(w.dtype) * 2 - 1
                for name, w in weights.items()
            }
            product = problem.hessian_product(t, weights, signs)
            for name, z in signs.items():
                estimate = z * product[name]
                before = estimate if t == 1 else diagonal[name]
                diagonal[name] = beta * before + (1 - beta) * estimate
        gradients = problem.gradients(t, weights)
        direction = {
            name: g / torch.clamp(diagonal[name].abs(), min=h["epsilon"])
            for name, g in gradients.items()
        }
        squared_norm = sum(float((g * direction[name]).sum()) for name, g in gradients.items())
        ratio = 2 * problem.loss(t, weights) / squared_norm
        step_size = 1 - sqrt(1 - ratio) if ratio <= 1 else 1.0
        rate = h["learning_rate"] * problem.factor(t) * step_size
        for name, w in weights.items():
            weights[name] = w - rate * direction[name]
        yield dict(weights)


REFERENCE = Reference(
    source="Abdukhakimov et al. 2023 (arXiv 2312.17369), SANIA Quasi-Newton with Hutchinson's "
    "diagonal; the step size, smoothing and truncation as in github.com/fxrshed/SANIA, "
    "experiments/libsvm_binary.ipynb",
    trajectory=trajectory,
    problems=("separable",),
    differences="Smoothing and floor are those of the code's experiments (followed); their first "
    "diagonal is the mean of several estimates, here it is one. The paper has no learning rate; "
    "here, as in the code, it multiplies the step: 1 is the paper's.",
)

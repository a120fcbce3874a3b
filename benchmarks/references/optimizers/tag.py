"""TAG, from its section 3 and the authors' code."""

from collections.abc import Iterator

import torch
from torch import Tensor

from references.problems import Problem, Weights
from references.record import Hyperparameters, Reference

TASK_STEPS = 17
"""Steps of one task, before the next begins."""


def task_of(t: int) -> int:
    return (t - 1) // TASK_STEPS


def announce(optimizer: torch.optim.Optimizer, t: int) -> None:
    """Tell the plugin the task of the coming step."""
    for group in optimizer.param_groups:
        group["task"] = task_of(t)


def correlation(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum() / (a.norm() * b.norm())


def trajectory(problem: Problem, h: Hyperparameters) -> Iterator[Weights]:
    """Eqs. 3-5 of arXiv 2105.05155: one pair of moments a task; the second moments of all tasks
    so far are weighed by exp(-b corr) of their first moments with the present one's."""
    weights, b1, b2 = problem.weights(), h["beta1"], h["beta2"]
    m: dict[tuple[str, int], Tensor] = {}
    v: dict[tuple[str, int], Tensor] = {}
    for t in range(1, problem.steps + 1):
        rate = h["learning_rate"] * problem.factor(t)
        task = task_of(t)
        steps = t - task * TASK_STEPS
        gradients = problem.gradients(t, weights)
        for name, w in weights.items():
            g, key = gradients[name], (name, task)
            m[key] = b1 * m.get(key, 0.0) + (1 - b1) * g
            if h["base"] == "adagrad":
                v[key] = v.get(key, 0.0) + g**2
            else:
                v[key] = b2 * v.get(key, 0.0) + (1 - b2) * g**2
            mixed = v[key]
            if task > 0:
                alphas = [
                    torch.exp(-h["b"] * correlation(m[key], m[name, past]))
                    for past in range(task + 1)
                ]
                mixed = sum(a * v[name, past] for past, a in enumerate(alphas))
            if h["base"] == "adam":
                root = (mixed / (1 - b2**steps)).sqrt() + h["epsilon"]
                step = m[key] / (1 - b1**steps) / root
            else:
                step = g / (mixed.sqrt() + h["epsilon"])
            weights[name] = w - rate * step
        yield dict(weights)


REFERENCE = Reference(
    source="Malviya et al. 2022 (arXiv 2105.05155), section 3 and the authors' code",
    trajectory=trajectory,
    drive=announce,
    differences="They agree, but the code counts the steps of Adam's bias correction anew in each "
    "epoch; here they are counted by task.",
)

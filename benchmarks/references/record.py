"""What a reference says of itself, and what the references have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from autotune.plugins import Control, Progress, Signals
from references.problems import Problem, Weights

Hyperparameters = Mapping[str, Any]
Trajectory = Callable[[Problem, Hyperparameters], Iterator[Weights]]

SAME_FORMULA = 1e-10
"""Largest relative difference where both sides compute the same formula in float64."""


SEED = 0
"""What torch's global generator is seeded with before the plugin's run."""


@dataclass(frozen=True)
class Reference:
    """An optimizer's reference.

    Args:
        source: the paper and its equations or algorithm, or the library and its version.
        trajectory: yields the weights after each step of a problem.
        differences: where the paper and the authors' code, or the libraries, differ, and which is
            followed; what both leave open, and what is done here. As in the plugin's docstring.
        problems: names of the problems to go through.
        settings: hyperparameters set in every configuration, dotted, so that what the method
            does once in hundreds of steps happens within fifty.
        tolerance, reason: the largest relative difference allowed, and why where it is not
            `SAME_FORMULA`.
        drive: what a user's loop tells the plugin's optimizer before a step.
        skipped: hyperparameters that keep one value, or parts of the method that no problem
            reaches, and why.
    """

    source: str
    trajectory: Trajectory
    differences: str = ""
    problems: Sequence[str] = ("fixed gradients",)
    settings: Mapping[str, Any] = field(default_factory=dict)
    tolerance: float = SAME_FORMULA
    reason: str = ""
    drive: Callable[[torch.optim.Optimizer, int], None] | None = None
    skipped: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Schedule:
    """A schedule's reference.

    Args:
        source, differences, settings, tolerance, reason, skipped: as of `Reference`.
        controls: what the schedule commands at each of a run's progresses, given its signals.
        refined: the factors that gradient norms suggest, of a schedule that can be refined: of
            the norms at each step, which norm, and the filter's width in steps, an odd number.
    """

    source: str
    controls: Callable[[Hyperparameters, Sequence[Progress], Sequence[Signals]], list[Control]]
    differences: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    tolerance: float = SAME_FORMULA
    reason: str = ""
    skipped: Mapping[str, str] = field(default_factory=dict)
    refined: Callable[[Sequence[float], str, int], Sequence[float]] | None = None


Pairs = Callable[[int], Iterator[tuple[str, list[Weights], list[Weights], Weights]]]
"""For so many steps, runs: what each is, the weights of the training loop and of the reference
before the first step and after each, and the weights that distances are measured from."""


@dataclass(frozen=True)
class Scaling:
    """The reference of a way to carry rates over, which the training loop has.

    Args:
        source, differences, tolerance, reason, skipped: as of `Reference`.
        pairs: trains both.
    """

    source: str
    pairs: Pairs
    differences: str = ""
    tolerance: float = SAME_FORMULA
    reason: str = ""
    skipped: Mapping[str, str] = field(default_factory=dict)


def decayed(weight: Tensor) -> bool:
    """Whether weight decay touches this parameter: not biases and the scales of norms."""
    return weight.ndim >= 2


def zeros(weights: Weights) -> Weights:
    """A state that starts at zero."""
    return {name: torch.zeros_like(weight) for name, weight in weights.items()}


def library(
    build: Callable[[list[dict[str, Any]], Hyperparameters], torch.optim.Optimizer],
    decay: str | None = "weight_decay",
) -> Trajectory:
    """The trajectory of a library's optimizer.

    Args:
        build: makes the optimizer of parameter groups and hyperparameters. The groups state
            their weight decay: the one chosen for matrices and kernels, 0 for the rest.
        decay: the hyperparameter that holds the weight decay, None if there is none.
    """

    def trajectory(problem: Problem, h: Hyperparameters) -> Iterator[Weights]:
        leaves = {n: torch.nn.Parameter(w) for n, w in problem.weights().items()}
        strength = h[decay] if decay else 0.0
        groups = [
            {"params": [p], "weight_decay": strength if decayed(p) else 0.0}
            for p in leaves.values()
        ]
        optimizer = build(groups, h)
        rates = [group["lr"] for group in optimizer.param_groups]
        for t in range(1, problem.steps + 1):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * problem.factor(t)
            for name, gradient in problem.gradients(t, leaves).items():
                leaves[name].grad = gradient
            optimizer.step()
            yield {name: p.detach().clone() for name, p in leaves.items()}

    return trajectory

"""What the schedules' references share: the way a run's samples become a share of a phase.

The papers count steps. Here, as in the plugins, samples are counted, so a step t of T becomes
the share of the horizon's samples seen before that step. Warm-up rises over its samples and
counts the batch about to be taken, so that the first step already moves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from autotune.plugins import Control, Progress, Signals
from references.record import Hyperparameters


def warmup(progress: Progress, samples: float) -> float:
    """Linear warm-up: 1 from the batch on with which `samples` have been seen."""
    seen = progress.samples + progress.batch_size
    return seen / samples if seen < samples else 1.0


def share(progress: Progress, begin: float, end: float) -> float:
    """How much of the samples from `begin` to `end` lies behind, in [0, 1]."""
    return min(1.0, max(0.0, (progress.samples - begin) / (end - begin)))


def pointwise(
    factor: Callable[[Hyperparameters, Progress], float],
) -> Callable[[Hyperparameters, Sequence[Progress], Sequence[Signals]], list[Control]]:
    """Controls of a schedule that is a function of progress alone."""
    return lambda h, progresses, signals: [Control(factor=factor(h, p)) for p in progresses]


def decaying(
    shape: Callable[[Hyperparameters, float], float],
) -> Callable[[Hyperparameters, Sequence[Progress], Sequence[Signals]], list[Control]]:
    """Controls of linear warm-up over a share of the horizon, then `shape` of the share of the
    rest that lies behind."""

    def factor(h: Hyperparameters, progress: Progress) -> float:
        horizon = progress.horizon_samples
        begin = h["warmup_fraction"] * horizon
        return warmup(progress, begin) * shape(h, share(progress, begin, horizon))

    return pointwise(factor)

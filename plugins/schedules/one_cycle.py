"""The one-cycle policy: up to the largest rate, down again, and far below the first."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

from autotune.plugins import Control, Progress, Schedule, Signals
from autotune.space import Categorical, Float, Prior, Space

from ._shapes import cosine, linear, share_done

_SHAPES = {"cosine": cosine, "linear": linear}


class OneCycle(Schedule):
    """From ``1 / initial_division`` up to the base rate over the first ``rising_fraction`` of
    the horizon, then down to ``1 / (initial_division * final_division)`` at the horizon.

    The base rate is the largest one. With ``phases`` three, as in the paper, the fall takes as
    long as the rise and ends where the rise began, and the rest of the horizon leads linearly
    or as a cosine to the final rate; with two, as in torch's default (taken from fastai), one
    fall takes up all that is left. Peak and end stand at their shares of the horizon; torch's
    ``OneCycleLR`` reaches each one step earlier. Momentum, which the paper cycles against the
    rate, is the optimizer's and stays as it is. Bound to the horizon from the first step.
    """

    name: ClassVar[str] = "one_cycle"
    summary: ClassVar[str] = "One rise to the full rate and one fall far below the first rate."
    reference: ClassVar[str] = (
        "Smith, Topin: Super-Convergence: Very Fast Training of Neural Networks Using Large "
        "Learning Rates, 2018, arXiv 1708.07120; code: torch.optim.lr_scheduler.OneCycleLR"
    )

    @classmethod
    def space(cls) -> Space:
        """Share of the rise, divisions of the rate at start and end, shape and phases."""
        return Space(
            {
                "rising_fraction": Float(0.1, 0.45, default=0.3, prior=Prior(0.3, "medium")),
                "initial_division": Float(
                    2.0, 100.0, log=True, default=25.0, prior=Prior(25.0, "low")
                ),
                "final_division": Float(1.0, 1e5, log=True, default=1e4, prior=Prior(1e4, "low")),
                "shape": Categorical(tuple(_SHAPES), default="cosine"),
                "phases": Categorical((2, 3), default=2, prior=Prior(2, "low")),
            }
        )

    def bound_from(self) -> float | None:
        """From the first step."""
        return 0.0

    def control(self, progress: Progress, signals: Signals) -> Control:
        """Factor of the coming step."""
        first = 1.0 / self.configuration["initial_division"]
        last = first / self.configuration["final_division"]
        peak = self.configuration["rising_fraction"]
        corners = [(0.0, first), (peak, 1.0)]
        if self.configuration["phases"] == 3:
            corners.append((2 * peak, first))
        corners.append((1.0, last))
        shape = _SHAPES[self.configuration["shape"]]
        position = progress.samples / max(1, progress.horizon_samples)
        for (start, begin), (end, target) in pairwise(corners):
            if position < end:
                share = share_done(position, start, end)
                return Control(factor=target + (begin - target) * shape(share, 0.0))
        return Control(factor=last)

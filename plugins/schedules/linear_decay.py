"""Linear decay over the horizon, after a warm-up."""

from __future__ import annotations

from typing import ClassVar

from autotune.plugins import Control, Progress, Schedule, Signals
from autotune.space import Float, Prior, Space

from ._shapes import linear, share_done, warm_up


class LinearDecay(Schedule):
    """Linear warm-up over a share of the horizon, then a straight line down to
    ``final_factor`` at the horizon.

    The paper's ``1 - t / T`` with ``t`` counted from 0, so that the last step still moves.
    Its refinement from recorded gradient norms is not part of this schedule. Bound to the
    horizon from the first step.
    """

    name: ClassVar[str] = "linear_decay"
    summary: ClassVar[str] = "Warm-up, then a straight line down to the horizon."
    reference: ClassVar[str] = (
        "Defazio, Cutkosky, Mehta, Mishchenko: When, Why and How Much? Adaptive Learning Rate "
        "Scheduling by Refinement, 2023, arXiv 2310.07831"
    )

    @classmethod
    def space(cls) -> Space:
        """Share of the horizon spent on warming up, factor at the horizon."""
        return Space(
            {
                "warmup_fraction": Float(0.0, 0.2, default=0.05, prior=Prior(0.05, "medium")),
                "final_factor": Float(0.0, 0.2, default=0.0, prior=Prior(0.0, "high")),
            }
        )

    def bound_from(self) -> float | None:
        """From the first step."""
        return 0.0

    def control(self, progress: Progress, signals: Signals) -> Control:
        """Factor of the coming step."""
        warm = self.configuration["warmup_fraction"] * progress.horizon_samples
        if progress.samples < warm:
            return Control(factor=warm_up(progress.samples, progress.batch_size, warm))
        share = share_done(progress.samples, warm, progress.horizon_samples)
        return Control(factor=linear(share, self.configuration["final_factor"]))

"""What all schedules share that warm up over a share of the horizon and then come down to it."""

from __future__ import annotations

from autotune.plugins import Control, Progress, Schedule, Signals
from autotune.space import Float, Prior, Space

from ._shapes import share_done, warm_up


class DecayToHorizon(Schedule):
    """Linear warm-up over ``warmup_fraction`` of the horizon, then `shape` down to the horizon.

    Bound to the horizon from the first step.
    """

    @classmethod
    def space(cls) -> Space:
        """Share of the horizon spent on warming up, factor at the horizon."""
        return Space(
            {
                "warmup_fraction": Float(0.0, 0.2, default=0.05, prior=Prior(0.05, "medium")),
                "final_factor": Float(0.0, 0.2, default=0.0, prior=Prior(0.0, "high")),
            }
        )

    def shape(self, share: float) -> float:
        """The factor when `share`, in [0, 1], of the way from warm-up to horizon is done."""
        raise NotImplementedError

    def bound_from(self) -> float | None:
        """From the first step."""
        return 0.0

    def control(self, progress: Progress, signals: Signals) -> Control:
        """Factor of the coming step."""
        warm = self.configuration["warmup_fraction"] * progress.horizon_samples
        if progress.samples < warm:
            return Control(factor=warm_up(progress.samples, progress.batch_size, warm))
        share = share_done(progress.samples, warm, progress.horizon_samples)
        return Control(factor=self.shape(share))

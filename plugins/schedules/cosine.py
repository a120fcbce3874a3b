"""Cosine decay over the horizon, after a warm-up."""

from __future__ import annotations

from typing import ClassVar

from autotune.plugins import Control, Progress, Schedule, Signals
from autotune.space import Float, Prior, Space

from ._shapes import cosine, share_done, warm_up


class Cosine(Schedule):
    """Linear warm-up over a share of the horizon, then half a cosine wave down to
    ``final_factor`` at the horizon.

    The paper restarts the wave; this is its single period, as most use it. Bound to the
    horizon from the first step.
    """

    name: ClassVar[str] = "cosine"
    summary: ClassVar[str] = "Warm-up, then half a cosine wave to the horizon."
    reference: ClassVar[str] = (
        "Loshchilov, Hutter: SGDR: Stochastic Gradient Descent with Warm Restarts, ICLR 2017, "
        "arXiv 1608.03983; code: torch.optim.lr_scheduler.CosineAnnealingLR"
    )

    @classmethod
    def space(cls) -> Space:
        """Share of the horizon spent on warming up, factor at the horizon."""
        return Space(
            {
                "warmup_fraction": Float(0.0, 0.2, default=0.05, prior=Prior(0.05, "medium")),
                "final_factor": Float(0.0, 0.2, default=0.0, prior=Prior(0.0, "medium")),
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
        return Control(factor=cosine(share, self.configuration["final_factor"]))

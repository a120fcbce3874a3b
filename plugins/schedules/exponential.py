"""Exponential decay: the same ratio from epoch to epoch, whatever the horizon."""

from __future__ import annotations

from typing import ClassVar

from autotune.plugins import Control, Progress, Schedule, Signals
from autotune.space import Float, Prior, Space

from ._shapes import warm_up, warm_up_space


class Exponential(Schedule):
    """The base rate times ``decay ** epochs``, never below ``final_factor``; before it an
    optional linear warm-up over ``warmup_samples`` (1: none).

    Epochs count samples and have fractions, so the rate falls at every step; torch's
    ``ExponentialLR``, stepped once an epoch, agrees at the epochs' starts. The constant floor
    is that of BigNAS, where training goes on at 5 % of the first rate. Knows no horizon: such a
    trial may be extended at will.
    """

    name: ClassVar[str] = "exponential"
    summary: ClassVar[str] = "Rate falls by the same ratio each epoch, down to a floor."
    reference: ClassVar[str] = (
        "code: torch.optim.lr_scheduler.ExponentialLR; floor: Yu et al.: BigNAS, ECCV 2020, "
        "arXiv 2003.11142, section 3.2"
    )

    @classmethod
    def space(cls) -> Space:
        """Ratio from one epoch to the next, floor, and length of the warm-up."""
        return Space(
            {
                "decay": Float(0.5, 0.999, default=0.95, prior=Prior(0.95, "low")),
                "final_factor": Float(1e-4, 0.2, log=True, default=0.01),
                "warmup_samples": warm_up_space(),
            }
        )

    def control(self, progress: Progress, signals: Signals) -> Control:
        """Factor of the coming step: the warm-up and the decay multiply."""
        length = self.configuration["warmup_samples"]
        rising = warm_up(progress.samples, progress.batch_size, length)
        falling = self.configuration["decay"] ** progress.epochs
        return Control(factor=rising * max(falling, self.configuration["final_factor"]))

"""A constant rate, after an optional warm-up."""

from __future__ import annotations

from typing import ClassVar

from autotune.plugins import Control, Progress, Schedule, Signals
from autotune.space import Space

from ._shapes import warm_up, warm_up_space


class Constant(Schedule):
    """The base rate throughout, warmed up linearly over ``warmup_samples`` (1: not at all).

    The paper's warm-up begins at the rate of a single worker; here it begins at next to none.
    Knows no horizon: such a trial may be extended at will.
    """

    name: ClassVar[str] = "constant"
    summary: ClassVar[str] = "Constant rate, after an optional linear warm-up."
    reference: ClassVar[str] = (
        "Warm-up: Goyal et al.: Accurate, Large Minibatch SGD, 2017, arXiv 1706.02677"
    )
    preferred: ClassVar[bool] = True

    @classmethod
    def space(cls) -> Space:
        """Length of the warm-up."""
        return Space({"warmup_samples": warm_up_space()})

    def control(self, progress: Progress, signals: Signals) -> Control:
        """Factor of the coming step."""
        length = self.configuration["warmup_samples"]
        return Control(factor=warm_up(progress.samples, progress.batch_size, length))

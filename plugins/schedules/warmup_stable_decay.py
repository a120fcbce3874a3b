"""Warm-up, a stable rate, and a short decay at the end."""

from __future__ import annotations

from typing import ClassVar

from autotune.plugins import Control, Progress, Schedule, Signals
from autotune.space import Categorical, Float, Prior, Space

from ._shapes import COOLDOWNS, share_done, warm_up, warm_up_space


class WarmupStableDecay(Schedule):
    """Linear warm-up in samples, the base rate, and a decay over the horizon's last
    ``decay_fraction`` to ``final_factor``.

    Free of the horizon until the decay starts, so that one stable run serves several
    horizons. Should warm-up and decay overlap, the lower of the two factors holds. MiniCPM
    decays exponentially over the last tenth; the shapes and the default, ``1-sqrt`` over a
    fifth, are those of Hägele et al.
    """

    name: ClassVar[str] = "warmup_stable_decay"
    summary: ClassVar[str] = "Warm-up, constant rate, short final decay."
    reference: ClassVar[str] = (
        "Hu et al.: MiniCPM, 2024, arXiv 2404.06395; Hägele et al.: Scaling Laws and "
        "Compute-Optimal Training Beyond Fixed Training Durations, NeurIPS 2024, "
        "arXiv 2405.18392; code: github.com/epfml/schedules-and-scaling"
    )

    @classmethod
    def space(cls) -> Space:
        """Warm-up in samples; length, shape and end of the decay."""
        return Space(
            {
                "warmup_samples": warm_up_space(),
                "decay_fraction": Float(0.05, 0.5, default=0.2, prior=Prior(0.2, "medium")),
                "decay_shape": Categorical(
                    tuple(COOLDOWNS), default="1-sqrt", prior=Prior("1-sqrt", "low")
                ),
                "final_factor": Float(0.0, 0.2, default=0.0, prior=Prior(0.0, "high")),
            }
        )

    def bound_from(self) -> float | None:
        """The start of the decay."""
        return 1.0 - float(self.configuration["decay_fraction"])

    def control(self, progress: Progress, signals: Signals) -> Control:
        """Factor of the coming step."""
        length = self.configuration["warmup_samples"]
        rising = warm_up(progress.samples, progress.batch_size, length)
        horizon = progress.horizon_samples
        start = (1.0 - self.configuration["decay_fraction"]) * horizon
        shape = COOLDOWNS[self.configuration["decay_shape"]]
        share = share_done(progress.samples, start, horizon)
        falling = shape(share, self.configuration["final_factor"])
        return Control(factor=min(rising, falling))

"""Warm-up, a stable rate, and a short decay at the end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from autotune.plugins import Control, Progress, Schedule, Signals
from autotune.space import Categorical, Float, Prior, Space

from ._shapes import COOLDOWNS, share_done, warm_up, warm_up_space


class WarmupStableDecay(Schedule):
    """Linear warm-up in samples, the base rate, and a decay over the horizon's last
    ``decay_fraction`` to ``final_factor``.

    Free of the horizon until the decay starts, so that one stable run serves several
    horizons. Should warm-up and decay overlap, which the papers leave open, the lower of the two
    factors holds. MiniCPM decays exponentially over the last tenth; Hägele et al. are followed:
    the shapes and the default, ``1-sqrt`` over a fifth, are theirs.

    It can take over a run from any other schedule (`branch`) and then is the decay alone, from
    the rate that it finds down to ``final_factor`` of the base rate: the cooldown that gives a
    run at a constant rate comparable values at several budgets.
    """

    name: ClassVar[str] = "warmup_stable_decay"
    summary: ClassVar[str] = "Warm-up, constant rate, short final decay."
    reference: ClassVar[str] = (
        "Hu et al.: MiniCPM, 2024, arXiv 2404.06395; Hägele et al.: Scaling Laws and "
        "Compute-Optimal Training Beyond Fixed Training Durations, NeurIPS 2024, "
        "arXiv 2405.18392; code: github.com/epfml/schedules-and-scaling"
    )

    # behind constant, as the first schedule that can cool a run down
    preferred: ClassVar[bool] = True

    _branch: dict[str, Any] | None = None

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

    def branch(self, progress: Progress, control: Control) -> None:
        """Cool down from here to the horizon, starting at the factors commanded last;
        ``decay_fraction`` and the warm-up no longer count."""
        self._branch = {
            "samples": progress.samples,
            "factor": control.factor,
            "group_factors": dict(control.group_factors),
        }

    def control(self, progress: Progress, signals: Signals) -> Control:
        """Factor of the coming step."""
        if self._branch is not None:
            return self._cooldown(progress, **self._branch)
        length = self.configuration["warmup_samples"]
        rising = warm_up(progress.samples, progress.batch_size, length)
        start = (1.0 - self.configuration["decay_fraction"]) * progress.horizon_samples
        return Control(factor=min(rising, self._falling(progress, start)))

    def _cooldown(
        self, progress: Progress, samples: int, factor: float, group_factors: Mapping[str, float]
    ) -> Control:
        falling = self._falling(progress, samples, from_factor=factor)
        return Control(factor=factor * falling, group_factors=group_factors)

    def _falling(self, progress: Progress, start: float, from_factor: float = 1.0) -> float:
        """The share of `from_factor` that is left of it on the way down from `start`."""
        final = self.configuration["final_factor"]
        # A rate that is below the final one already stays: a cooldown never raises it.
        end = min(1.0, final / from_factor) if from_factor > 0 else 1.0
        share = share_done(progress.samples, start, progress.horizon_samples)
        return COOLDOWNS[self.configuration["decay_shape"]](share, end)

    def state_dict(self) -> dict[str, Any]:
        """Where the run was taken over, if it was."""
        return {"branch": self._branch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._branch = state["branch"]

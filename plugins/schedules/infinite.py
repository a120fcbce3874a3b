"""The infinite schedule: down to a constant rate that can be held for ever."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from autotune.plugins import Control, Progress, Schedule, Signals
from autotune.space import Categorical, Choice, Float, Integer, Prior, Space

from ._shapes import (
    DESCENTS,
    exponential,
    share_done,
    warm_up,
    warm_up_space,
)

FINAL_FACTOR = 0.01
"""Where the annealing ends, of the base rate, if nothing else is said."""


class Infinite(Schedule):
    """Linear warm-up, a cooldown to ``constant_factor``, then that rate for as long as wanted.

    Warm-up and cooldown are counted in samples, so that nothing depends on the horizon. With
    ``anneal`` the rate falls exponentially to ``final_factor`` of the base rate over the last share
    of the horizon; only that phase is bound to it. Phases as in the papers, but for the inverse
    square root: theirs has a steepness to choose and is stretched to meet the constant rate, here
    the steepness is the one that needs no stretching. The annealing starts from whatever the rate
    is when it begins, which is the constant one unless the cooldown is still under way.

    It can take over a run from any other schedule, or from itself (`branch`): then it is the
    annealing alone, from the rate that it finds to the horizon, which gives a final checkpoint
    from any saved point of a run that is held at its constant rate.
    """

    name: ClassVar[str] = "infinite"
    summary: ClassVar[str] = "Warm-up, cooldown to a constant rate without a horizon."
    reference: ClassVar[str] = (
        "Ibrahim et al.: Simple and Scalable Strategies to Continually Pre-train Large Language "
        "Models, TMLR 2024, arXiv 2403.08763; Singh et al.: Beyond Cosine Decay, 2025, "
        "arXiv 2503.02844"
    )

    _branch: dict[str, Any] | None = None

    @classmethod
    def space(cls) -> Space:
        """Warm-up and cooldown in samples, the constant factor, and the optional annealing."""
        return Space(
            {
                "warmup_samples": warm_up_space(),
                "cooldown_samples": Integer(500, 1_000_000, log=True, default=10_000),
                "cooldown_shape": Categorical(tuple(DESCENTS), default="cosine"),
                "constant_factor": Float(0.1, 0.8, default=0.5, prior=Prior(0.5, "low")),
                "anneal": Choice(
                    {
                        "none": Space({}),
                        "exponential": Space(
                            {
                                "fraction": Float(0.05, 0.3, default=0.1),
                                "final_factor": Float(1e-5, 0.1, log=True, default=FINAL_FACTOR),
                            }
                        ),
                    },
                    default="none",
                ),
            }
        )

    def bound_from(self) -> float | None:
        """The start of the annealing, if there is any."""
        anneal = self.configuration["anneal"]
        return None if anneal["name"] == "none" else 1.0 - float(anneal["fraction"])

    def branch(self, progress: Progress, control: Control) -> None:
        """Anneal from here to the horizon, starting at the factors commanded last."""
        self._branch = {
            "samples": progress.samples,
            "factor": control.factor,
            "group_factors": dict(control.group_factors),
        }

    def control(self, progress: Progress, signals: Signals) -> Control:
        """Factor of the coming step."""
        anneal = self.configuration["anneal"]
        if self._branch is not None:
            factor, final = self._branch["factor"], anneal.get("final_factor", FINAL_FACTOR)
            share = share_done(progress.samples, self._branch["samples"], progress.horizon_samples)
            left = exponential(share, min(1.0, final / factor)) if factor > 0 else 1.0
            return Control(factor * left, group_factors=self._branch["group_factors"])
        if anneal["name"] == "none":
            return Control(factor=self._without_horizon(progress, progress.samples))
        start = (1.0 - anneal["fraction"]) * progress.horizon_samples
        held = self._without_horizon(progress, min(progress.samples, start))
        share = share_done(progress.samples, start, progress.horizon_samples)
        # A ratio above 1 would make the rate rise; annealing never does.
        return Control(factor=held * exponential(share, min(1.0, anneal["final_factor"] / held)))

    def _without_horizon(self, progress: Progress, samples: float) -> float:
        """The factor of warm-up, cooldown and constant phase when `samples` had been seen."""
        warm = self.configuration["warmup_samples"]
        if samples < warm:
            return warm_up(samples, progress.batch_size, warm)
        shape = DESCENTS[self.configuration["cooldown_shape"]]
        share = share_done(samples, warm, warm + self.configuration["cooldown_samples"])
        return shape(share, self.configuration["constant_factor"])

    def state_dict(self) -> dict[str, Any]:
        """Where the run was taken over, if it was."""
        return {"branch": self._branch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._branch = state["branch"]

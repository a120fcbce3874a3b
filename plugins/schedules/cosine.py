"""Cosine decay over the horizon, after a warm-up, with warm restarts where wanted."""

from __future__ import annotations

from typing import ClassVar

from autotune.space import Choice, Float, Integer, Prior, Space

from ._decay import DecayToHorizon
from ._shapes import cosine


class Cosine(DecayToHorizon):
    """Linear warm-up over a share of the horizon, then half a cosine wave down to
    ``final_factor`` at the horizon (equation 5 of the paper).

    With restarts the way from warm-up to horizon holds ``cycles`` such waves, each starting
    at the full rate and ``growth`` times as long as the one before it (the paper's ``T_mult``).
    The paper and torch give the first length, ``T_0``; here it is the one with which the last
    wave ends at the horizon.
    """

    name: ClassVar[str] = "cosine"
    summary: ClassVar[str] = "Warm-up, then half cosine waves to the horizon: one, or restarted."
    reference: ClassVar[str] = (
        "Loshchilov, Hutter: SGDR: Stochastic Gradient Descent with Warm Restarts, ICLR 2017, "
        "arXiv 1608.03983; code: torch.optim.lr_scheduler.CosineAnnealingLR and "
        "CosineAnnealingWarmRestarts"
    )

    @classmethod
    def space(cls) -> Space:
        """Share of the horizon spent on warming up, factor at the end of a wave, restarts."""
        once_more = Space({"cycles": Integer(2, 5, default=2), "growth": Integer(1, 3, default=2)})
        return Space(
            {
                "warmup_fraction": Float(0.0, 0.2, default=0.05, prior=Prior(0.05, "medium")),
                "final_factor": Float(0.0, 0.2, default=0.0, prior=Prior(0.0, "medium")),
                "restarts": Choice(
                    {"none": Space({}), "warm": once_more},
                    default="none",
                    prior=Prior("none", "medium"),
                ),
            }
        )

    def shape(self, share: float) -> float:
        """Half a cosine wave, or the one of several that `share` lies in."""
        restarts = self.configuration["restarts"]
        if restarts["name"] == "warm":
            share = _share_of_cycle(share, restarts["cycles"], restarts["growth"])
        return cosine(share, self.configuration["final_factor"])


def _share_of_cycle(share: float, cycles: int, growth: int) -> float:
    """How much is done of the cycle that `share` of all cycles lies in.

    Lengths are whole multiples of the first, so cycle borders are met exactly.
    """
    done, length = share * sum(growth**cycle for cycle in range(cycles)), 1
    for _ in range(cycles - 1):
        if done < length:
            break
        done, length = done - length, length * growth
    return min(1.0, done / length)

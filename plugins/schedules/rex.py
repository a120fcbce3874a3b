"""REX: holds the rate up for longer than a line, then comes down faster."""

from __future__ import annotations

from typing import ClassVar

from autotune.space import Space

from ._decay import DecayToHorizon


class REX(DecayToHorizon):
    """Linear warm-up over a share of the horizon, then the reflected exponential: with ``s``
    the share done, ``f(s) = (1 - s) / (1/2 + (1 - s) / 2)``, from 1 to 0.

    The paper's profile sampled at every step. The paper has no warm-up: ``warmup_fraction`` 0.
    """

    name: ClassVar[str] = "rex"
    summary: ClassVar[str] = "Warm-up, then the reflected exponential down to the horizon."
    reference: ClassVar[str] = (
        "Chen, Wolfe, Kyrillidis: REX: Revisiting Budgeted Training with an Improved Schedule, "
        "MLSys 2022, arXiv 2107.04197, section 3"
    )

    @classmethod
    def space(cls) -> Space:
        """Share of the horizon spent on warming up."""
        return Space({"warmup_fraction": super().space().parameters["warmup_fraction"]})

    def shape(self, share: float) -> float:
        """The reflected exponential."""
        left = 1 - share
        return left / (0.5 + 0.5 * left)

"""Polynomial decay over the horizon, after a warm-up."""

from __future__ import annotations

from typing import ClassVar

from autotune.space import Float, Prior, Space

from ._decay import DecayToHorizon


class Polynomial(DecayToHorizon):
    """Linear warm-up over a share of the horizon, then ``(1 - t / T) ** power`` from 1 down to
    ``final_factor`` at the horizon.

    ``f(s) = final_factor + (1 - final_factor) * (1 - s) ** power`` with ``s`` the share done of
    the way from warm-up to horizon. Power 1 is the linear decay.
    """

    name: ClassVar[str] = "polynomial"
    summary: ClassVar[str] = "Warm-up, then (1 - t/T) ** power down to the horizon."
    reference: ClassVar[str] = (
        "Chen, Papandreou, Kokkinos, Murphy, Yuille: DeepLab, TPAMI 2018, arXiv 1606.00915, "
        "section 4.1.1 ('poly'); code: torch.optim.lr_scheduler.PolynomialLR"
    )

    @classmethod
    def space(cls) -> Space:
        """As every decay to the horizon, and the power."""
        power = Float(0.5, 4.0, log=True, default=0.9, prior=Prior(0.9, "low"))
        return Space({**super().space().parameters, "power": power})

    def shape(self, share: float) -> float:
        """The polynomial."""
        final = self.configuration["final_factor"]
        return float(final + (1 - final) * (1 - share) ** self.configuration["power"])

"""Linear decay over the horizon, after a warm-up; or its refinement from a finished run."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from autotune.plugins import Control, GradientNorms, PluginError, Progress, Signals

from ._decay import DecayToHorizon
from ._shapes import linear

_POWERS = {"l2": -2.0, "l1": -1.0}


class LinearDecay(DecayToHorizon):
    """Linear warm-up over a share of the horizon, then a straight line down to
    ``final_factor`` at the horizon.

    The paper's ``1 - t / T`` with ``t`` counted from 0, so that the last step still moves.
    Bound to the horizon from the first step.

    `refine` turns it into the schedule of the paper's algorithm 1, which has its own warm-up
    and end: `refined_factors` of a finished run's gradient norms, stretched over the horizon.
    """

    name: ClassVar[str] = "linear_decay"
    summary: ClassVar[str] = "Warm-up, then a straight line down to the horizon; refinable."
    reference: ClassVar[str] = (
        "Defazio, Cutkosky, Mehta, Mishchenko: When, Why and How Much? Adaptive Learning Rate "
        "Scheduling by Refinement, 2023, arXiv 2310.07831"
    )

    _shares: Sequence[float] = ()
    _factors: Sequence[float] = ()

    def refine(self, norms: GradientNorms, norm: Literal["l1", "l2"], filter_width: float) -> None:
        """Follow the factors that the finished run's norms suggest, at equal shares of the
        horizon; linear between its steps, and zero from its last one on."""
        recorded = norms.l2 if norm == "l2" else norms.l1
        self._factors = refined_factors(recorded, norm, filter_width).tolist()
        self._shares = [samples / norms.seen for samples in norms.samples]

    def shape(self, share: float) -> float:
        """The straight line."""
        return linear(share, self.configuration["final_factor"])

    def control(self, progress: Progress, signals: Signals) -> Control:
        """Factor of the coming step."""
        if not self._factors:
            return super().control(progress, signals)
        share = progress.samples / max(1, progress.horizon_samples)
        return Control(factor=_between(share, self._shares, self._factors))

    def state_dict(self) -> dict[str, Any]:
        """The refined factors, if there are any."""
        return {"shares": list(self._shares), "factors": list(self._factors)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._shares, self._factors = list(state["shares"]), list(state["factors"])


def refined_factors(
    norms: Sequence[float], norm: Literal["l1", "l2"], filter_width: float = 0.1
) -> NDArray[np.float64]:
    """The schedule that minimises the paper's bound for these gradient norms, its largest
    factor 1; shape (steps,), as `norms`.

    Algorithm 1: a median filter over ``filter_width`` of the run, the first norm repeated
    before the start and the norms mirrored past the end; weights ``w_t = G_t ** -2`` of
    Euclidean norms, or, for Adam and its kin, ``1 / G_t`` of sums of absolute values; factors
    in proportion to ``w_t * sum of w_p over p > t``, so that the last is 0.

    Args:
        norms: above 0, one a step.
        norm: which norm they are, ``l2`` or ``l1``.
        filter_width: in (0, 1].

    Raises:
        PluginError: fewer than two norms, or one that is not a number above 0.
    """
    from scipy.ndimage import median_filter  # here, since few runs are refined

    recorded = np.asarray(norms, dtype=np.float64)
    if len(recorded) < 2 or not (np.isfinite(recorded) & (recorded > 0)).all():
        raise PluginError(
            f"a schedule cannot be refined from {len(recorded)} gradient norms, "
            f"{int((~(recorded > 0)).sum())} of them not above 0; expected at least two, all "
            "finite and above 0, from a run that recorded them"
        )
    reach = round(filter_width * len(recorded)) // 2
    before = np.repeat(recorded[:1], reach)
    padded = np.concatenate([before, np.pad(recorded, (0, reach), mode="symmetric")])
    smooth = median_filter(padded, size=2 * reach + 1)[reach : reach + len(recorded)]
    weights = (smooth / smooth.min()) ** _POWERS[norm]
    later = np.append(np.cumsum(weights[::-1])[::-1][1:], 0.0)
    factors = weights * later
    return factors / factors.max()


def _between(share: float, shares: Sequence[float], factors: Sequence[float]) -> float:
    """The factor at `share`, on the straight line between the two steps around it."""
    after = bisect_right(shares, share)
    if after == 0:
        return factors[0]
    if after == len(shares):
        return factors[-1]
    width = shares[after] - shares[after - 1]
    past = (share - shares[after - 1]) / width
    return factors[after - 1] + past * (factors[after] - factors[after - 1])

"""Progressive ASHA: trials are trained longer only while that changes who is ahead."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from autotune.decide.policies.rungs import Ladder, reduction_space, rung_units, start
from autotune.plugins.search import (
    Event,
    FloatArray,
    ForecastFunction,
    Frozen,
    Key,
    Policy,
    ProposeFunction,
    SearchContext,
    Start,
    Stop,
    Thaw,
    Wait,
)
from autotune.plugins.trials import Trials
from autotune.space import Space

COMPARED = 128
"""So many trials of the top rung are compared, the newest. In the paper's experiments there are
fewer."""

PERCENTILE = 90
"""Of the differences that are noise, this percentile is the tolerance (the paper's N)."""


@dataclass
class _State:
    """The ladder; the place of its top rung at present; and there, by the horizon that trials are
    bound to, their oriented curves, as they came, and the tolerance."""

    ladder: Ladder
    top: int
    curves: dict[int | None, list[FloatArray]] = field(default_factory=dict)
    tolerance: dict[int | None, float] = field(default_factory=dict)


class PASHA(Policy):
    """ASHA on the two lowest rungs, to which the next is added whenever the top rung ranks the
    trials that reached it otherwise than the rung below did.

    The ranking is soft: a trial may stand at a place of the top rung if below its value was within
    a tolerance of the one that stood at this place. The tolerance is estimated from the curves:
    two trials whose order changed and changed back are told apart by noise only, and the
    tolerance is the `PERCENTILE` of such pairs' differences at the last unit that both trained
    to. Where no pair changed so, the last tolerance stays; it begins at 0. A trial that breaks the
    constraints at one of the two rungs only has changed its place, too.
    """

    name = "pasha"
    summary = "progressive asha: the longest training grows only while the ranking changes"
    reference = (
        "Bohdal et al. 2023, PASHA: Efficient HPO and NAS with Progressive Resource Allocation, "
        "2207.06940"
    )

    @classmethod
    def space(cls) -> Space:
        """The factor between rungs."""
        return reduction_space()

    def initial(self, context: SearchContext) -> _State:
        """Two rungs, if there are so many; nobody stands there."""
        reduction = int(self.configuration["reduction"])
        units = rung_units(context.horizon, reduction)
        ladder = Ladder(units, reduction, [context.objective])
        return _State(ladder, min(1, len(units) - 1))

    def observe(
        self, context: SearchContext, state: _State, event: Event, trials: Trials
    ) -> _State:
        """Enter a frozen trial at its rungs; at the top one, see whether it must grow."""
        before = state.ladder.reached.get(event.trial) if isinstance(event, Frozen) else None
        state.ladder.observe(event, trials)
        if isinstance(event, Frozen):
            trial, units = trials[event.trial], state.ladder.units
            arrived = before != state.top == state.ladder.reached.get(trial.number)
            if arrived and state.top + 1 < len(units):
                steps = range(1, units[state.top] + 1)
                curve = np.array([trials.score(trial.metrics.get(step, {})) for step in steps])
                ends = [trials.known(trial.number, units[place]) for place in _top_two(state)]
                if len({trials.violation(known) > 0 for known in ends}) > 1:
                    _grow(state)
                elif np.isfinite(curve).all():
                    self._compare(state, state.ladder.bound(trial, state.top), curve)
        return state

    def _compare(self, state: _State, bound: int | None, curve: FloatArray) -> None:
        """One more trial at the top rung: add a rung if the top two do not agree."""
        known = state.curves.setdefault(bound, [])
        known.append(curve)
        del known[:-COMPARED]
        curves = np.stack(known)
        tolerance = noise(curves)
        if tolerance is None:
            tolerance = state.tolerance.get(bound, 0.0)
        state.tolerance[bound] = tolerance
        below = curves[:, state.ladder.units[state.top - 1] - 1]
        if not agree(below, curves[:, -1], tolerance):
            _grow(state)

    def decide(
        self,
        context: SearchContext,
        state: _State,
        propose: ProposeFunction,
        forecast: ForecastFunction,
        trials: Trials,
        key: Key,
    ) -> Start | Thaw | Wait | Stop:
        """Promote as far as the top rung, else start."""
        promoted = state.ladder.promotion(trials, state.top)
        return promoted or start(context, propose, trials, state.ladder.units[0])


def _top_two(state: _State) -> tuple[int, int]:
    return state.top - 1, state.top


def _grow(state: _State) -> None:
    """One more rung."""
    state.top += 1
    state.curves.clear()


def noise(curves: FloatArray) -> float | None:
    """The tolerance that curves (trials, units) say, as in the paper's section 4.2; None if no
    two of them changed their order and changed it back."""
    ahead = curves[:, None] > curves[None, :]
    as_now = ahead == ahead[..., -1:]
    # The order at the end, after the other, after the order at the end.
    back = (~as_now & np.logical_or.accumulate(as_now, axis=-1)).any(axis=-1)
    first, second = np.nonzero(np.triu(back, 1))
    if not len(first):
        return None
    return float(np.percentile(np.abs(curves[first, -1] - curves[second, -1]), PERCENTILE))


def agree(below: FloatArray, above: FloatArray, tolerance: float) -> bool:
    """Whether the trials' values at the rung below, (trials,), taken in the order of those above,
    are everywhere within the tolerance of the ranking below."""
    order = np.argsort(above, kind="stable")
    return bool((np.abs(below[order] - np.sort(below)) <= tolerance).all())

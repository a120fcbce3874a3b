"""Transfer: what an earlier study teaches a new one.

Its best configurations are tried first (`SearchContext.first`, by whoever makes the context).
Its curves stand beside the study's own in what the forecaster sees, once they have proved to be
related: at `CHECKS` numbers of own trials, each own trial's values are predicted from those of
the earlier study's nearest configurations at the same unit. If the two agree in rank, the
earlier curves are mapped to the new study's scale by the straight line through these pairs and
shown to the forecaster as trials with negative numbers; if they do not, or no longer, it never
saw them. Policy and proposer see the study's own trials only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr, theilslopes

from autotune.plugins.search import (
    Decided,
    Earlier,
    EarlierTrial,
    Event,
    Failed,
    FloatArray,
    Forecast,
    Forecaster,
    Frozen,
    Observed,
    Query,
    SearchContext,
    Start,
)
from autotune.plugins.trials import Trials

CHECKS = (8, 16, 32, 64)
"""Numbers of own trials with a value at which each earlier study is looked at anew."""

ENOUGH = 128
"""With so many own trials, earlier ones are no longer needed and only cost time."""

RELATED = 0.4
"""Rank correlation (Spearman's) from which an earlier study counts as related: what 8 pairs
without any relation reach in 16 of 100 cases, and 16 pairs in 6."""

NEIGHBOURS = 3

SLOPES = (0.1, 10.0)
"""The line's slope is kept within these: the pairs may all lie close together."""


@dataclass(frozen=True)
class Line:
    """Maps an earlier study's values, oriented so that less is better, to this one's."""

    slope: float
    offset: float


class Informed:
    """A forecaster's fold which earlier studies may join and leave.

    Args:
        context: of the new study, with `earlier`.
        trials: the study's own, folded by the caller before `observe`; shown to the forecaster
            with the context's objective as the primary one.

    Attributes:
        forecaster: as given.
    """

    def __init__(self, context: SearchContext, forecaster: Forecaster, trials: Trials) -> None:
        self.context = context
        self.lines: tuple[Line | None, ...] = tuple(None for _ in context.earlier)
        self.forecaster = forecaster
        self._own = trials
        self._seen: set[int] = set()
        self._history: list[Event] = []
        self._checked = 0
        self._places = [_places(context, earlier) for earlier in context.earlier]
        # Without earlier studies the forecaster sees the study's own fold, and nothing is kept.
        self._trials = trials
        self._state = forecaster.initial(context)

    def observe(self, event: Event) -> None:
        """Fold one event."""
        if self._trials is not self._own:
            self._trials.observe(event)
        self._state = self.forecaster.observe(self._state, event, self._shown())
        if not self.context.earlier or self._checked > ENOUGH:
            return
        self._history.append(event)
        if isinstance(event, Observed):
            self._seen.add(event.trial)
        due = [n for n in (*CHECKS, ENOUGH) if self._checked < n <= len(self._seen)]
        if isinstance(event, Frozen) and due:
            self._checked = due[-1]
            self._look()

    def adopt(self, trials: Trials) -> None:
        """Go on with another fold of the study's own trials than everything was folded with."""
        if self._trials is self._own:
            self._trials = trials
        self._own = trials

    def forecast(self, queries: list[Query]) -> Forecast:
        """As `Forecaster.forecast`."""
        return self.forecaster.forecast(self.context, self._state, self._shown(), queries)

    def _shown(self) -> Trials:
        return self._trials.judged_by(self.context.objective)

    def _look(self) -> None:
        """Decide anew which earlier studies are related; if that or their mapping changes, fold
        everything again from the start."""
        lines: tuple[Line | None, ...] = tuple(None for _ in self.context.earlier)
        if self._checked < ENOUGH:
            lines = tuple(
                line_between(*self._pairs(earlier, places))
                for earlier, places in zip(self.context.earlier, self._places, strict=True)
            )
        else:
            self._checked = ENOUGH + 1
        if lines == self.lines:
            return
        self.lines = lines
        self._state = self.forecaster.initial(self.context)
        context = self.context
        self._trials = Trials(context.space, context.objectives, context.constraints)
        number = -1
        for earlier, line in zip(self.context.earlier, lines, strict=True):
            for trial in earlier.trials if line is not None else ():
                assert line is not None
                for event in _told(trial, number, line, self.context):
                    self._fold(event)
                number -= 1
        for event in self._history:
            self._fold(event)
        if self._checked > ENOUGH:
            self._history.clear()

    def _fold(self, event: Event) -> None:
        self._trials.observe(event)
        self._state = self.forecaster.observe(self._state, event, self._trials)

    def _pairs(self, earlier: Earlier, places: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Predicted from the earlier study, and observed: each own trial's first and last
        oriented values; shape (2, trials) each. Trials that cannot be predicted are left out."""
        predicted, observed = [], []
        for number in sorted(self._seen):
            steps, values = self._own.scores(number)
            finite = np.isfinite(values)
            if not finite.any() or not len(places):
                continue
            ends = [int(steps[finite][0]), int(steps[finite][-1])]
            near = _nearest(self._own[number].encoded, self._own[number].mask, places)
            row = [_weighted(earlier, near, step, self.context.objective.sign) for step in ends]
            predicted.append(row)
            observed.append([values[finite][0], values[finite][-1]])
        return np.array(predicted).reshape(-1, 2).T, np.array(observed).reshape(-1, 2).T


def line_between(predicted: FloatArray, observed: FloatArray) -> Line | None:
    """The line from predicted to observed values, None if they are not related.

    Args:
        predicted, observed: shape (2, trials), first and last values. Their ranks are compared
            among the first values, which are all of early units: among all, that curves fall
            would count as a relation. The line is Theil and Sen's through all of them.
    """
    first, seen = predicted[0] if len(predicted) else np.zeros(0), observed
    if len(first) < CHECKS[0] or np.ptp(first) == 0 or np.ptp(seen[0]) == 0:
        return None
    if not spearmanr(first, seen[0]).statistic >= RELATED:
        return None
    slope = float(np.clip(theilslopes(seen.ravel(), predicted.ravel())[0], *SLOPES))
    return Line(slope, float(np.median(seen.ravel() - slope * predicted.ravel())))


def _places(context: SearchContext, earlier: Earlier) -> FloatArray:
    """The earlier trials with values in the unit cube, an inactive entry as -1: shape (trials,
    slots)."""
    rows = []
    for trial in earlier.trials:
        if trial.values:
            encoded, mask = context.space.encode(trial.configuration)
            rows.append(np.where(mask, encoded, -1.0))
    return np.array(rows).reshape(len(rows), len(context.space.slots))


def _nearest(encoded: FloatArray, mask: np.ndarray, places: FloatArray) -> list[tuple[int, float]]:
    """The nearest earlier trials with their weights, the inverse of the distance."""
    distance = np.sqrt(((places - np.where(mask, encoded, -1.0)) ** 2).sum(axis=1))
    order = np.argsort(distance, kind="stable")[:NEIGHBOURS]
    return [(int(row), 1.0 / (0.01 + float(distance[row]))) for row in order]


def _weighted(earlier: Earlier, near: list[tuple[int, float]], step: int, sign: float) -> float:
    """The oriented value at `step`, of each trial at its nearest unit."""
    valued = [trial for trial in earlier.trials if trial.values]
    values = []
    for row, _ in near:
        trial = valued[row]
        at = min(range(len(trial.steps)), key=lambda i: abs(trial.steps[i] - step))
        values.append(sign * trial.values[at])
    return float(np.average(values, weights=[weight for _, weight in near]))


def _told(trial: EarlierTrial, number: int, line: Line, context: SearchContext) -> list[Event]:
    """An earlier trial's events as those of trial `number` of the new study, up to its horizon:
    forecasters take time as a share of that."""
    objective = context.objective
    within = sum(step <= context.horizon for step in trial.steps)
    last = trial.steps[within - 1] if within else 1
    start = Start(number, trial.configuration, context.horizon, last)
    events: list[Event] = [Decided(-1, start)]
    told = list(zip(trial.steps, trial.values, trial.seconds, strict=True))[:within]
    for step, value, seconds in told:
        mapped = objective.sign * (line.slope * objective.sign * value + line.offset)
        events.append(Observed(number, step, {objective.name: mapped}, seconds))
    if trial.failed and within == len(trial.steps):
        return [*events, Failed(number, last, "not_finite", "failed in the earlier study")]
    return [*events, Frozen(number, last, "of an earlier study")]

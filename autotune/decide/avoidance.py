"""Learned infeasibility: regions that fail are proposed less and less.

A configuration that ran out of memory, diverged or killed its worker is not tried again, but its
like would be: a width that does not fit into memory fails whatever the learning rate. What failed
is explained by rules, one condition or two together ("width is above 0.7 of its range", "the
optimizer is sgd and the learning rate above 0.9"): inside of a rule configurations fail nearly
always, outside seldom. Every rule is weighted by how likely it makes what was seen (Beta-Bernoulli
evidence), beside the hypothesis that failures come by chance, and a configuration's risk is the
weighted mean of what the rules say of it. Five failures that share nothing else than a large width
settle the matter; failures without a pattern thin nothing. What breaks a limit by what is measured
once (`Trial.barred`) has failed in this sense.

Thinning is by rejection, and the draw that decides on a configuration depends on the study's seed
and the configuration alone: asked again and again, it is rejected again and again.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.special import betaln

from autotune.decide.configurations import identity
from autotune.plugins.search import Event, Failed, FloatArray, Frozen
from autotune.plugins.trials import Trials
from autotune.space import Categorical, Choice, Configuration, Space

CAUSES = frozenset({"out_of_memory", "not_finite", "timeout", "worker_died", "error"})
"""Failures that tell something about the configuration."""

LEAST = 2
"""One failure has no pattern."""

FAILURES, FINE = 64, 192
"""No more trials are looked at: the newest that failed, and the newest that did not."""

CUTS, OUTERMOST = 7, 4
"""A number is cut at so many places of its range, and at so many of the lowest and of the highest
values that failed, where regions that reach to an end of the range begin."""

MANY = 20
"""In spaces of more numbers than this there are half as many cuts."""

CHANCE, ONE, TWO = 0.3, 0.4, 0.3
"""Prior weights: failures by chance, rules of one condition, rules of two."""

_INSIDE, _OUTSIDE, _ANYWHERE = (3.0, 0.15), (0.15, 3.0), (0.5, 0.5)
"""Beta priors of the share that fails: inside a rule, outside of it, and by chance."""

SHARPNESS = 4.0
"""A configuration is kept with its chance to work, relative to the likeliest's, to this power..."""

MORE = (1, 4, 32)
"""How many times as many configurations are drawn until enough of them are kept."""

FLOOR = 0.05
"""...but at least with this over the number of failures: what was wrongly blamed is found out."""


@dataclass
class Avoidance:
    """The fold: which trials failed and which did not."""

    space: Space
    seed: int
    failed: list[int] = field(default_factory=list)
    fine: list[int] = field(default_factory=list)
    _risk: tuple[tuple[int, int], Risk] | None = None

    def observe(self, event: Event, trials: Trials) -> None:
        """Fold one event that `trials` has folded already."""
        match event:
            case Failed(trial=number, cause=cause, evaluation=None) if cause in CAUSES:
                self.failed.append(number)
            case Frozen(trial=number) if len(trials[number].segments) == 1:
                (self.failed if trials[number].barred else self.fine).append(number)
            case _:
                pass

    def kept(self, configurations: Sequence[Configuration], trials: Trials) -> list[Configuration]:
        """Those that are not rejected, in order."""
        if len(self.failed) < LEAST or not configurations:
            return list(configurations)
        keep = self.risk(trials).keep(configurations, len(self.failed))
        return [c for c, share in zip(configurations, keep, strict=True) if self._draw(c) < share]

    def drawn(
        self, draw: Callable[[int], list[Configuration]], count: int, trials: Trials
    ) -> list[Configuration]:
        """Up to `count` configurations out of `draw(count)`, less of what is likely to fail; out
        of more draws where some are rejected."""
        kept: list[Configuration] = []
        for more in MORE if count else ():
            found = draw(count * more)
            kept = self.kept(found, trials)
            if len(kept) >= min(count, len(found)):
                break
        return kept[:count]

    def _draw(self, configuration: Configuration) -> float:
        text = f"{self.seed} {identity(configuration)}".encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") / 2.0**64

    def risk(self, trials: Trials) -> Risk:
        """The rules as they stand; work bounded by `FAILURES`, `FINE` and the number of slots."""
        state = _looked_at(len(self.failed)), _looked_at(len(self.fine))
        if self._risk is None or self._risk[0] != state:
            failed = self.failed[: state[0]][-FAILURES:]
            # By what is looked at, not by what has failed since: else the rules would depend on
            # when they are asked for.
            blamed = set(self.failed[: state[0]])
            fine = [n for n in self.fine[: state[1]][-FINE:] if n not in blamed]
            rows = [trials[number] for number in (*failed, *fine)]
            encoded, mask = np.stack([t.encoded for t in rows]), np.stack([t.mask for t in rows])
            self._risk = state, Risk(self.space, encoded, mask, len(failed))
        return self._risk[1]


def _looked_at(count: int) -> int:
    """Of so many trials those that the rules are fitted to, up to a tenth or so fewer: they are
    fitted anew for some of them only, the same ones whenever that is asked."""
    step = 1 << max(0, count.bit_length() - 4)
    return count - count % step


class Risk:
    """How likely configurations fail.

    Args:
        encoded, mask: of trials, (trials, slots), the first `failed` of which failed.
    """

    def __init__(self, space: Space, encoded: FloatArray, mask: np.ndarray, failed: int) -> None:
        self._space = space
        self._conditions = _conditions(space, encoded[:failed], mask[:failed])
        met = self._met(encoded, mask)
        bad, good = met[:failed], met[failed:]
        # A rule of two conditions is a pair; of one, the pair of it with itself.
        inside_bad, inside_good = bad.T @ bad, good.T @ good
        outside_bad, outside_good = failed - inside_bad, len(good) - inside_good
        weight = np.log(_prior(met.shape[1]))
        weight += _evidence(inside_bad, inside_good, _INSIDE)
        weight += _evidence(outside_bad, outside_good, _OUTSIDE)
        chance = np.log(CHANCE) + float(_evidence(np.array(failed), np.array(len(good)), _ANYWHERE))
        highest = max(float(weight.max(initial=-np.inf)), chance)
        weight, alone = np.exp(weight - highest), np.exp(chance - highest)
        total = float(weight.sum()) + alone
        weight, alone = weight / total, alone / total
        inside = _mean(inside_bad, inside_good, _INSIDE)
        outside = _mean(outside_bad, outside_good, _OUTSIDE)
        by_chance = float(_mean(np.array(failed), np.array(len(good)), _ANYWHERE))
        self._base = alone * by_chance + float((weight * outside).sum())
        self._more = weight * (inside - outside)

    def __call__(self, configurations: Sequence[Configuration]) -> FloatArray:
        """Probability to fail, (configurations,)."""
        pairs = [self._space.encode(configuration) for configuration in configurations]
        met = self._met(np.stack([e for e, _ in pairs]), np.stack([m for _, m in pairs]))
        return np.asarray(self._base + ((met @ self._more) * met).sum(axis=1))

    def keep(self, configurations: Sequence[Configuration], failures: int) -> FloatArray:
        """Probability to be kept, (configurations,)."""
        works = np.maximum(1.0 - self(configurations), 0.0)
        likeliest = 1.0 - self._base  # no rule speaks against it
        share = (works / max(likeliest, 1e-9)) ** SHARPNESS
        return np.asarray(np.maximum(share, FLOOR / failures))

    def _met(self, encoded: FloatArray, mask: np.ndarray) -> FloatArray:
        """Which conditions hold, (rows, conditions), 0 or 1. An inactive slot meets none."""
        slots, low, high = self._conditions
        place = encoded[:, slots]
        return np.asarray(((place >= low) & (place < high) & mask[:, slots]).astype(np.float64))


def _conditions(
    space: Space, encoded: FloatArray, mask: np.ndarray
) -> tuple[np.ndarray, FloatArray, FloatArray]:
    """Slots and intervals [low, high) of all conditions: a category, a number above a cut or
    below one. `encoded` and `mask` are of what failed."""
    numbers = sum(not isinstance(s.parameter, Categorical | Choice) for s in space.slots)
    few = 1 if numbers <= MANY else 2
    grid = np.linspace(0.0, 1.0, CUTS // few + 2)[1:-1]
    found: list[tuple[int, float, float]] = []
    for index, slot in enumerate(space.slots):
        if isinstance(slot.parameter, Categorical | Choice):
            edges = np.linspace(0.0, 1.0, slot.parameter.size + 1)
            found += [(index, a, b) for a, b in itertools.pairwise(edges)]
            continue
        failed = np.unique(encoded[mask[:, index], index])
        lowest, highest = failed[: OUTERMOST // few], failed[-OUTERMOST // few :]
        found += [(index, cut, np.inf) for cut in (*grid, *lowest)]
        found += [(index, -np.inf, np.nextafter(cut, 2.0)) for cut in (*grid, *highest)]
    slots = np.array([index for index, _, _ in found], dtype=np.intp)
    return slots, np.array([a for _, a, _ in found]), np.array([b for _, _, b in found])


def _prior(conditions: int) -> FloatArray:
    """Prior weight of each rule, (conditions, conditions); a pair stands there twice."""
    if not conditions:
        return np.zeros((0, 0))
    prior = np.full((conditions, conditions), TWO / max(1, conditions * (conditions - 1)))
    np.fill_diagonal(prior, ONE / conditions)
    return prior


def _evidence(bad: FloatArray, good: FloatArray, prior: tuple[float, float]) -> FloatArray:
    a, b = prior
    return np.asarray(betaln(a + bad, b + good) - betaln(a, b))


def _mean(bad: FloatArray, good: FloatArray, prior: tuple[float, float]) -> FloatArray:
    a, b = prior
    return np.asarray((a + bad) / (a + bad + b + good))

"""The reusable hold-out (Thresholdout): guards the validation split against thousands of looks.

A search that looks at the same validation split again and again fits it: the best of thousands
of configurations is good on these very samples, and the split no longer says how good it is on
others. Thresholdout (Dwork et al. 2015, The reusable holdout, Science 349:636; 1506.02629,
figure 1) answers every look by the value on training samples as long as the two agree, and only
where they differ by more than a noisy threshold by the validation value, with noise; only these
answers count against a budget. What it answers can be looked at adaptively without overfitting.

The driver asks before an observation is recorded, so the record holds the answers, which are all
that anything decides on, and beside them what was held out, which nothing reads but this fold.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np

from autotune.plugins.search import Event, Holdout, Objective, Observed, SearchContext

_STREAM = 29
_SIDE = "validation_"


class Thresholdout:
    """The mechanism of figure 1. Deterministic: its noise depends on the seed and on what is
    asked, not on how often it was asked before, apart from the threshold, which is drawn anew
    after every answer that counts.

    Args:
        holdout: threshold, noise and budget.
        seed: of the study.

    Attributes:
        spent: answers given from the hold-out so far.
    """

    def __init__(self, holdout: Holdout, seed: int) -> None:
        self.holdout = holdout
        self.seed = seed
        self.spent = 0

    def ask(self, training: float, held_out: float, *place: int) -> tuple[float, bool]:
        """What is said of a value, and whether it counts against the budget; NaN once that is
        spent.

        Args:
            training, held_out: the value on training samples and on the hold-out.
            place: names the question (trial, unit, ...) for the noise.
        """
        if self.spent >= self.holdout.budget:
            return math.nan, False
        noise = self.holdout.noise
        drawn = np.random.default_rng([self.seed, _STREAM, 0, self.spent])
        threshold = self.holdout.threshold + drawn.laplace(scale=2 * noise)
        generator = np.random.default_rng([self.seed, _STREAM, 1, *place])
        slack, blur = generator.laplace(scale=4 * noise), generator.laplace(scale=noise)
        if not abs(held_out - training) <= threshold + slack:
            return held_out + blur, True
        return training, False


class Guard:
    """The fold of a study's looks, and the answer to the next one."""

    def __init__(self, context: SearchContext) -> None:
        assert context.holdout is not None, "there is nothing to guard"
        curves = [o for o in context.measured if o.kind == "curve"]
        own = context.objectives
        self._objectives = [o for o in curves if o in own or o.name.startswith(_SIDE)]
        # Metrics of the task's own that are only constrained: one that is measured once, or on
        # training samples, is no look.
        self._further = [o for o in curves if o not in self._objectives and not _trained(o.name)]
        self._mechanism = Thresholdout(context.holdout, context.seed)
        self._answered: dict[tuple[int, int], Observed] = {}

    def observe(self, event: Event) -> None:
        """Fold one event."""
        if isinstance(event, Observed):
            self._mechanism.spent += event.paid
            self._answered.setdefault((event.trial, event.step), event)

    def missing(self, metrics: Mapping[str, float]) -> list[str]:
        """Training-side metrics that should be among a task's but are not."""
        names = [*_names(self._objectives), *(n for n in _names(self._further) if n in metrics)]
        return [name for name in map(training_side, names) if name not in metrics]

    def guarded(self, raw: Observed) -> Observed:
        """An observation as it may be looked at. A unit that was trained again after a loss is
        the same question, and gets the same answer for nothing."""
        before = self._answered.get((raw.trial, raw.step))
        asked = [*self._objectives, *(o for o in self._further if o.name in raw.metrics)]
        held_out = {
            name: value
            for name, value in raw.metrics.items()
            if name in _names(asked) or name.startswith(_SIDE)
        }
        metrics = {name: value for name, value in raw.metrics.items() if name not in held_out}
        paid = 0
        for index, objective in enumerate(asked):
            if before is not None:
                metrics[objective.name] = before.metrics[objective.name]
                continue
            training = raw.metrics[training_side(objective.name)]
            value = raw.metrics[objective.name]
            answer, counts = self._mechanism.ask(training, value, raw.trial, raw.step, index)
            metrics[objective.name] = answer
            self._mechanism.spent += counts
            paid += counts
        self._mechanism.spent -= paid  # `observe` counts them once the event is recorded
        return Observed(
            raw.trial, raw.step, metrics, raw.seconds, raw.at, held_out=held_out, paid=paid
        )


def _trained(name: str) -> bool:
    return name.startswith("training_")


def training_side(name: str) -> str:
    """The training-side counterpart of a validation metric: ``training_accuracy`` of
    ``validation_accuracy``, ``training_f1`` of ``f1``."""
    return f"training_{name.removeprefix(_SIDE)}"


def _names(objectives: Iterable[Objective]) -> list[str]:
    return [objective.name for objective in objectives]

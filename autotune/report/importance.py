"""Which hyperparameters mattered: PED-ANOVA over the study's trials.

Optuna computes it, on a throw-away study in memory. Watanabe et al. 2023, "PED-ANOVA:
Efficiently Quantifying Hyperparameter Importance in Arbitrary Subspaces" (arXiv 2304.10255);
conditional hyperparameters as in "Conditional PED-ANOVA" (arXiv 2601.20800).
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from autotune.plugins.trials import Trials
from autotune.report.history import best_value
from autotune.report.words import leaves

ENOUGH_TRIALS = 12
"""Fewer trials than this say nothing about importance."""

_TOP_TRIALS = 5
"""PED-ANOVA wants at least so many trials among the good ones (Optuna's documentation)."""


@dataclass(frozen=True)
class Importance:
    """Shares of importance, or the reason why there are none.

    Args:
        shares: by hyperparameter, largest first; they sum to 1.
        trials: how many trials it rests on.
        top: the share of them that counts as good.
        missing: why there is nothing to show, for people (None: there is).
    """

    shares: tuple[tuple[str, float], ...]
    trials: int
    top: float
    missing: str | None = None


def importance(trials: Trials) -> Importance:
    """How much each hyperparameter decides whether a trial is among the best, by the best
    value of the primary objective that it reached. Trials without a value are left out."""
    measured = [
        (trial, trials.objective.sign * value)
        for trial in trials.all.values()
        if (value := best_value(trials, trial.number)) is not None
    ]
    count = len(measured)
    if count < ENOUGH_TRIALS:
        missing = (
            f"Only {count} trials have a value; importance needs at least {ENOUGH_TRIALS} to "
            f"mean anything."
        )
        return Importance((), count, 0.0, missing)
    top = min(0.5, max(0.1, _TOP_TRIALS / count))
    rows = [_parameters(trials, trial.number) for trial, _ in measured]
    shares = _ped_anova(rows, [score for _, score in measured], top)
    if not any(share > 0 for _, share in shares):
        return Importance((), count, top, "No hyperparameter took two different values.")
    return Importance(shares, count, top)


def _parameters(trials: Trials, number: int) -> dict[str, float | str]:
    """The active hyperparameters of a trial: numbers on the encoded axis (so that a log scale
    counts as such), options and categories as text."""
    trial = trials[number]
    values = dict(leaves(trial.configuration))
    found: dict[str, float | str] = {}
    for index, slot in enumerate(trials.space.slots):
        if not trial.mask[index]:
            continue
        value = values.get(slot.path)
        numeric = isinstance(value, int | float) and not isinstance(value, bool)
        key = _name(slot.path, values)
        found[key] = float(min(1.0, max(0.0, trial.encoded[index]))) if numeric else str(value)
    return found


def _name(path: str, values: dict[str, Any]) -> str:
    """A slot's name, with the option it belongs to: the learning rates of two optimizers are
    two hyperparameters."""
    parent = path.rpartition(".")[0]
    while parent:
        if isinstance(values.get(parent), str):
            return f"{path} ({values[parent]})"
        parent = parent.rpartition(".")[0]
    return path


def _ped_anova(
    rows: Sequence[dict[str, float | str]], scores: Sequence[float], top: float
) -> tuple[tuple[str, float], ...]:
    import optuna
    from optuna.distributions import (
        BaseDistribution,
        CategoricalDistribution,
        FloatDistribution,
    )
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    levels: dict[str, list[str]] = {}
    mixed: dict[str, BaseDistribution] = {}
    for row in rows:
        for name, value in row.items():
            if isinstance(value, str):
                seen = levels.setdefault(name, [])
                if value not in seen:
                    seen.append(value)
            else:
                mixed[name] = FloatDistribution(0.0, 1.0)
    mixed.update({name: CategoricalDistribution(sorted(seen)) for name, seen in levels.items()})
    logger = logging.getLogger("optuna")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            study = optuna.create_study(storage=optuna.storages.InMemoryStorage())
            for row, score in zip(rows, scores, strict=True):
                parameters = {
                    name: str(value) if name in levels else value for name, value in row.items()
                }
                study.add_trial(
                    optuna.trial.create_trial(
                        params=parameters,
                        distributions={name: mixed[name] for name in parameters},
                        value=score,
                    )
                )
            evaluator = PedAnovaImportanceEvaluator(target_quantile=top)
            raw = evaluator.evaluate(study)
            if not any(value > 0 for value in raw.values()):
                return ()
            shares = get_param_importances(study, evaluator=evaluator)
    finally:
        logger.setLevel(before)
    return tuple(
        sorted(
            ((name, share) for name, share in shares.items() if math.isfinite(share)),
            key=lambda item: -item[1],
        )
    )

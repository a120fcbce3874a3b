"""How likely a candidate keeps the limits on its curves, from forecasts of the constrained metrics.

The acquisition is multiplied with this probability, and while nothing is known that keeps all
limits it is the acquisition (Gelbart et al. 2014, Bayesian Optimization with Unknown Constraints,
1403.5607, section 4). Metrics are taken as independent of each other.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autotune.plugins.constraints import Constraint
from autotune.plugins.search import (
    FloatArray,
    Forecast,
    ForecastFunction,
    Objective,
    Query,
    SearchContext,
)
from autotune.plugins.trials import Trials


def limited_curves(context: SearchContext, trials: Trials) -> list[tuple[Constraint, Objective]]:
    """The constraints on curves, with what is known of the metric. A metric that autotune does not
    know is one of them once a trial has reported it while it trained."""
    if not context.constraints:
        return []
    curves = {o.name: o for o in context.measured if o.kind == "curve"}
    limits = [(c, curves[c.name]) for c in context.constraints if c.name in curves]
    return [limit for limit in limits if _reported(limit[1].name, trials)]


def _reported(name: str, trials: Trials) -> bool:
    return any(name in trial.metrics.names for trial in trials.all.values())


def likely_kept(
    limits: Sequence[tuple[Constraint, Objective]],
    forecast: ForecastFunction,
    queries: Sequence[Query],
) -> FloatArray:
    """Probability to keep all of the limits, (queries,)."""
    found = np.ones(len(queries))
    forecasts: dict[str, Forecast] = {}
    for constraint, objective in limits if queries else ():
        if objective.name not in forecasts:
            forecasts[objective.name] = forecast(queries, objective.name)
        below = forecasts[objective.name].probability_below(objective.sign * constraint.bound)
        less_is_kept = constraint.wants_less == (objective.sign > 0)
        found *= below if less_is_kept else 1.0 - below
    return found

"""Search on recorded learning curves; skipped where the folder of tables is missing."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from recorded import CURVES, load, regret
from simulator import Simulator
from spaces import context, search

from autotune.plugins.search import Budget, FloatArray, Observed
from autotune.space import Configuration

TABLES = (
    "taskset_patch32_GRU64_avg_bs128",
    "lcbench_surrogate_168868",
    "lcbench_surrogate_189873",
    "deepobs_fmnist_2c2d",
)
TRAINED = 8
"""The budget, in trials trained to the horizon."""


def searched(table: str, seed: int, policy: str) -> FloatArray:
    """Regret after each unit."""
    space, curves, objective = load(table, seed)
    horizon = curves.shape[1]
    found = context(
        Budget(units=TRAINED * horizon),
        (objective,),
        space=space,
        horizon=horizon,
        seed=seed,
        workers=1,
    )

    def curve(configuration: Configuration, step: int) -> Mapping[str, float]:
        return {"value": float(curves[space.row(configuration), step - 1])}

    simulator = Simulator(search(found, policy), curve)
    simulator.run()
    values = [e.metrics["value"] for e in simulator.events if isinstance(e, Observed)]
    return regret(np.array(values), curves, objective.sign)


@pytest.mark.skipif(not CURVES.is_dir(), reason=f"no recorded curves in {CURVES}")
def test_freeze_thaw_needs_half_the_units_of_random_search_on_recorded_tables() -> None:
    half: list[float] = []
    whole: list[float] = []
    for table in TABLES:
        for seed in range(2):
            thawing = searched(table, seed, "freeze_thaw")
            half.append(float(thawing[len(thawing) // 2 - 1]))
            whole.append(float(searched(table, seed, "random_search")[-1]))
    assert np.mean(half) < 0.7 * np.mean(whole), (half, whole)

"""Freeze-thaw inside Ray Tune, for people who keep their ``Tuner``.

    from autotune.integrations.ray_tune import FreezeThawScheduler, ProposerSearch

    search = ProposerSearch(horizon=50)
    tuner = tune.Tuner(
        trainable,
        param_space={"lr": tune.loguniform(1e-5, 1e-1), "width": tune.randint(16, 257)},
        tune_config=tune.TuneConfig(
            metric="validation_loss", mode="min", num_samples=100,
            search_alg=search, scheduler=FreezeThawScheduler(search), reuse_actors=True,
        ),
    )

`ProposerSearch` alone, with any of Tune's schedulers, is the proposer alone.
"""

import os

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when Ray is imported

from autotune.integrations.ray_tune.scheduler import FreezeThawScheduler
from autotune.integrations.ray_tune.searcher import ProposerSearch

__all__ = ["FreezeThawScheduler", "ProposerSearch"]

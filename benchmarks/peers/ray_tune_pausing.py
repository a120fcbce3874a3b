"""Ray Tune as it runs: its `Tuner`, a scheduler that pauses and resumes, a `Trainable` class whose
state is saved and loaded. `max_concurrent_trials` counts paused trials as running and would never
resume one, so the one worker is the cluster's one CPU.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"

import ray
from ray import tune
from ray.tune.schedulers import TrialScheduler

WIDTH = 512
MOST = 200
"""Segments that are measured, at most: an experiment of thousands takes Tune very long."""


class Megabyte(tune.Trainable):
    """A linear map with 1 MB of parameters under AdamW, on four samples."""

    def setup(self, config: dict[str, Any]) -> None:
        """A fresh model."""
        torch.set_num_threads(1)
        generator = torch.Generator().manual_seed(0)
        self.inputs = torch.randn(4, WIDTH, generator=generator)
        self.targets = torch.arange(4)
        self.model = nn.Linear(WIDTH, WIDTH, bias=False)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=config["learning_rate"], fused=True
        )

    def step(self) -> dict[str, float]:
        """One step, and the loss after it."""
        began = time.perf_counter()
        self.optimizer.zero_grad()
        functional.cross_entropy(self.model(self.inputs), self.targets).backward()
        self.optimizer.step()
        with torch.no_grad():
            loss = float(functional.cross_entropy(self.model(self.inputs), self.targets))
        return {"loss": loss, "trained": time.perf_counter() - began}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """The model's and the optimizer's state."""
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save(state, Path(checkpoint_dir) / "state.pt")

    def load_checkpoint(self, checkpoint: str | None) -> None:
        """Go on from `save_checkpoint`."""
        assert checkpoint is not None
        state = torch.load(Path(checkpoint) / "state.pt", weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begin another trial in this actor."""
        self.setup(new_config)
        return True


class Pausing(TrialScheduler):
    """Every trial pauses after its first unit; whenever two more have, the oldest goes on."""

    def __init__(self, trials: int) -> None:
        super().__init__()
        self.trials = trials
        self.waiting: deque[Any] = deque()
        self.paused: deque[Any] = deque()
        self.chosen: Any = None
        self.started = self.resumed = 0
        self.over = False
        self.ended = time.perf_counter()
        self.overheads: list[float] = []

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Pause after one unit, stop after two; how long this one took beside its training."""
        now = time.perf_counter()
        overhead, self.ended = now - self.ended - result["trained"], now
        if result["training_iteration"] == 1:
            self.started += 1
            self.paused.append(trial)
            return self.PAUSE
        if self.started >= self.trials // 2:
            self.overheads.append(overhead)
        self.chosen = None
        self.resumed += 1
        self.over = self.resumed == self.trials // 2 or len(self.overheads) == MOST
        return self.STOP

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """The oldest paused trial when it is its turn, else a new one. The same until it runs."""
        due = self.resumed < self.started // 2
        if self.chosen is None and due and self.paused[0].status == "PAUSED":
            self.chosen = self.paused.popleft()
        if self.chosen is not None:
            return self.chosen if self.chosen.status in ("PAUSED", "PENDING") else None
        while self.waiting and self.waiting[0].status != "PENDING":
            self.waiting.popleft()
        return self.waiting[0] if self.waiting else None

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """It waits for its turn."""
        self.waiting.append(trial)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """No trial fails."""

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Nothing more to note."""

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Nothing more to note."""

    def debug_string(self) -> str:
        """For Tune's reports."""
        return f"{self.started} started, {self.resumed} resumed"


class Over(tune.Stopper):
    """Ends the experiment when nothing is left to resume."""

    def __init__(self, scheduler: Pausing) -> None:
        self.scheduler = scheduler

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No trial by itself."""
        return False

    def stop_all(self) -> bool:
        """Whether the scheduler is through."""
        return self.scheduler.over


def race(trials: int, reuse_actors: bool, folder: Path) -> list[float]:
    """Seconds of overhead of each resumed segment in the second half of an experiment."""
    ray.init(
        num_cpus=1,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parents[1])}},
    )
    scheduler = Pausing(trials)
    try:
        tune.Tuner(
            tune.with_resources(Megabyte, {"cpu": 1}),
            param_space={"learning_rate": tune.loguniform(1e-5, 1e-2)},
            tune_config=tune.TuneConfig(
                metric="loss",
                mode="min",
                num_samples=trials,
                scheduler=scheduler,
                reuse_actors=reuse_actors,
            ),
            run_config=tune.RunConfig(
                storage_path=str(folder),
                stop=Over(scheduler),
                checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
                verbose=0,
            ),
        ).fit()
    finally:
        ray.shutdown()
    return scheduler.overheads

"""Tasks for the tests of studies: fast, exact to the bit, and bad where a configuration says so."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autotune.plugins import ModelInfo
from autotune.train.task import NotFinite, Run, RunContext, Task, task


class QuickRun(Run):
    """A curve that falls to a level set by the learning rate, with noise from a generator of
    its own, around a linear model that remembers it."""

    def __init__(self, configuration: Mapping[str, Any], context: RunContext) -> None:
        self.configuration = configuration
        self.generator = torch.Generator().manual_seed(context.seed)
        self.network = nn.Linear(int(configuration.get("width", 4)), 1)
        nn.init.constant_(self.network.weight, 1.0)
        nn.init.constant_(self.network.bias, 0.0)
        self.units = 0

    @property
    def step(self) -> int:
        return self.units

    def train(self) -> Mapping[str, float]:
        time.sleep(float(os.environ.get("QUICK_SECONDS", "0")))
        self.misbehave(self.configuration.get("mood", "good"))
        self.units += 1
        noise = torch.randn((), generator=self.generator).item()
        distance = abs(math.log10(self.configuration["learning_rate"]) + 2)
        loss = 0.2 + 0.1 * distance + math.exp(-self.units / 3) + 0.001 * noise
        with torch.no_grad():
            self.network.bias.fill_(loss)
        return {"validation_loss": self.network.bias.item(), "noise": noise}

    def misbehave(self, mood: str) -> None:
        if mood == "raise":
            raise ValueError("the user's model is broken")
        if mood == "nan" and self.units == 1:
            raise NotFinite("validation_loss is nan at step 2")
        if mood == "die" and self.units == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if mood == "hang" and self.units == 1:
            time.sleep(3600)
        if mood == "die_once" and self.units == 1:
            flag = Path(os.environ["QUICK_FLAG"])
            if not flag.exists():
                flag.touch()
                os.kill(os.getpid(), signal.SIGKILL)

    def freeze(self) -> dict[str, Any]:
        return {
            "units": self.units,
            "network": self.network.state_dict(),
            "generator": self.generator.get_state(),
        }

    def thaw(self, state: Mapping[str, Any]) -> None:
        self.units = state["units"]
        self.network.load_state_dict(state["network"])
        self.generator.set_state(state["generator"])

    def static(self) -> Mapping[str, float]:
        return {"parameters": sum(p.numel() for p in self.network.parameters())}

    def evaluate(self, evaluation: Mapping[str, Any], part: str) -> Mapping[str, float]:
        time.sleep(float(os.environ.get("QUICK_SECONDS", "0")))
        smoothing = evaluation.get("smoothing", 0.5)
        loss = self.network.bias.item() + (smoothing - 0.3) ** 2
        return {"shifted_accuracy": math.exp(-loss) - 0.01 * (part == "report")}

    def latency(self, evaluation: Mapping[str, Any]) -> tuple[float, float]:
        time.sleep(float(os.environ.get("QUICK_SECONDS", "0")))
        return 1.0 + self.network.in_features / 16, 0.01

    def test(self, evaluation: Mapping[str, Any]) -> Mapping[str, float]:
        if "QUICK_TESTS" in os.environ:  # who looked at the test split, and when
            with open(os.environ["QUICK_TESTS"], "a") as log:
                log.write(f"{self.units} {dict(self.configuration)} {dict(evaluation)}\n")
        return {"test_loss": self.network.bias.item() + 0.01}

    def model(self) -> nn.Module:
        return self.network.eval()


class Quick(Task):
    """One unit takes ``QUICK_SECONDS`` (from the environment; default 0)."""

    def open(self, configuration: Mapping[str, Any], context: RunContext) -> Run:
        return QuickRun(configuration, context)

    def model_info(self, configuration: Mapping[str, Any]) -> ModelInfo | None:
        return ModelInfo(pretrained=False, layer_types={"Linear": 1}, parameter_shapes={})

    def fingerprint(self) -> str:
        return os.environ.get("QUICK_DATA", "quick data")


@task
def quick() -> Quick:
    return Quick()


class SeldomRun(QuickRun):
    """Measures its ``error`` after every third unit only."""

    def train(self) -> Mapping[str, float]:
        metrics = super().train()
        error = {"error": self.network.in_features / 16} if self.units % 3 == 0 else {}
        return {**metrics, **error}


class Seldom(Quick):
    def open(self, configuration: Mapping[str, Any], context: RunContext) -> Run:
        return SeldomRun(configuration, context)


@task
def seldom() -> Seldom:
    return Seldom()

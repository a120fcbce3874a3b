"""The task that `chaos.py` trains: a small network, a unit of some hundredths of a second, and a
line in a file for every unit that any process has trained, recorded or not."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from autotune.train.task import Run, RunContext, Task, task


class ChaosRun(Run):
    """Least squares by Adam; all of its state is frozen."""

    def __init__(self, configuration: Mapping[str, Any], context: RunContext) -> None:
        self.seed = context.seed
        self.generator = torch.Generator().manual_seed(context.seed)
        self.network = nn.Linear(16, 1)
        with torch.no_grad():
            self.network.weight.copy_(torch.randn(1, 16, generator=self.generator))
            self.network.bias.zero_()
        rate = configuration["learning_rate"]
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=rate)
        self.units = 0

    @property
    def step(self) -> int:
        """Units trained."""
        return self.units

    def train(self) -> Mapping[str, float]:
        """One unit."""
        time.sleep(float(os.environ.get("CHAOS_SECONDS", "0")))
        inputs = torch.randn(32, 16, generator=self.generator)
        loss = (self.network(inputs) - inputs.sum(dim=1, keepdim=True)).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.units += 1
        line = f"{os.getpid()} {self.seed} {self.units}\n".encode()
        log = os.open(os.environ["CHAOS_LOG"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(log, line)
        os.close(log)
        return {"validation_loss": loss.item()}

    def freeze(self) -> dict[str, Any]:
        """Network, optimizer, generator."""
        return {
            "units": self.units,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
        }

    def thaw(self, state: Mapping[str, Any]) -> None:
        """As it was frozen."""
        self.units = state["units"]
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])

    def model(self) -> nn.Module:
        """The network."""
        return self.network.eval()


class Chaos(Task):
    """Opens `ChaosRun`s."""

    def open(self, configuration: Mapping[str, Any], context: RunContext) -> Run:
        """A run of its own."""
        return ChaosRun(configuration, context)

    def fingerprint(self) -> str:
        """The same for all."""
        return "chaos"


@task
def chaos() -> Chaos:
    """For the study file."""
    return Chaos()

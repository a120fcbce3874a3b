"""A small `TorchTask` that one of a team's workers may spoil."""

from __future__ import annotations

import os
import signal

import torch
from torch import nn
from torch.nn import functional

from autotune.train import Data, TaskError, TorchTask


class Spoilt(TorchTask):
    def open(self, configuration, context):
        asked = configuration["architecture"]
        bad = asked.get("bad")
        alone_or_second = context.team is None or context.team.rank == 1
        if bad == "raise" and alone_or_second:
            raise TaskError("spoilt by the second")
        if bad == "kill" and alone_or_second:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().open(configuration, context)


def network(architecture):
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 2))


def task() -> TorchTask:
    inputs = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    pairs = inputs, (inputs[:, 0] > 0).long()
    return Spoilt(network, Data(train=pairs, validation=pairs), functional.cross_entropy)

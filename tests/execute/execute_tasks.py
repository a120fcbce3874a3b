# ruff: noqa: NPY002  the global generators are used on purpose
"""Tasks for the tests of executors: small, and bad in whatever way a configuration asks for."""

from __future__ import annotations

import errno
import math
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from autotune.train import NotFinite, Run, Task, Trainable, task


class SmallRun(Run):
    """A linear model trained on random batches: every generator of the process matters."""

    def __init__(self, configuration, context):
        self.configuration, self.context = configuration, context
        torch.manual_seed(context.seed)
        np.random.seed(context.seed)
        random.seed(context.seed)
        self.network = nn.Linear(8, 1)
        # by hand: the first step of a torch optimizer costs every new process a second
        self.momentum = [torch.zeros_like(p) for p in self.network.parameters()]
        self.units = 0

    @property
    def step(self):
        return self.units

    def train(self):
        self.misbehave(self.configuration.get("bad"), self.units + 1)
        noise = float(np.random.rand()) + random.random()
        inputs = torch.randn(32, 8)
        loss = (self.network(inputs) - inputs.sum(1, keepdim=True)).square().mean()
        gradients = torch.autograd.grad(loss, list(self.network.parameters()))
        with torch.no_grad():
            for weight, momentum, gradient in zip(
                self.network.parameters(), self.momentum, gradients, strict=True
            ):
                momentum.mul_(0.9).add_(gradient)
                weight.sub_(self.configuration["rate"] * momentum)
        self.units += 1
        return {"loss": loss.item(), "noise": noise}

    def misbehave(self, bad, step):
        if bad is None or step != self.configuration.get("at", 2):
            return
        if bad == "raise":
            raise ValueError("the model is\nbroken")
        if bad == "not_finite":
            raise NotFinite("loss is nan")
        if bad == "out_of_memory":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        if bad == "allocate":
            torch.empty(1 << 60)
        if bad == "exit":
            raise SystemExit(3)
        if bad == "disk":
            raise OSError(errno.ENOSPC, "No space left on device")
        if bad == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if bad == "fork_and_kill":
            if os.fork() == 0:
                time.sleep(60)  # holds all that its parent had open
                os._exit(0)
            os.kill(os.getpid(), signal.SIGKILL)
        if bad == "kill_once":
            flag = Path(self.configuration["flag"])
            if not flag.exists():
                flag.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        if bad == "sleep":
            time.sleep(self.configuration["seconds"])
        if bad == "pretrain":
            folder = self.context.folder / "pretrained"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "base.safetensors").write_bytes(b"made once")
        if bad == "print":
            print("hello from the task", flush=True)

    def freeze(self):
        python = random.getstate()
        return {
            "units": self.units,
            "network": self.network.state_dict(),
            "momentum": [momentum.clone() for momentum in self.momentum],
            "torch": torch.get_rng_state(),
            "numpy": torch.from_numpy(np.random.get_state()[1].astype(np.int64)),
            "numpy_position": int(np.random.get_state()[2]),
            "python": [python[0], list(python[1]), python[2]],
        }

    def thaw(self, state):
        self.units = state["units"]
        self.network.load_state_dict(state["network"])
        self.momentum = [momentum.clone() for momentum in state["momentum"]]
        torch.set_rng_state(state["torch"])
        numpy = state["numpy"].numpy().astype(np.uint32)
        np.random.set_state(("MT19937", numpy, state["numpy_position"]))
        version, values, gauss = state["python"]
        random.setstate((version, tuple(values), gauss))

    def static(self):
        return {"parameters": 9}

    def evaluate(self, evaluation, part):
        torch.manual_seed(1)  # what a careless task does
        np.random.seed(1)
        random.seed(1)
        shift = evaluation.get("shift", 0.0) + (part == "report")
        return {"shifted": self.network.weight.sum().item() + shift}

    def latency(self, evaluation):
        return 1.5, 0.25

    def test(self, evaluation):
        return {"test_loss": self.network.bias.item()}


class SmallTask(Task):
    def open(self, configuration, context):
        if configuration.get("bad") == "open":
            raise ValueError("no such architecture")
        if configuration.get("bad") == "metrics":
            return WrongMetrics(configuration, context)
        return SmallRun(configuration, context)


class WrongMetrics(SmallRun):
    def train(self):
        super().train()
        return self.configuration["metrics"]


class Loop(Trainable):
    """A user's own loop."""

    def setup(self, configuration, context):
        self.value = configuration["rate"]

    def step(self):
        self.value *= 0.5
        return {"loss": self.value + random.random()}

    def state(self):
        return {"value": self.value}

    def load(self, state):
        self.value = state["value"]


small = SmallTask()
not_a_task = {"a": "dictionary"}


@task
def marked():
    return SmallTask()


@task
def marked_wrongly():
    return math.pi


def unmarked():
    return SmallTask()

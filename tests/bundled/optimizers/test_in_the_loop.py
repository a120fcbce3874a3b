"""Every bundled optimizer in the training loop: accumulated gradients, clipping, bfloat16, and
float16 with its gradient scaling."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from autotune.plugins import discovery
from autotune.train import Data, RunContext, TaskError, TorchTask

NAMES = sorted(
    record.bare
    for record in discovery.records("optimizer")
    if record.distribution == discovery.OURS
)
GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(32, 6, generator=GENERATOR, dtype=torch.float64)
TARGETS = (INPUTS[:, 0] * INPUTS[:, 1] > 0).long()
STEPS = 4
ROUGH = ("q_galore", "soap")
"""Codes of four bits jump, and eigenvectors of what is singular are anybody's choice (a gradient
of eight samples has few): rounding shows, by up to 0.56 of the way."""


class Network(nn.Module):
    """Linear layers and a norm, without anything random."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.first = nn.Linear(6, 12, dtype=dtype)
        self.norm = nn.LayerNorm(12, dtype=dtype)
        self.second = nn.Linear(12, 2, dtype=dtype)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.second(self.norm(self.first(inputs)).tanh())


def opened(name: str, dtype: torch.dtype = torch.float64, **further: Any) -> Any:
    split = (INPUTS.to(dtype), TARGETS)
    task = TorchTask(
        model=lambda architecture: Network(dtype),
        data=Data(split, split),
        loss=functional.cross_entropy,
        unit="step",
        batches_per_unit=further.get("accumulation_steps", 1),
    )
    configuration = {"optimizer": {"name": name}, "batch_size": 8, **further}
    return task.open(configuration, RunContext(seed=1, horizon=STEPS))


def weights(run: Any) -> Tensor:
    return torch.cat([p.detach().flatten() for p in run._model.parameters()])


@pytest.mark.parametrize("name", NAMES)
def test_accumulated_gradients_are_those_of_the_whole_batch(name: str) -> None:
    whole, parts = opened(name), opened(name, batch_size=2, accumulation_steps=4)
    start = weights(whole)
    for _ in range(STEPS):
        whole.train()
        parts.train()
        apart, way = weights(whole) - weights(parts), weights(whole) - start
        assert apart.norm() <= (0.7 if name in ROUGH else 1e-8) * way.norm()
    assert way.norm() > 0


def seen(run: Any, steps: int = 2) -> list[float]:
    """Norms of the gradients that the optimizer is given, at each evaluation."""
    norms: list[float] = []
    parameters, step = list(run._model.parameters()), run._stepper.optimizer.step

    def note() -> None:
        norms.append(torch.stack([p.grad.norm() for p in parameters]).norm().item())

    def stepping(closure: Any = None) -> Any:
        if "closure" not in run._stepper._needs:
            note()
            return step() if closure is None else step(closure)

        def noted() -> Any:
            loss = closure()
            note()
            return loss

        return step(noted)

    run._stepper.optimizer.step = stepping
    for _ in range(steps):
        run.train()
    return norms


@pytest.mark.parametrize("name", NAMES)
def test_sees_gradients_only_after_they_were_clipped(name: str) -> None:
    assert max(seen(opened(name))) > 0.02
    for further in ({}, {"batch_size": 4, "accumulation_steps": 2}):
        run = opened(name, gradient_clip_norm=0.01, **further)
        assert max(seen(run)) < 0.01 * (1 + 1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_computes_in_bfloat16_and_keeps_float32(name: str) -> None:
    run = opened(name, torch.float32, mixed_precision="bfloat16", accumulation_steps=2)
    exact = opened(name, torch.float32, accumulation_steps=2)
    start = weights(run)
    for _ in range(2):
        run.train()
        exact.train()
    moved = (weights(run) - start).norm()
    assert 0 < moved < 10 * (weights(exact) - start).norm()
    assert all(p.dtype == torch.float32 for p in run._model.parameters())
    state = run._stepper.optimizer.state_dict()["state"]
    kept = [v for of in state.values() for v in of.values() if isinstance(v, Tensor)]
    assert all(value.dtype not in (torch.bfloat16, torch.float16) for value in kept)
    assert all(value.isfinite().all() for value in kept if value.is_floating_point())


@pytest.mark.parametrize("name", NAMES)
def test_trains_parameters_of_bfloat16(name: str) -> None:
    """With the exactness of their state: but for torch's own rules, of float32."""
    run = opened(name, torch.bfloat16)
    start = weights(run)
    for _ in range(STEPS):
        run.train()
    assert weights(run).dtype == torch.bfloat16
    assert weights(run).isfinite().all()
    assert not torch.equal(weights(run), start)
    state = run._stepper.optimizer.state_dict()["state"]
    # OASIS remembers weights as they were.
    kept = [v for of in state.values() for key, v in of.items() if key != "weights"]
    if name not in ("sgd", "adamw", "sam"):
        assert all(not isinstance(v, Tensor) or v.dtype != torch.bfloat16 for v in kept)
    frozen, again = run.freeze(), opened(name, torch.bfloat16)
    again.thaw(frozen)
    assert run.train() == again.train()
    assert torch.equal(weights(run), weights(again))


@pytest.mark.parametrize("name", NAMES)
def test_scaled_gradients_of_float16(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The optimizer is given gradients without the scale, a step that overflows leaves weights
    and state alone, and the scale is frozen with the rest."""

    def scaled(scale: float) -> Any:
        scaler = partial(torch.amp.grad_scaler.GradScaler, init_scale=scale)
        monkeypatch.setattr(torch.amp, "GradScaler", scaler)
        return opened(name, torch.float32, mixed_precision="float16")

    if discovery.get("optimizer", name).needs & {"closure", "second_order"}:
        with pytest.raises(TaskError, match="use bfloat16 or off"):
            scaled(1.0)
        return
    exact = seen(opened(name, torch.float32), 1)
    assert seen(scaled(2.0**10), 1) == pytest.approx(exact, rel=0.02)

    run = scaled(2.0**21)  # a sixteenth of which is more than float16 holds
    start = weights(run)
    run.train()
    assert torch.equal(weights(run), start)
    state = run._stepper.optimizer.state_dict()["state"]
    assert not any(value.any() for of in state.values() for value in of.values())
    for _ in range(6):
        run.train()
    frozen, again = run.freeze(), scaled(1.0)
    again.thaw(frozen)
    assert run.train() == again.train()
    assert torch.equal(weights(run), weights(again))
    assert weights(run).isfinite().all()
    assert not torch.equal(weights(run), start)

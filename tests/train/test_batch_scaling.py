"""The rate as a function of the batch size: the rules, the curvature behind one, the loop."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_freeze_thaw import same
from torch import Tensor, nn
from torch.nn import functional
from train_tasks import configuration, images, small_task

from autotune.train import Data, RunContext, TaskError, TorchTask
from autotune.train.batch_scaling import (
    Curvature,
    fitted,
    lanczos_largest,
    measure_curvature,
    rate_factor,
)


def test_rules() -> None:
    assert rate_factor("none", 64, 16) == 1.0
    assert rate_factor("linear", 64, 16) == 4.0
    assert rate_factor("square_root", 64, 16) == 2.0
    noisy = Curvature(largest=1e-6, noise=100.0, samples=10**9)
    # ruled by noise alone, curvature falls with the root of the batch
    assert rate_factor("random_matrix", 64, 16, noisy) == pytest.approx(2.0, rel=1e-3)
    spiked = Curvature(largest=10.0, noise=1000.0, samples=10**9)
    expected = (10 + 1000 / 16 / 10) / (10 + 1000 / 64 / 10)
    assert rate_factor("random_matrix", 64, 16, spiked) == pytest.approx(expected, rel=1e-6)
    root = rate_factor("random_matrix_adaptive", 64, 16, spiked)
    assert root == pytest.approx(math.sqrt(expected), rel=1e-6)
    # a rate stops growing where the curvature is that of the data itself
    calm = Curvature(largest=10.0, noise=0.0, samples=10**9)
    assert rate_factor("random_matrix", 64, 16, calm) == 1.0


@pytest.mark.parametrize("largest", [8.0, 4.0, 0.5])
def test_the_formula_is_what_random_matrices_do(largest: float) -> None:
    """A spike in symmetric Gaussian noise of P = 500 and element variance sigma^2 / b'."""
    size, samples, noise = 500, 10_000, 100.0
    rng = np.random.default_rng(0)
    for batch in (10, 40):
        variance = noise / size * (1 / batch - 1 / samples)
        matrix = rng.standard_normal((size, size)) * math.sqrt(variance)
        noisy = (matrix + matrix.T) / math.sqrt(2)
        noisy[0, 0] += largest
        found = np.linalg.eigvalsh(noisy)[-1]
        expected = Curvature(largest, noise, samples).of_batch(batch)
        assert found == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(("largest", "noise"), [(8.0, 100.0), (1.0, 40.0), (3.0, 0.0)])
def test_the_fit_finds_what_it_is_shown(largest: float, noise: float) -> None:
    """Also where the small batches show noise alone, or there is none."""
    true = Curvature(largest, noise, 5000)
    found = fitted((10, true.of_batch(10)), (80, true.of_batch(80)), 5000)
    assert found.largest == pytest.approx(largest, rel=1e-9)
    assert found.noise == pytest.approx(noise, rel=1e-9, abs=1e-9)


def test_lanczos() -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(60, 60, generator=generator, dtype=torch.float64)
    matrix = matrix + matrix.T + 30 * torch.eye(60, dtype=torch.float64)[0].diag()

    def multiply(parts: Any) -> list[Tensor]:
        product = matrix @ torch.cat([part.flatten() for part in parts])
        return [product[:20].view(4, 5), product[20:]]

    start = [torch.randn(4, 5, dtype=torch.float64), torch.randn(40, dtype=torch.float64)]
    expected = torch.linalg.eigvalsh(matrix)[-1].item()
    assert lanczos_largest(multiply, start, 30) == pytest.approx(expected, rel=1e-8)
    once = lanczos_largest(lambda parts: [3 * part for part in parts], start, 5)
    assert once == pytest.approx(3.0), "an operator of one eigenvalue ends the recurrence"


class Logistic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.linear = nn.Linear(4, 3, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.linear(self.norm(inputs.flatten(1)[:, :4]))


def test_measured_curvature_is_that_of_the_hessian() -> None:
    """On all the data at once, against the whole matrix; buffers and generator stay."""
    torch.manual_seed(0)
    model = Logistic().double()
    inputs, targets = images(64, 0)
    data = Data((inputs.double(), targets), (inputs.double(), targets))
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    before = torch.get_rng_state()
    found = measure_curvature(
        model, functional.cross_entropy, data, 8, seed=1, device=torch.device("cpu")
    )
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())
    names = [name for name, _ in model.named_parameters()]
    shapes = [p.shape for p in model.parameters()]
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])

    def loss(flat: Tensor) -> Tensor:
        parts = [
            part.view(shape)
            for part, shape in zip(flat.split([s.numel() for s in shapes]), shapes, strict=True)
        ]
        copy = {name: value.clone() for name, value in buffers.items()}
        weights = dict(zip(names, parts, strict=True))
        outputs = torch.func.functional_call(model, {**weights, **copy}, (inputs.double(),))
        return functional.cross_entropy(outputs, targets)

    hessian = torch.autograd.functional.hessian(loss, flat)
    largest = torch.linalg.eigvalsh(hessian)[-1].item()
    # the large batch is 8 * 8 = 64 samples: all of them, where no noise is left
    assert found.of_batch(64) == pytest.approx(largest, rel=1e-6)
    assert found.samples == 64
    with pytest.raises(TaskError, match=r"Data\.train has 64; expected a smaller reference"):
        measure_curvature(
            model, functional.cross_entropy, data, 64, seed=1, device=torch.device("cpu")
        )


@pytest.mark.parametrize(("rule", "factor"), [("none", 1), ("linear", 4), ("square_root", 2)])
def test_the_loop_scales_the_rate(rule: str, factor: float, tmp_path: Path) -> None:
    """8 samples in 2 accumulated batches, for a rate tuned at 4."""
    chosen = configuration(
        learning_rate_scaling=rule, reference_batch_size=4, schedule={"name": "constant"}
    )
    run = small_task().open(chosen, RunContext(0, 4, folder=tmp_path))
    run.train()
    assert {group["lr"] for group in run._stepper.optimizer.param_groups} == {0.01 * factor}


def test_the_rate_follows_a_batch_size_that_a_schedule_governs(tmp_path: Path) -> None:
    chosen = configuration(
        learning_rate_scaling="linear", accumulation_steps=1, schedule={"name": "growing"}
    )
    run = small_task().open(chosen, RunContext(0, 12, folder=tmp_path))
    found = set()
    for _ in range(9):
        run.train()
        rate = run._stepper.optimizer.param_groups[0]["lr"]
        found.add((run._stepper._batch_size, rate / 0.01 / run._stepper._control.factor))
    # at the size's first step the rate is still that of the size before
    assert {size for size, _ in found} == {8, 16}
    assert sorted({round(ratio, 9) for _, ratio in found}) == [8 / 32, 16 / 32]


@pytest.mark.parametrize("rule", ["random_matrix", "random_matrix_adaptive"])
def test_curvature_is_measured_once_and_frozen(rule: str, tmp_path: Path) -> None:
    chosen = configuration(learning_rate_scaling=rule, reference_batch_size=4)
    task = small_task()
    context = RunContext(0, 6, folder=tmp_path)
    straight = task.open(chosen, context)
    state = None
    for _ in range(4):
        expected = straight.train()
        run = task.open(chosen, context)
        if state is not None:
            run.thaw(state)
        assert run.train() == expected
        state = run.freeze()
        assert same(state, straight.freeze())
    curvature = Curvature(**state["curvature"])
    rate = straight._stepper.optimizer.param_groups[0]["lr"]
    factor = rate_factor(rule, 16, 4, curvature)
    assert factor > 1.05
    assert rate == pytest.approx(0.01 * straight._stepper._control.factor * factor)


def test_mistakes_are_named() -> None:
    task = small_task(pretrained=None)
    with pytest.raises(TaskError, match="learning_rate_scaling: 'cubic' in the configuration"):
        task.open(configuration(learning_rate_scaling="cubic"), RunContext(0, 2))
    with pytest.raises(TaskError, match="reference_batch_size: 0 in the configuration"):
        task.open(configuration(reference_batch_size=0), RunContext(0, 2))

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return -outputs.square().mean()

    data = Data(images(40, 0), images(12, 1))
    linear = nn.Sequential(nn.Flatten(), nn.Linear(36, 3, bias=False))
    concave = TorchTask(model=lambda architecture: linear, data=data, loss=loss)
    chosen = {
        "optimizer": {"name": "sgd"},
        "learning_rate_scaling": "random_matrix",
        "reference_batch_size": 4,
    }
    with pytest.raises(TaskError, match=r"found largest curvatures of .* expected both above 0"):
        concave.open(chosen, RunContext(0, 2)).train()

"""The StableMax loss, and that training minimises it while measuring keeps the task's own."""

import math

import pytest
import torch

from autotune.plugins import ModelInfo, PluginError
from autotune.plugins.conformance import laboratory
from autotune.train import RunContext
from autotune_plugins.optimizers.perpgrad import PerpGrad, stablemax_cross_entropy


def by_hand(row, label):
    stretched = [x + 1 if x >= 0 else 1 / (1 - x) for x in row]
    return -math.log(stretched[label] / sum(stretched))


def test_stablemax_by_hand() -> None:
    rows, labels = [[2.0, -3.0, 0.0], [1.0, -1.0, 5.0], [0.5, 1.5, -0.5]], [1, 2, 0]
    logits = torch.tensor(rows, requires_grad=True)
    loss = stablemax_cross_entropy(logits, torch.tensor(labels))
    expected = sum(map(by_hand, rows, labels)) / 3
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    loss.backward()
    assert logits.grad.isfinite().all()
    ignoring = stablemax_cross_entropy(logits, torch.tensor([1, -100, 0]))
    assert ignoring.item() == pytest.approx(
        (by_hand(rows[0], 1) + by_hand(rows[2], 0)) / 2, rel=1e-6
    )


@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 5, 3)])
def test_stablemax_of_sequences(shape) -> None:
    logits = torch.randn(shape, dtype=torch.float64)
    targets = torch.arange(10).reshape(2, 5) % 3
    flat = (logits.transpose(1, 2) if shape[1] == 3 else logits).reshape(10, 3)
    expected = stablemax_cross_entropy(flat, targets.reshape(-1))
    torch.testing.assert_close(stablemax_cross_entropy(logits, targets), expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_stablemax_of_other_integers(dtype) -> None:
    logits = torch.randn(2, 200, dtype=torch.float64)
    targets = torch.tensor([7, 156])
    found = stablemax_cross_entropy(logits, targets.to(dtype))
    torch.testing.assert_close(found, stablemax_cross_entropy(logits, targets))


def test_stablemax_refuses_what_is_no_class() -> None:
    with pytest.raises(PluginError, match="needs logits of shape"):
        stablemax_cross_entropy(torch.zeros(4, 3), torch.zeros(4, 3))
    for strange in (-1, 3, 255):
        with pytest.raises(PluginError, match=f"the target {strange}; expected 0 to 2, or -100"):
            stablemax_cross_entropy(torch.zeros(2, 3), torch.tensor([0, strange]))
    info = ModelInfo(False, {}, {}, class_targets=False)
    assert "class logits" in str(PerpGrad.supports(info))


def losses(tmp_path, loss) -> dict[str, float]:
    bench = laboratory.BENCHES[0]
    configuration = laboratory.trial(PerpGrad, {**PerpGrad.space().default(), "loss": loss}, bench)
    context = RunContext(seed=0, horizon=4, folder=tmp_path)
    run = laboratory.task(bench, PerpGrad).open(configuration, context)
    return dict(run.train())


def test_training_minimises_the_chosen_loss(tmp_path) -> None:
    """Before the first step the weights agree: one is measured alike, trained on otherwise."""
    task, stable = losses(tmp_path, "task"), losses(tmp_path, "stablemax")
    assert task["validation_loss"] == stable["validation_loss"]
    assert task["training_loss"] != pytest.approx(stable["training_loss"], rel=1e-3)

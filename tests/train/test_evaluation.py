"""Measuring: metrics, shifted streams, test-time adaptation, latency, and the model handed back."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from train_tasks import SmallNet, configuration, images, small_data, small_task

from autotune.plugins import TTA
from autotune.train import Data, RunContext, TaskError, TorchTask
from autotune.train.data import TensorPairs
from autotune.train.evaluation import score, time_prediction
from autotune.train.torch_task import installed_plugin, name_classes


def trained(units: int = 3, **further: Any) -> Any:
    task = small_task(unit="epoch", **further)
    run = task.open(configuration(), RunContext(0, 4))
    for _ in range(units):
        metrics = run.train()
    return run, metrics


def accuracy(model: nn.Module, split: TensorPairs) -> float:
    with torch.no_grad():
        return (model(split.inputs).argmax(1) == split.targets).float().mean().item()


def test_the_model_scores_what_was_recorded() -> None:
    for adapter in ("full", "lora", "pissa", "series_bottleneck"):
        task = small_task(unit="epoch")
        run = task.open(configuration(adapter={"name": adapter}), RunContext(0, 4))
        metrics = run.train()
        model = run.model()
        assert not model.training
        assert accuracy(model, task.data.validation) == pytest.approx(
            metrics["validation_accuracy"]
        )
        if adapter != "series_bottleneck":  # folded in: the user's own architecture again
            assert model.state_dict().keys() == SmallNet(4).state_dict().keys()


def test_the_model_is_a_copy() -> None:
    run, _ = trained()
    before = run.freeze()["model"]["tensors"]["head.weight"]
    with torch.no_grad():
        run.model().head.weight.zero_()
    assert torch.equal(run.freeze()["model"]["tensors"]["head.weight"], before)


def test_no_adaptation_is_the_plain_forward_pass() -> None:
    run, _ = trained()
    for part in ("select", "report"):
        plain = run.evaluate({}, part)
        assert plain == run.evaluate({"tta": {"name": "none"}}, part)
        assert set(plain) == {"shifted_loss", "shifted_accuracy"}
    assert run.evaluate({}, "select") != run.evaluate({}, "report")
    adapted = run.evaluate({"tta": {"name": "batch_norm_statistics"}}, "select")
    assert adapted != run.evaluate({}, "select")


def test_parts_of_the_stream_add_up() -> None:
    run, _ = trained()
    model, stream = run.model(), run._data.shifted["far"]
    select, report = run.evaluate({}, "select"), run.evaluate({}, "report")
    # 50 samples in batches of 8: 7 batches; even ones hold 8 * 3 + 2, odd ones 8 * 3
    both = (26 * select["shifted_accuracy"] + 24 * report["shifted_accuracy"]) / 50
    assert both == pytest.approx(accuracy(model, stream))


def test_several_streams_are_adapted_to_one_by_one() -> None:
    resets: list[int] = []

    class Watching(TTA):
        name, summary, reference = "own", "", ""

        def prepare(self, model: nn.Module, source: Any) -> None:
            assert not model.training
            assert next(iter(source)).shape == (8, 1, 6, 6)
            self.model, self.seen = model, 0

        def predict(self, inputs: Any) -> Tensor:
            self.seen += 1
            with torch.no_grad():
                self.model.head.weight.mul_(1.0)
                return self.model(inputs)

        def reset(self) -> None:
            resets.append(self.seen)
            self.seen = 0

    streams = {"near": images(16, 5), "far": (images(32, 6)[0] * 3, images(32, 6)[1])}
    run, _ = trained(
        data=small_data(shifted=streams),
        get_plugin=lambda kind, name: Watching if name == "own" else installed_plugin(kind, name),
    )
    found = run.evaluate({"tta": {"name": "own"}}, "report")
    assert resets == [0, 1]
    each = [found["shifted_accuracy.near"], found["shifted_accuracy.far"]]
    assert found["shifted_accuracy"] == pytest.approx(sum(each) / 2)


def test_the_test_split_and_its_streams() -> None:
    run, _ = trained(
        metrics={"hits": lambda outputs, targets: (outputs.argmax(1) == targets).sum()}
    )
    found = run.test({"tta": {"name": "none"}})
    assert set(found) == {
        f"test_{shifted}{name}"
        for shifted in ("", "shifted_")
        for name in ("loss", "accuracy", "hits")
    }
    assert found["test_accuracy"] == pytest.approx(accuracy(run.model(), run._data.test))
    assert found["test_hits"] == 30 * found["test_accuracy"]


def test_without_streams_or_test_split_nothing_is_reported() -> None:
    run, _ = trained(data=small_data(shifted={}, shifted_test={}, test=None))
    assert run.evaluate({}, "select") == {}
    assert run.test({}) == {}
    assert run.latency({})[0] > 0


def test_latency_is_the_median_and_half_the_interquartile_range() -> None:
    calls = []

    def predict(inputs: Any) -> None:
        calls.append(inputs)
        time.sleep(0.002 if len(calls) % 2 else 0.006)

    median, spread = time_prediction(predict, "batch", torch.device("cpu"), seconds=0.1)
    assert 2.0 < median < 9.0
    assert 1.0 < spread < 5.0
    assert len(calls) >= 25


def test_latency_times_one_batch_of_the_stated_size() -> None:
    sizes = set()

    class Watching(SmallNet):
        def forward(self, inputs: Tensor) -> Tensor:
            sizes.add(len(inputs))
            return super().forward(inputs)

    task = small_task(
        model=lambda architecture: Watching(**architecture), latency_batch_size=5, pretrained=None
    )
    run = task.open(configuration(), RunContext(0, 4))
    sizes.clear()
    median, spread = run.latency({"tta": {"name": "tent"}})
    assert sizes == {5}
    assert median > 0
    assert spread >= 0


def test_parameters_are_those_of_the_deployed_model() -> None:
    total = sum(p.numel() for p in SmallNet(4).parameters())
    head = 12 * 3 + 3

    def static(adapter: str) -> Mapping[str, float]:
        return (
            small_task().open(configuration(adapter={"name": adapter}), RunContext(0, 4)).static()
        )

    assert static("full") == {"parameters": total, "trainable_parameters": total}
    assert static("lora")["parameters"] == total
    assert head < static("lora")["trainable_parameters"]
    assert static("series_bottleneck")["parameters"] > total


def test_metrics_see_the_whole_split_or_batch_after_batch() -> None:
    class Counting:
        """As torchmetrics' objects do."""

        def reset(self) -> None:
            self.batches, self.samples = 0, 0

        def update(self, outputs: Tensor, targets: Tensor) -> None:
            self.batches += 1
            self.samples += len(targets)

        def compute(self) -> Tensor:
            return torch.tensor(self.samples * 10 + self.batches)

    shapes = []

    def whole(outputs: Tensor, targets: Tensor) -> float:
        shapes.append((tuple(outputs.shape), tuple(targets.shape)))
        return 0.5

    _, metrics = trained(
        units=2,
        data=small_data(evaluation_batch_size=20),
        metrics={"counted": Counting(), "whole": whole},
    )
    assert metrics["counted"] == 302
    assert metrics["whole"] == 0.5
    assert shapes == [((30, 3), (30,))] * 2


def test_batch_size_of_evaluation_changes_no_score() -> None:
    _, whole = trained(units=1)
    _, parts = trained(units=1, data=small_data(evaluation_batch_size=7))
    assert parts["validation_loss"] == pytest.approx(whole["validation_loss"], rel=1e-6)
    assert parts["validation_accuracy"] == whole["validation_accuracy"]


@pytest.mark.parametrize(
    ("outputs", "targets", "expected"),
    [
        (torch.eye(3)[None].repeat(2, 1, 1), torch.tensor([[0, 1, 0], [0, -100, -100]]), 3 / 4),
        (torch.eye(3)[None, :, :, None], torch.tensor([[[0], [1], [0]]]), 2 / 3),
        (torch.eye(3), torch.tensor([0, 1, 2]), 1.0),
        (torch.zeros(3, 1), torch.zeros(3, 1), None),
        (torch.zeros(3), torch.zeros(3), None),
        (torch.zeros(3, 2), torch.zeros(3, dtype=torch.bool), None),
    ],
)
def test_accuracy_where_targets_are_classes(
    outputs: Tensor, targets: Tensor, expected: float | None
) -> None:
    pairs = [(outputs, targets)]
    found = score(lambda inputs: inputs, pairs, lambda o, t: o.sum() * 0, {}, torch.device("cpu"))
    assert found.get("accuracy") == (None if expected is None else pytest.approx(expected))


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.letters = nn.Embedding(11, 16)
        self.recurrent = nn.GRU(16, 16, batch_first=True)
        self.head = nn.Linear(16, 11)

    def forward(self, text: Tensor) -> Tensor:
        return self.head(self.recurrent(self.letters(text))[0])


def test_language_models() -> None:
    text = torch.arange(500).remainder(11)[: 480 + 1]
    split = text[:-1].reshape(40, 12), text[1:].reshape(40, 12)
    task = TorchTask(
        model=lambda architecture: Reader(),
        data=Data(train=split, validation=split, test=split, shifted={"same": split}),
        loss=lambda outputs, targets: functional.cross_entropy(
            outputs.flatten(0, 1), targets.flatten()
        ),
        metrics={"bits": lambda outputs, targets: outputs.numel()},
    )
    chosen = {"batch_size": 8, "optimizer": {"name": "adamw", "learning_rate": 0.02}}
    run = task.open(chosen, RunContext(0, 8))
    curve = [run.train() for _ in range(6)]
    assert curve[-1]["validation_accuracy"] > 0.9
    assert curve[-1]["bits"] == 40 * 12 * 11
    assert run.evaluate({}, "select")["shifted_accuracy"] > 0.9
    info = task.model_info(chosen)
    assert info.classification is False
    assert info.class_targets is True
    assert info.pretrained is False
    assert info.has("GRU")


def test_model_info_tells_what_plugins_ask() -> None:
    info = small_task().model_info({"architecture": {"width": 4}})
    assert info.classification
    assert info.pretrained
    assert info.shifted
    assert info.head == ("head",)
    assert info.layer_types["Linear"] == 2
    assert info.parameter_shapes["head.weight"] == (3, 12)
    alone = small_task(pretrained=None, data=small_data(shifted={}))
    info = alone.model_info({"architecture": {"width": 4}})
    assert not info.pretrained
    assert not info.shifted
    for name in ("lora", "pissa", "series_bottleneck"):
        assert installed_plugin("adapter", name).supports(info) is not None
    assert installed_plugin("adapter", "full").supports(info) is None


@pytest.mark.parametrize(
    ("outputs", "targets", "expected"),
    [
        ((4, 3), torch.zeros(4, dtype=torch.long), True),
        ((4, 7, 3), torch.zeros(4, 7, dtype=torch.int32), True),
        ((4, 3, 5, 6), torch.zeros(4, 5, 6, dtype=torch.uint8), True),
        ((4, 3), torch.zeros(4), False),
        ((4, 3), torch.zeros(4, dtype=torch.bool), False),
        ((4,), torch.zeros(4, dtype=torch.long), False),
        ((4, 3), torch.zeros(4, 3, dtype=torch.long), False),
        ((4, 5, 3), torch.zeros(4, 6, dtype=torch.long), False),
        ((4, 3), [torch.zeros(4, dtype=torch.long)], False),
    ],
)
def test_targets_that_name_classes(outputs: tuple[int, ...], targets: Any, expected: bool) -> None:
    assert name_classes(targets, torch.zeros(outputs)) is expected


def test_scores_need_samples() -> None:
    with pytest.raises(TaskError, match="no samples"):
        score(lambda inputs: inputs, [], lambda o, t: o.sum(), {}, torch.device("cpu"))

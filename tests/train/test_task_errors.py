"""A mistake in a task gets one message that says where and what was expected."""

from __future__ import annotations

from typing import Any

import cloudpickle
import pytest
import torch
from torch import nn
from torch.nn import functional
from train_tasks import SmallNet, configuration, images, small_data, small_task

from autotune.plugins import PluginError
from autotune.train import RunContext, TaskError, TorchTask

CONTEXT = RunContext(0, 4)


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in configuration().items() if name != key}


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (without("optimizer"), "no optimizer; add"),
        (configuration(optimizer="adamw"), "optimizer: 'adamw' in the configuration; expected a"),
        (configuration(adapter={"rank": 3}), "adapter: .* expected a mapping with a 'name'"),
        (configuration(batch_size=0), "batch_size: 0 in the configuration; expected an integer"),
        (configuration(batch_size=8.0), r"batch_size: 8\.0"),
        (configuration(accumulation_steps=True), "accumulation_steps: True"),
        (configuration(gradient_clip_norm=-1), r"gradient_clip_norm: -1\.0"),
        (configuration(gradient_clip_norm="x"), "gradient_clip_norm: 'x' .* expected a number"),
        (configuration(mixed_precision="fp8"), "expected one of off, bfloat16, float16"),
        (configuration(weight_average_decay=1.0), r"weight_average_decay: 1\.0"),
        (configuration(architecture=3), "architecture: 3 in the configuration"),
    ],
)
def test_configurations(chosen: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        small_task(pretrained=None).open(chosen, CONTEXT)


def test_an_unknown_plugin_is_named() -> None:
    with pytest.raises(PluginError, match="adamww"):
        small_task().open(configuration(optimizer={"name": "adamww"}), CONTEXT)


@pytest.mark.parametrize(
    ("further", "message"),
    [
        ({"model": SmallNet()}, r"model=\.\.\.\) is SmallNet; expected a function"),
        ({"data": 3}, r"data=\.\.\.\) is int; expected a Data or a function"),
        ({"loss": "cross_entropy"}, r"loss=\.\.\.\) is str; expected a function"),
        ({"metrics": {"accuracy": max}}, "'accuracy' is measured anyway"),
        ({"metrics": {"f1": 3}}, "'f1' is int; expected a function"),
        ({"unit": "minute"}, "'minute'; expected 'epoch' or 'step'"),
        ({"unit": "epoch", "batches_per_unit": 3}, "is 3 with unit='epoch'"),
    ],
)
def test_arguments(further: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        small_task(**further)


class Returns(nn.Module):
    def __init__(self, make: Any) -> None:
        super().__init__()
        self.linear = nn.Linear(36, 3)
        self.make = make

    def forward(self, inputs: Any) -> Any:
        return self.make(self.linear(inputs.flatten(1)))


def open_with(make: Any = lambda outputs: outputs, **further: Any) -> Any:
    arguments: dict[str, Any] = {"pretrained": None, "head": (), **further}
    arguments.setdefault("model", lambda architecture: Returns(make))
    return small_task(**arguments).open(configuration(accumulation_steps=1), CONTEXT)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda outputs: {"logits": outputs},
            r"returned \{logits: float32\[8, 3\]\}; expected one",
        ),
        (lambda outputs: outputs.sum(), r"into float32\[\]; expected the first axis"),
        (lambda outputs: outputs[:3], r"into float32\[3, 3\]"),
        (lambda outputs: outputs.detach(), "does not depend on any trainable parameter"),
    ],
)
def test_what_the_model_returns(make: Any, message: str) -> None:
    run = open_with(make)
    with pytest.raises(TaskError, match=message):
        run.train()


def test_what_the_loss_returns() -> None:
    run = open_with(loss=lambda outputs, targets: outputs)
    with pytest.raises(TaskError, match=r"loss returned float32\[8, 3\]; expected"):
        run.train()
    run = open_with(loss=lambda outputs, targets: 3.0)
    with pytest.raises(TaskError, match="loss returned float; expected"):
        run.train()


def test_what_a_metric_returns() -> None:
    run = open_with(metrics={"f1": lambda outputs, targets: outputs})
    with pytest.raises(TaskError, match="the metric 'f1' returned float32"):
        run.train()


def test_exceptions_of_the_user_say_what_was_going_on() -> None:
    def broken(outputs: Any, targets: Any) -> Any:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine") as caught:
        open_with(loss=broken).train()
    assert "loss on outputs float32[8, 3] and targets int64[8]" in caught.value.__notes__[0]
    with pytest.raises(RuntimeError) as wrong:
        open_with(model=lambda architecture: nn.Linear(7, 3)).train()
    assert "raised by the model on inputs float32[8, 1, 6, 6]" in wrong.value.__notes__[0]


def test_what_the_model_factory_returns() -> None:
    with pytest.raises(TaskError, match="factory returned int; expected a torch"):
        open_with(model=lambda architecture: 3)

    def frozen(architecture: Any) -> nn.Module:
        return SmallNet().requires_grad_(False)

    with pytest.raises(TaskError, match="nothing to train"):
        open_with(model=frozen)


def test_a_task_with_closures_travels_by_cloudpickle() -> None:
    width = 4
    task = TorchTask(
        model=lambda architecture: SmallNet(width),
        data=small_data(augment=lambda inputs, uniforms, chosen: inputs * (1 + uniforms[0, 0])),
        loss=functional.cross_entropy,
        pretrained=None,
    )
    expected = task.open(configuration(), CONTEXT).train()
    twin = cloudpickle.loads(cloudpickle.dumps(task))
    assert twin.open(configuration(), CONTEXT).train() == expected
    assert twin.fingerprint() == task.fingerprint()


def test_a_model_in_eval_mode_is_trained_in_train_mode() -> None:
    run = open_with(model=lambda architecture: SmallNet().eval())
    assert run._model.dropout.training
    run.train()
    assert run._model.dropout.training
    assert images(2, 0)[0].dtype == torch.float32

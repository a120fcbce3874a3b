"""A task by value, with the data of its splits apart."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from autotune.execute.opening import Opening
from autotune.execute.task_address import load_task
from autotune.execute.task_transfer import dump, dump_with_code, load
from autotune.train import Data, TaskError, TorchTask


def task(**rest) -> TorchTask:
    torch.manual_seed(0)
    inputs = {
        "a": torch.randn(1000, 8),
        "half": torch.randn(1000, 3).to(torch.bfloat16),
        "none": torch.zeros(1000, 0),
        "turned": torch.randn(4, 1000).T,
    }
    targets = torch.randint(0, 2, (1000,)).bool()
    data = Data(train=(inputs, targets), validation=(torch.randn(10, 8), torch.zeros(10)))
    return TorchTask(lambda a: nn.Linear(8, 2), data, loss=nn.functional.cross_entropy, **rest)


@pytest.mark.parametrize("separately", [True, False])
def test_a_task_arrives_as_it_was(separately: bool) -> None:
    sent = task()
    blocks: list = []
    arrived = load(dump(sent, blocks if separately else None), blocks)
    for name, tensor in sent.data.train.inputs.items():
        assert torch.equal(arrived.data.train.inputs[name], tensor)
        assert arrived.data.train.inputs[name].dtype == tensor.dtype
    assert torch.equal(arrived.data.train.targets, sent.data.train.targets)
    assert torch.equal(arrived.data.validation.inputs, sent.data.validation.inputs)


def test_data_is_not_copied_on_arrival() -> None:
    sent, blocks = task(), []
    pickled = dump(sent, blocks)
    assert len(pickled) < 4000 < sum(block.nbytes for block in blocks)
    first, second = load(pickled, blocks), load(pickled, blocks)
    places = {one.data.train.inputs["a"].data_ptr() for one in (sent, first, second)}
    assert len(places) == 1


def test_a_models_tensors_are_not_shared() -> None:
    """Its buffers are written to; only data is not."""
    network, blocks = nn.BatchNorm1d(1 << 16), []
    sent = task()
    sent.model = lambda architecture: network
    pickled = dump(sent, blocks)
    first, second = load(pickled, blocks), load(pickled, blocks)
    first.model({}).running_mean.fill_(7.0)
    assert second.model({}).running_mean.sum() == 0


def test_what_cannot_be_sent_is_named() -> None:
    with pytest.raises(TaskError, match=r"cannot be sent to workers: .*lock"):
        dump(task(metrics={"m": threading.Lock().acquire}))


FILE = """
import torch
from torch import nn
from torch.nn import functional
from autotune.train import Data, TorchTask

WIDTH = 3

def network(architecture):
    return nn.Linear(8, WIDTH)

def made():
    pairs = torch.ones(1000, 8), torch.zeros(1000).long()
    return TorchTask(network, Data(train=pairs, validation=pairs), functional.cross_entropy)

task = made()
by_factory = TorchTask(network, lambda configuration: task.data, functional.cross_entropy)
"""


def test_a_task_in_a_file_travels_with_its_code_and_data(tmp_path: Path) -> None:
    """So that a worker needs neither the file nor a copy of the data."""
    file = tmp_path / "mine.py"
    file.write_text(FILE)
    address = f"{file}:task"
    task, blocks = load_task(address), []
    pickled = dump_with_code(address, task, blocks)
    assert pickled is not None
    del sys.modules[task.model.__module__]
    file.unlink()
    arrived = load(pickled, blocks)
    assert arrived.model({}).out_features == 3
    assert arrived.data.train.inputs.data_ptr() == task.data.train.inputs.data_ptr()
    orders = Opening(0, address, str(tmp_path), [], "cpu", None, torch.get_num_threads(), None)
    assert orders._task((pickled, blocks)).model({}).out_features == 3


def test_one_that_cannot_travel_is_imported(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(FILE)
    factory = load_task(f"{file}:by_factory")
    assert dump_with_code(f"{file}:by_factory", factory, []) is None  # it has no data to spare
    task, blocks = load_task(f"{file}:task"), []
    task.metrics = {"m": threading.Lock().acquire}
    assert dump_with_code(f"{file}:task", task, blocks) is None
    assert blocks == []
    orders = Opening(
        0, f"{file}:task", str(tmp_path), [], "cpu", None, torch.get_num_threads(), None
    )
    assert orders._task((b"of another Python", [])) is task

"""A checkpoint holds plain tensors and plain values, or says by name what is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from train_tasks import Closure, configuration, small_task

from autotune.train import RunContext, StateError
from autotune.train.state import from_plain, same_bits, to_plain


def test_values_come_back_as_they_were(tmp_path: Path) -> None:
    value = {
        "tensor": torch.randn(3, 2, dtype=torch.float64),
        "nothing": None,
        "numbers": [1, 2.5, True, float("inf"), 2**100],
        "betas": (0.9, 0.999),
        "words": "learning rate",
        3: {"array": np.arange(6, dtype=np.uint64).reshape(2, 3), "scalar": np.float32(0.1)},
        "generator": np.random.default_rng(0).bit_generator.state,
    }
    torch.save(to_plain(value), tmp_path / "state.pt")
    back = from_plain(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(back.pop("tensor"), value.pop("tensor"))
    inner, expected = back.pop(3), value.pop(3)
    assert np.array_equal(inner["array"], expected["array"])
    assert inner["array"].dtype == np.uint64
    assert isinstance(inner["scalar"], np.float32)
    assert inner["scalar"] == expected["scalar"]
    assert back == value
    generator = np.random.default_rng(1)
    generator.bit_generator.state = back["generator"]
    assert generator.random() == np.random.default_rng(0).random()


def test_a_view_does_not_drag_its_storage_along() -> None:
    storage = torch.zeros(1000, 1000)
    for view in (storage[3], storage[:, :2], storage[:1].expand(5, 1000), storage.t()[1:3]):
        plain = to_plain(view)
        assert plain.untyped_storage().nbytes() == plain.numel() * 4
        assert torch.equal(plain, view)
    parameter = nn.Parameter(torch.ones(2))
    assert type(to_plain(parameter)) is torch.Tensor
    assert not to_plain(parameter).requires_grad


def test_the_copy_is_independent_both_ways() -> None:
    tensor, array = torch.zeros(2), np.zeros(2)
    plain = to_plain({"tensor": tensor, "array": array})
    tensor += 1
    array += 1
    back = from_plain(plain)
    assert back["tensor"].sum() == 0
    assert back["array"].sum() == 0
    back["tensor"] += 5
    back["array"] += 5
    again = from_plain(plain)
    assert again["tensor"].sum() == 0
    assert again["array"].sum() == 0


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"state": {0: {"projector": nn.Linear(1, 1)}}}, r"optimizer\.state\[0\]\.projector is of"),
        ({"state": [1, {2}]}, r"optimizer\.state\[1\] is of type builtins\.set"),
        ({"f": torch.relu}, r"optimizer\.f is of type"),
        ({(1, 2): 0}, r"optimizer has the key \(1, 2\)"),
        ({"rng": np.random.default_rng(0)}, r"optimizer\.rng is of type numpy"),
        ({"sparse": torch.eye(2).to_sparse()}, r"optimizer\.sparse is a tensor of layout"),
        ({"words": np.array(["a"])}, r"optimizer\.words is a NumPy array"),
        ({"bytes": b"x"}, r"optimizer\.bytes is of type builtins\.bytes"),
        ({"__autotune__": 1}, "reserved"),
    ],
)
def test_what_cannot_be_kept_is_named(value: Any, path: str) -> None:
    with pytest.raises(StateError, match=path):
        to_plain(value, "optimizer")


def test_a_run_names_the_state_that_it_cannot_freeze() -> None:
    class Projecting(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            loss = closure()
            self.state[self.param_groups[0]["params"][0]]["foo"] = nn.Identity()
            return loss

    class Projector(Closure):
        def build(self, named_parameters: Any) -> torch.optim.Optimizer:
            return Projecting([parameter for _, parameter in named_parameters], lr=0.1)

    task = small_task(get_plugin=lambda kind, name: Projector, unit="epoch", pretrained=None)
    chosen = configuration()
    del chosen["schedule"]
    run = task.open(chosen, RunContext(seed=0, horizon=2))
    run.train()
    with pytest.raises(StateError, match=r"optimizer\.state\[0\]\.foo is of type torch.*Identity"):
        run.freeze()


def test_bits_not_values() -> None:
    assert same_bits(torch.tensor([float("nan")]), torch.tensor([float("nan")]))
    assert not same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))
    assert not same_bits(torch.tensor([0]), torch.tensor([0.0]))
    assert not same_bits(torch.zeros(2, 3), torch.zeros(3, 2))
    assert same_bits(torch.tensor(1.5), torch.tensor(1.5))
    assert same_bits(torch.arange(6).reshape(2, 3).t(), torch.arange(6).reshape(2, 3).t().clone())

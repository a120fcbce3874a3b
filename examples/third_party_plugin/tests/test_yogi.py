"""The tests that every plugin should have: it keeps the contract, and it computes its method."""

from __future__ import annotations

import pytest
import torch
from autotune_yogi.plugin import Yogi
from autotune_yogi.yogi import Yogi as YogiOptimizer

from autotune.plugins import check, discovery


def test_keeps_the_contract() -> None:
    check(Yogi)


def test_is_installed_under_its_name() -> None:
    assert discovery.get("optimizer", "yogi") is Yogi


def test_two_steps_by_hand() -> None:
    """With gradients 4 and 1, and betas that keep half."""
    parameter = torch.nn.Parameter(torch.tensor([1.0]))
    optimizer = YogiOptimizer([parameter], lr=0.1, betas=(0.5, 0.5), epsilon=0.0, weight_decay=1.0)
    parameter.grad = torch.tensor([4.0])
    optimizer.step()
    # m = 2, debiased 4; v = 8, debiased 16: the decay, then a step of 0.1.
    first = 0.9 * 1 - 0.1 * 4 / 4
    assert parameter.item() == pytest.approx(first)

    parameter.grad = torch.tensor([1.0])
    optimizer.step()
    # m = 3/2, debiased by 3/4; v = 8 - 1/2 * 1 (Adam's would be 4.5), likewise.
    expected = 0.9 * first - 0.1 * (1.5 / 0.75) / (7.5 / 0.75) ** 0.5
    assert parameter.item() == pytest.approx(expected)

"""The tests that every plugin should have: it keeps the contract, and it computes its method."""

from __future__ import annotations

import pytest
import torch
from autotune_adan.adan import Adan as AdanOptimizer
from autotune_adan.plugin import Adan

from autotune.plugins import check, discovery


def test_keeps_the_contract() -> None:
    check(Adan)


def test_is_installed_under_its_name() -> None:
    assert discovery.get("optimizer", "adan") is Adan


def test_two_steps_by_hand() -> None:
    """With gradients 2 and 3, and betas that keep half."""
    parameter = torch.nn.Parameter(torch.tensor([1.0]))
    optimizer = AdanOptimizer(
        [parameter], lr=0.1, betas=(0.5, 0.5, 0.5), epsilon=0.0, weight_decay=1.0
    )
    parameter.grad = torch.tensor([2.0])
    optimizer.step()
    # m = 1, debiased 2; v = 0; n = 2, debiased 4: a step of 0.1, then the decay.
    first = (1 - 0.1 * 2 / 2) / 1.1
    assert parameter.item() == pytest.approx(first)

    parameter.grad = torch.tensor([3.0])
    optimizer.step()
    # d = 1; m = 2, debiased by 3/4; v = 1/2, likewise; n = 1 + (3 + 1/2)^2 / 2, likewise.
    momentum = 2 / 0.75 + 0.5 * 0.5 / 0.75
    scale = ((0.5 * 2 + 0.5 * 3.5**2) / 0.75) ** 0.5
    assert parameter.item() == pytest.approx((first - 0.1 * momentum / scale) / 1.1)

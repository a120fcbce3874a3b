"""What the other curves of a study say about one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from autotune.pfn import relations
from autotune.pfn.spaces import SLOTS

TIMES = [0.1, 0.2, 0.4, 0.7, 1.0]
"""Each in a part of the time axis of its own."""


def study(points: torch.Tensor, curves: list[list[float]]) -> relations.Relations:
    """Relations of one study, its curves observed at the first of `TIMES`; `points` of shape
    (curves, dimensions) are numbers."""
    configurations = torch.zeros(1, len(points), SLOTS, 3)
    configurations[0, :, : points.shape[1], 0] = points
    configurations[0, :, : points.shape[1], 1] = 1.0
    number = [index for index, curve in enumerate(curves) for _ in curve]
    time = [when for curve in curves for when, _ in zip(TIMES, curve, strict=False)]
    value = [y for curve in curves for y in curve]
    return relations.relate(
        configurations,
        torch.tensor(number, dtype=torch.long),
        torch.tensor(time),
        torch.tensor(value),
    )


def test_the_common_curve_is_not_bent_by_stopping_the_bad() -> None:
    rise = np.array([0.0, 0.05, 0.2, 0.4, 0.45])
    curves = [(0.1 + rise).tolist(), (0.3 + rise).tolist(), (0.5 + rise).tolist()]
    curves[0], curves[1] = curves[0][:2], curves[1][:3]
    found = study(torch.rand(3, 2), curves)
    common = found.common[0, relations.part(torch.tensor(TIMES))]
    assert common.diff().tolist() == pytest.approx(np.diff(rise).tolist(), abs=1e-5)
    offsets = (found.curve[0, :, 0] / 4.0).tolist()
    assert offsets == pytest.approx([-0.2, 0.0, 0.2], abs=1e-5)


def test_a_curve_alone_and_none_at_all() -> None:
    one = study(torch.rand(3, 2), [[0.2, 0.4], [], []])
    assert torch.isfinite(one.curve).all()
    none = study(torch.rand(2, 2), [[], []])
    assert torch.isfinite(none.curve).all()
    assert (none.predicted == 0).all()


def test_processes_leave_each_curve_out() -> None:
    torch.manual_seed(0)
    points = torch.rand(12, 3)
    values = (0.3 + 0.5 * points[:, 0]).tolist()
    changed = [*values[:-1], 0.0]
    whole, other = (study(points, [[y] * 3 for y in ys]) for ys in (values, changed))
    for found in (whole, other):  # what the others say, shifted by the middle of all
        middle = found.common[0, int(found.place[0, 0])]
        found.predicted.add_(middle)
    spread = float((whole.predicted[0, -1] - other.predicted[0, -1]).abs().max())
    moved = float((whole.predicted[0, :-1] - other.predicted[0, :-1]).abs().max())
    assert spread < 0.12, "its own value hardly moves what the others say of it"
    assert moved > 2 * spread, "but it moves what is said of its neighbours"


def test_leaving_out_equals_refitting() -> None:
    torch.manual_seed(1)
    points = torch.rand(1, 9, 4, dtype=torch.float64)
    target, variance = torch.randn(1, 9, dtype=torch.float64), torch.full((1, 9), 0.2).double()
    cross = (-relations._squared_distances(points, points)).exp()
    basis = torch.arange(9)[None]
    mean, deviation = relations._regress(cross, target, variance, basis)
    for left in range(9):
        rest = [index for index in range(9) if index != left]
        k = cross[0][rest][:, rest] + 0.2 * torch.eye(8)
        c = cross[0, left, rest]
        solved = torch.linalg.solve(k, c)
        assert float(mean[0, left]) == pytest.approx(float(solved @ target[0, rest]), abs=1e-9)
        assert float(deviation[0, left]) ** 2 == pytest.approx(float(1 - solved @ c), abs=1e-9)


def test_new_configurations_are_told_by_the_dimension_that_matters() -> None:
    torch.manual_seed(2)
    points = torch.rand(80, 8)
    curves = [[0.2 + 0.6 * x] * 4 for x in points[:60, 5].tolist()] + [[]] * 20
    found = study(points, curves)
    truth = 0.2 + 0.6 * points[60:, 5]
    middle = 0.2 + 0.6 * points[:60, 5].mean()
    isotropic, weighted = ((found.predicted[0, 60:, k] + middle - truth) for k in range(2))
    alone = (middle - truth).square().mean()
    assert weighted.square().mean() < 0.15 * alone
    assert weighted.square().mean() < isotropic.square().mean()


def test_what_is_asked_follows_the_common_curve() -> None:
    rise = np.array([0.0, 0.05, 0.2, 0.4, 0.45])
    curves = [(level + rise).tolist() for level in (0.1, 0.2, 0.3)] + [[0.4, 0.45]]
    found = study(torch.rand(4, 2), curves)
    query, last = torch.tensor([[3]]), torch.tensor([[0.45]])
    asked = relations.asked(found, query, torch.tensor([[1.0]]), last)
    assert float(asked[0, 0, 2]) == pytest.approx(0.45 + rise[-1] - rise[1], abs=1e-5)


def test_parts_of_time_ascend_and_end_at_the_horizon() -> None:
    part = relations.part(torch.tensor([1e-6, 1e-3, 0.01, 0.1, 0.5, 0.84, 0.85, 1.0]))
    assert part.tolist() == sorted(part.tolist())
    assert int(part[0]) == 0
    assert int(part[-1]) == relations.TIMES - 1
    assert int(part[-3]) == relations.TIMES - 2

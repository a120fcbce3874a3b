"""The artificial studies: curves as the formulas say, and only what a tuner could have seen."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from autotune.pfn import families, landscape, prior, spaces


def sampled(seed: int = 0, studies: int = 32, curves: int = 16) -> prior.Batch:
    return prior.sample(studies, curves, 8, 24, torch.Generator().manual_seed(seed))


def by_the_paper(x: float, y0: float, yinf: float, sat: float, a: list[float], p: float) -> list:
    """The four families of the paper, written plainly."""
    gap = yinf - y0
    return [
        yinf - gap * ((p ** (1 / a[0]) - 1) / sat * x + 1) ** -a[0],
        yinf - gap * p ** (-((x / sat) ** a[1])),
        yinf - gap * math.log(a[2]) / math.log((a[2] ** p - a[2]) * x / sat + a[2]),
        yinf - gap / ((x / sat) ** a[3] * (p - 1) + 1),
    ]


@pytest.mark.parametrize("family", range(4))
def test_families_are_the_papers(family: int) -> None:
    alpha = [2.0, 0.7, 1.05, 1.8]
    y0, yinf, saturation, precision = 0.2, 0.9, 0.6, 40.0
    for x in (0.0, 0.05, 0.3, 0.59):
        value = families.value(
            torch.tensor([x], dtype=torch.float64),
            torch.tensor([y0], dtype=torch.float64),
            torch.tensor([yinf], dtype=torch.float64),
            torch.eye(4, dtype=torch.float64)[family][None],
            torch.full((1, 4), saturation, dtype=torch.float64),
            torch.tensor([alpha], dtype=torch.float64),
            torch.full((1, 4), precision, dtype=torch.float64),
            torch.ones(1, 4, dtype=torch.float64),
        )
        expected = by_the_paper(x, y0, yinf, saturation, alpha, precision)[family]
        assert float(value) == pytest.approx(expected, abs=1e-9)


def test_after_saturation_curves_may_turn_down_towards_zero() -> None:
    x = torch.linspace(0.01, 1.0, 50, dtype=torch.float64)
    count = len(x)
    full = torch.full((count, 4), 0.25, dtype=torch.float64)
    value = families.value(
        x,
        torch.full((count,), 0.3, dtype=torch.float64),
        torch.full((count,), 0.9, dtype=torch.float64),
        full,
        torch.full((count, 4), 0.2, dtype=torch.float64),
        torch.full((count, 4), 1.5, dtype=torch.float64),
        torch.full((count, 4), 30.0, dtype=torch.float64),
        torch.full((count, 4), -1.0, dtype=torch.float64),
    )
    peak = int(value.argmax())
    assert 8 <= peak <= 11
    assert (value[:peak].diff() > 0).all()
    assert (value[peak:].diff() < 0).all()
    assert 0 <= float(value[-1]) < 0.3


def test_a_batch_depends_on_its_seed_alone() -> None:
    one, same, other = sampled(1), sampled(1), sampled(2)
    assert torch.equal(one.value, same.value)
    assert torch.equal(one.target, same.target)
    assert one.value.shape != other.value.shape or not torch.equal(one.value, other.value)


@pytest.mark.parametrize("curves", [4, 64])
def test_values_are_in_range_and_times_ascend(curves: int) -> None:
    batch = sampled(3, curves=curves)
    for values in (batch.value, batch.target):
        assert torch.isfinite(values).all()
        assert ((values >= 0) & (values <= 1)).all()
    assert ((batch.time > 0) & (batch.time <= 1 + 1e-6)).all()
    same = batch.curve[1:] == batch.curve[:-1]
    assert (batch.curve[1:] >= batch.curve[:-1]).all()
    assert (batch.time[1:] > batch.time[:-1])[same].all()
    each = curves + 8
    assert (batch.curve % each < curves).all(), "new configurations were never begun"


def test_queries_ask_for_the_future_or_repeat_the_last_value() -> None:
    batch = sampled(4, studies=64)
    each = batch.configurations.shape[1]
    last: dict[int, tuple[float, float]] = {}
    for curve, time, value in zip(
        batch.curve.tolist(), batch.time.tolist(), batch.value.tolist(), strict=True
    ):
        last[curve] = (time, value)
    repeated = fresh = 0
    for study in range(64):
        for query, time, target in zip(
            batch.query[study].tolist(),
            batch.query_time[study].tolist(),
            batch.target[study].tolist(),
            strict=True,
        ):
            curve = study * each + query
            if curve not in last:
                fresh += 1
                continue
            seen, value = last[curve]
            assert time >= seen - 1e-6
            if time <= seen + 1e-6:
                repeated += 1
                assert target == pytest.approx(value, abs=1e-6)
    assert fresh > 100
    assert repeated > 20


def test_outputs_of_random_networks_become_uniform() -> None:
    generator = torch.Generator().manual_seed(11)
    found = []
    for _ in range(48):
        inputs = (torch.rand(8, 32, 6, generator=generator) - 0.5) * 12**0.5
        shape = landscape.random_shape(generator)
        found.append(landscape.uniforms(landscape.outputs(inputs, 16, shape, generator)))
    u = torch.cat([part.flatten() for part in found])
    assert ((u > 0) & (u < 1)).all()
    for place in (0.1, 0.5, 0.9):
        assert float((u < place).float().mean()) == pytest.approx(place, abs=0.05)


def test_curves_of_near_configurations_are_alike() -> None:
    generator = torch.Generator().manual_seed(5)
    point = torch.rand(16, 1, 4, generator=generator)
    near = point + 0.01 * torch.randn(16, 1, 4, generator=generator)
    far = torch.rand(16, 1, 4, generator=generator)
    inputs = (torch.cat([point, near, far], dim=1) - 0.5) * 12**0.5
    u = landscape.uniforms(landscape.outputs(inputs, 23, landscape.Shape(10, 80), generator))
    by_near = (u[:, 0] - u[:, 1]).abs().mean()
    by_far = (u[:, 0] - u[:, 2]).abs().mean()
    assert float(by_near) < 0.3 * float(by_far)


def test_spaces_hide_what_is_inactive() -> None:
    drawn = spaces.sample(200, 12, torch.Generator().manual_seed(6))
    value, active, categorical = drawn.seen.unbind(-1)
    assert (value[active == 0] == 0).all()
    assert (categorical[active == 0] == 0).all()
    assert (drawn.inputs[active == 0] == 0).all()
    assert ((value >= 0) & (value <= 1)).all()
    used = (active.sum(1) > 0).sum(1)
    assert int(used.min()) >= 1
    assert int(used.max()) > 20
    there = active.sum(1) > 0
    sometimes = there & (active.sum(1) < 12)
    assert 0.05 < float(sometimes.sum() / there.sum()) < 0.2
    assert len(np.unique(np.round(value[categorical > 0].numpy(), 4))) < 40

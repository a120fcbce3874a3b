"""Tokens and the network: what a query may depend on, and what it may not."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from autotune.pfn import features, histogram
from autotune.pfn.network import HORIZON, TOKEN, CurveNetwork, Size

SMALL = Size(width=32, layers=2, heads=2, bins=50)


@pytest.fixture
def network() -> CurveNetwork:
    torch.manual_seed(0)
    found = CurveNetwork(SMALL).eval().requires_grad_(False)
    for block in found.blocks:  # projections begin at zero: give them something to say
        torch.nn.init.normal_(block.output.weight, std=0.3)
        torch.nn.init.normal_(block.feed_out.weight, std=0.3)
    return found


def inputs(curves: int = 7, queries: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.rand(1, curves, TOKEN, generator=generator),
        torch.rand(1, queries, TOKEN, generator=generator),
        torch.rand(1, queries, HORIZON, generator=generator),
    )


def test_a_query_does_not_see_the_others(network: CurveNetwork) -> None:
    context, query, horizon = inputs()
    memory = network.remember(context)
    together = network.forecast(memory, query, horizon)
    alone = network.forecast(memory, query[:, 2:3], horizon[:, 2:3])
    torch.testing.assert_close(together[:, 2:3], alone)


def test_the_order_of_curves_does_not_matter_but_curves_do(network: CurveNetwork) -> None:
    context, query, horizon = inputs()
    found = network.forecast(network.remember(context), query, horizon)
    turned = network.forecast(network.remember(context.flip(1)), query, horizon)
    torch.testing.assert_close(found, turned)
    fewer = network.forecast(network.remember(context[:, 1:]), query, horizon)
    assert (found - fewer).abs().max() > 1e-4


def test_masked_curves_are_as_if_absent(network: CurveNetwork) -> None:
    context, query, horizon = inputs()
    mask = torch.tensor([[True] * 5 + [False] * 2])
    masked = network.forecast(network.remember(context, mask), query, horizon)
    absent = network.forecast(network.remember(context[:, :5]), query, horizon)
    torch.testing.assert_close(masked, absent)


def test_without_any_curve_there_is_a_forecast(network: CurveNetwork) -> None:
    context, query, horizon = inputs()
    found = network.forecast(network.remember(context[:, :0]), query, horizon)
    assert torch.isfinite(found).all()


def described(*curves: list[tuple[float, float]]) -> torch.Tensor:
    number = [index for index, curve in enumerate(curves) for _ in curve]
    time = [t for curve in curves for t, _ in curve]
    value = [y for curve in curves for _, y in curve]
    return features.curves(
        len(curves),
        torch.tensor(number, dtype=torch.long),
        torch.tensor(time),
        torch.tensor(value),
        torch.full((len(curves),), 0.05),
    )


CURVE = [(0.05, 0.1), (0.1, 0.5), (0.2, 0.45), (0.25, 0.7)]


def test_features_of_a_curve_by_hand() -> None:
    (row,) = described(CURVE)
    values = np.array(CURVE)[:, 1]
    expected = [0.7, 0.1, values.mean(), 0.7, 0.1, 0.25, math.log1p(4) / 7]
    assert row[:7].tolist() == pytest.approx(expected, abs=1e-6)
    steps = np.append(np.diff(values), 0.0)
    assert float(row[7]) == pytest.approx(math.log((steps**2).sum() / 4 + 1e-10) / 10 + 1, abs=1e-5)
    newest_first = np.diff(values)[::-1]
    recent = row[9 : 9 + features.LAST]
    assert recent[:3].tolist() == pytest.approx((4 * newest_first).tolist(), abs=1e-5)
    assert recent[3:].tolist() == [0.0] * 5
    # Four observations in 16 bins of the prefix (relative times .2 .4 .8 1): bins 3, 6, 12, 15.
    begin = 9 + 3 * features.LAST
    parts = row[begin : begin + features.BINS].tolist()
    by_bin = [0.1] * 6 + [0.5] * 6 + [0.45] * 3 + [0.7]
    assert parts == pytest.approx(by_bin, abs=1e-6)
    assert float(row[-2]) == 1.0


def test_a_curves_features_depend_on_no_other_curve() -> None:
    alone = described(CURVE)
    among = described([(0.5, 0.2)], CURVE, [], [(0.05, 0.9), (0.1, 0.8)])
    torch.testing.assert_close(among[1], alone[0])
    assert (among[2, :-1] == 0).all()
    assert described([], [])[:, :-1].abs().sum() == 0


def test_histograms_are_distributions() -> None:
    torch.manual_seed(2)
    logits = torch.randn(3, 50) * 2
    edge = histogram.edges(logits)
    grid = (torch.arange(5000) + 0.5) / 5000
    density = histogram.log_density(logits[:1].expand(5000, -1), grid).exp()
    assert float(density.mean()) == pytest.approx(1.0, abs=1e-5)
    assert float((density * grid).mean()) == pytest.approx(float(histogram.mean(edge)[0]), abs=1e-4)
    for probability in (0.0, 0.05, 0.5, 0.95, 1.0):
        found = histogram.quantile(edge, probability)
        assert histogram.below(edge, found).tolist() == pytest.approx([probability] * 3, abs=1e-9)

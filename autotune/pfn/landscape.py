"""Random functions from configurations to curve parameters: the part of the prior that makes
curves of similar configurations alike.

A random tanh network maps a configuration to numbers; each becomes uniform on [0, 1] through the
distribution function of such numbers over all networks, so that any distribution can be had from
it by its inverse. Sizes and scales are those of Rakotoarison et al. 2024 (arXiv 2404.16795).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

QUANTILES = 8192
SHARED = 4
"""So many data sets share a network's weights, each with its own order of inputs and outputs."""

_SPARSENESS = 0.145


@dataclass(frozen=True)
class Shape:
    """How many layers a random network has, and their width."""

    layers: int
    width: int


def random_shape(generator: torch.Generator) -> Shape:
    """8 to 15 linear layers of 36 to 149 units as published, or, as often, 3 to 6: what real
    tuning looks like is smoother."""
    device = generator.device
    deep = bool(torch.rand((), generator=generator, device=device) < 0.5)
    low, high = (8, 16) if deep else (3, 7)
    layers = int(torch.randint(low, high, (), generator=generator, device=device))
    width = int(torch.randint(36, 150, (), generator=generator, device=device))
    return Shape(layers, width)


def outputs(inputs: Tensor, count: int, shape: Shape, generator: torch.Generator) -> Tensor:
    """What random networks say.

    Args:
        inputs: shape (networks, configurations, dimensions), of unit variance.
        count: outputs wanted.

    Returns:
        Shape (networks, configurations, count).
    """
    networks, _, dimensions = inputs.shape
    device = inputs.device

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(networks, 1, 1, generator=generator, device=device)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, device=device)

    scale, inner_noise, outer_noise = (
        uniform(0.089, 0.193),
        uniform(0.0003, 0.0014),
        uniform(0.0004, 0.0013),
    )
    sizes = [dimensions, *[shape.width] * (shape.layers - 1), count]
    x = inputs
    for index in range(shape.layers):
        weight = scale * normal(networks, sizes[index], sizes[index + 1])
        if 0 < index < shape.layers - 1:
            kept = torch.rand(weight.shape, generator=generator, device=device) >= _SPARSENESS
            weight = weight * kept / (1 - _SPARSENESS) ** 0.5
        x = torch.baddbmm(scale * normal(networks, 1, sizes[index + 1]), x, weight)
        last = index == shape.layers - 1
        x = x + (outer_noise if last else inner_noise) * normal(*x.shape)
        x = x if last else x.tanh_()
    return x


@lru_cache(maxsize=4)
def quantiles(device: str = "cpu") -> Tensor:
    """Quantiles of the outputs over networks, dimensions and configurations: `QUANTILES` values,
    ascending. Always the same: sampled with a seed of their own, on the CPU."""
    generator = torch.Generator().manual_seed(20240416)
    found = []
    for _ in range(96):
        shape = random_shape(generator)
        dimensions = int(torch.randint(1, 25, (), generator=generator))
        inputs = (torch.rand(8, 32, dimensions, generator=generator) - 0.5) * 12**0.5
        found.append(outputs(inputs, 32, shape, generator).flatten())
    ordered = torch.cat(found).sort().values
    places = (torch.arange(QUANTILES) + 0.5) / QUANTILES * (len(ordered) - 1)
    return ordered[places.round().long()].to(device)


def uniforms(values: Tensor) -> Tensor:
    """The outputs' places in the distribution of all, strictly inside (0, 1); same shape."""
    table = quantiles(str(values.device))
    return (torch.searchsorted(table, values) + 0.5) / (QUANTILES + 1)

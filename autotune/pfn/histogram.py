"""Forecasts as histograms of equal bins on [0, 1]."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def log_density(logits: Tensor, value: Tensor) -> Tensor:
    """Log density at `value` in [0, 1], shape (...), for logits (..., bins)."""
    bins = logits.shape[-1]
    index = (value * bins).long().clamp(0, bins - 1)
    chosen = logits.gather(-1, index[..., None])[..., 0]
    return chosen - logits.logsumexp(-1) + math.log(bins)


def edges(logits: Tensor) -> Tensor:
    """The distribution function at the bins' edges, shape (..., bins + 1), from 0 to 1."""
    below = logits.double().softmax(-1).cumsum(-1)
    below = below / below[..., -1:]
    return torch.cat([torch.zeros_like(below[..., :1]), below], dim=-1)


def below(edge: Tensor, value: Tensor) -> Tensor:
    """P(outcome < value), shape (...), linear within a bin, for `edges` (..., bins + 1)."""
    bins = edge.shape[-1] - 1
    place = value.double().clamp(0.0, 1.0) * bins
    index = place.long().clamp(0, bins - 1)
    low = edge.gather(-1, index[..., None])[..., 0]
    high = edge.gather(-1, index[..., None] + 1)[..., 0]
    return low + (high - low) * (place - index)


def quantile(edge: Tensor, probability: float) -> Tensor:
    """Quantiles, shape (...), linear within a bin, for `edges` (..., bins + 1)."""
    bins = edge.shape[-1] - 1
    wanted = torch.full_like(edge[..., :1], probability)
    index = torch.searchsorted(edge.contiguous(), wanted).clamp(1, bins) - 1
    low, high = edge.gather(-1, index), edge.gather(-1, index + 1)
    share = ((wanted - low) / (high - low).clamp(min=1e-300)).clamp(0.0, 1.0)
    return ((index + share) / bins)[..., 0]


def mean(edge: Tensor) -> Tensor:
    """Means, shape (...), for `edges` (..., bins + 1)."""
    bins = edge.shape[-1] - 1
    # The mean of a value in [0, 1] is the area above its distribution function.
    return 1.0 - 0.5 * (edge[..., 1:] + edge[..., :-1]).sum(-1) / bins

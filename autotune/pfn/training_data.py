"""Batches for the network out of the prior, in a small fixed set of shapes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from autotune.pfn import features, prior
from autotune.pfn.landscape import SHARED
from autotune.pfn.network import tokens

SHAPES = ((8, 64), (16, 64), (32, 64), (64, 64), (128, 96), (256, 128), (512, 128))
"""Context curves and queries of a study."""

WEIGHTS = (0.08, 0.12, 0.2, 0.22, 0.22, 0.11, 0.05)
"""How often each is drawn."""

NEW = 24
"""Configurations that were never begun, to be asked for."""


@dataclass(frozen=True)
class Examples:
    """Input and target of the network: context tokens (S, C, TOKEN) and which of them there are
    (S, C); query tokens (S, Q, TOKEN), horizon features (S, Q, HORIZON) and targets (S, Q)."""

    context: Tensor
    mask: Tensor
    query: Tensor
    horizon: Tensor
    target: Tensor


def draw(shape: tuple[int, int], most_tokens: int, generator: torch.Generator) -> Examples:
    """Draw studies of one shape, as many as have about `most_tokens` tokens together."""
    curves, queries = shape
    studies = max(1, most_tokens // (curves + queries) // SHARED) * SHARED
    return encoded(prior.sample(studies, curves, NEW, queries, generator))


def chosen_shape(generator: torch.Generator) -> tuple[int, int]:
    """One of `SHAPES`."""
    weights = torch.tensor(WEIGHTS, device=generator.device)
    return SHAPES[int(torch.multinomial(weights, 1, generator=generator))]


def encoded(batch: prior.Batch) -> Examples:
    """A batch of the prior as tokens."""
    studies, each = batch.configurations.shape[:2]
    spacing = batch.spacing.repeat_interleave(each)
    described = features.curves(studies * each, batch.curve, batch.time, batch.value, spacing)
    all_tokens = tokens(described.reshape(studies, each, -1), batch.configurations)
    last = torch.zeros(studies * each, device=spacing.device)
    last.scatter_reduce_(0, batch.curve, batch.time.float(), "amax")
    last = last.reshape(studies, each)
    count = torch.bincount(batch.curve, minlength=studies * each).reshape(studies, each)
    index = batch.query[..., None].expand(-1, -1, all_tokens.shape[-1])
    horizon = features.horizon(
        batch.query_time.float(),
        last.gather(1, batch.query),
        batch.spacing[:, None].expand_as(batch.query_time),
    )
    return Examples(
        all_tokens[:, : batch.context],
        count[:, : batch.context] > 0,
        all_tokens.gather(1, index),
        horizon,
        batch.target,
    )

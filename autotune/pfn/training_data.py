"""Batches for the network out of the prior, in a small fixed set of shapes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from autotune.pfn import features, prior, relations
from autotune.pfn.landscape import SHARED
from autotune.pfn.network import horizons, tokens

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
    described = described.reshape(studies, each, -1)
    device = spacing.device
    basis = torch.arange(min(batch.context, relations.BASIS), device=device).expand(studies, -1)
    related = relations.relate(batch.configurations, batch.curve, batch.time, batch.value, basis)
    found = tokens(described, related.curve, batch.configurations)
    last_time = described[..., features.LAST_TIME].gather(1, batch.query)
    last_value = described[..., features.LAST_VALUE].gather(1, batch.query)
    time = batch.query_time.float()
    asked = features.horizon(time, last_time, batch.spacing[:, None].expand_as(time))
    by_others = relations.asked(related, batch.query, time, last_value)
    count = torch.bincount(batch.curve, minlength=studies * each).reshape(studies, each)
    return Examples(
        found[:, : batch.context],
        count[:, : batch.context] > 0,
        found.gather(1, batch.query[..., None].expand(-1, -1, found.shape[-1])),
        horizons(asked, by_others),
        batch.target,
    )

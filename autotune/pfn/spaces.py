"""Random search spaces and configurations of the prior: numbers, steps, categories, conditions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SLOTS = 24
"""Hyperparameters that the network sees at once."""

_MOST_LEVELS = 8


@dataclass(frozen=True)
class Configurations:
    """Configurations of artificial studies.

    Args:
        seen: what the network sees: value (0 where inactive), activity, and whether it is
            categorical, shape (studies, configurations, SLOTS, 3).
        inputs: what the curves depend on, of about unit variance and 0 where inactive, shape
            (studies, configurations, SLOTS).
    """

    seen: Tensor
    inputs: Tensor


def sample(studies: int, count: int, generator: torch.Generator) -> Configurations:
    """Draw spaces, one a study, and `count` configurations of each."""
    device = generator.device

    def uniform(*size: int) -> Tensor:
        return torch.rand(*size, generator=generator, device=device)

    wide = uniform(studies) < 0.4
    used = (uniform(studies) * torch.where(wide, 24.0, 10.0)).floor() + 1
    # Any slot may be used, so that all are learned alike.
    present = uniform(studies, SLOTS).argsort(1).argsort(1) < used[:, None]

    value = uniform(studies, count, SLOTS)
    stepped = (uniform(studies, 1) < 0.5) & (uniform(studies, SLOTS) < 0.3)
    steps = (2 + (uniform(studies, SLOTS) * 19).floor())[:, None]
    on_steps = ((value * steps).floor() / (steps - 1)).clamp(max=1.0)
    value = torch.where(stepped[:, None], on_steps, value)

    rate = uniform(studies, 1) * 0.5 * (uniform(studies, 1) < 0.5)
    categorical = uniform(studies, SLOTS) < rate
    levels = 2 + (uniform(studies, SLOTS) * (_MOST_LEVELS - 1)).floor()
    code = (uniform(studies, count, SLOTS) * levels[:, None]).floor()
    meaning = uniform(studies, SLOTS, _MOST_LEVELS)
    meant = meaning.gather(2, code.transpose(1, 2).long()).transpose(1, 2)
    shown = torch.where(categorical[:, None], code / (levels - 1)[:, None], value)
    meant = torch.where(categorical[:, None], meant, value)

    conditional = (uniform(studies, 1) < 0.3) & (uniform(studies, SLOTS) < 0.4) & present
    # Each slot's parent is another hyperparameter of its study; where there is none, itself.
    rank = uniform(studies, SLOTS, SLOTS) + present[:, None]
    rank.diagonal(dim1=1, dim2=2).fill_(1.0)
    parent = rank.argmax(2)
    threshold = 0.2 + 0.6 * uniform(studies, 1, SLOTS)
    above = shown.gather(2, parent[:, None].expand(-1, count, -1)) > threshold
    itself = parent == torch.arange(SLOTS, device=device)
    active = present[:, None] & (above | (itself | ~conditional)[:, None])

    relevance = torch.where(
        uniform(studies, 1) < 0.5, 1.0, (-uniform(studies, SLOTS).clamp(min=1e-6).log()) ** 1.5
    )
    relevance = relevance * present
    relevance = relevance * (used[:, None] / relevance.square().sum(1, keepdim=True)).sqrt()
    inputs = (meant - 0.5) * 12**0.5 * relevance[:, None] * active
    seen = torch.stack(
        [shown * active, active.float(), (active & categorical[:, None]).float()], dim=-1
    )
    return Configurations(seen, inputs)

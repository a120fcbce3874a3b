"""What the optimizers that scale whole layers share: which parameters, and by how much."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ._groups import parameter_groups


def scaled_groups(
    named_parameters: Sequence[tuple[str, nn.Parameter]], weight_decay: float
) -> list[dict[str, Any]]:
    """`parameter_groups`, the decayed one marked as ``scaled`` layer by layer too."""
    groups = parameter_groups(named_parameters, weight_decay)
    for group in groups:
        group["scaled"] = group["name"] == "decayed"
    return groups


def trusted(
    sizes: Tensor, lengths: Tensor, trust: float = 1.0, weight_decay: float = 0.0
) -> Tensor:
    """``trust * |w| / (|u| + weight_decay * |w|)`` of the norms of weights and updates, 1 where
    one is zero; on the device, which nothing waits for."""
    usable = (sizes > 0) & (lengths > 0)
    return torch.where(usable, trust * sizes / (lengths + weight_decay * sizes), 1.0)

"""What the optimizers that scale whole layers share: which parameters, and by how much."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ._foreach import Tensors
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
    weights: Tensors,
    updates: Tensors,
    trust: float = 1.0,
    weight_decay: float = 0.0,
) -> list[Tensor]:
    """``trust * |w| / (|u| + weight_decay * |w|)`` of each pair, 1 where a norm is zero; scalars
    on the device, which nothing waits for."""
    sizes = torch.stack(torch._foreach_norm(weights))
    lengths = torch.stack(torch._foreach_norm(updates))
    usable = (sizes > 0) & (lengths > 0)
    local = torch.where(usable, trust * sizes / (lengths + weight_decay * sizes), 1.0)
    return list(local.unbind())

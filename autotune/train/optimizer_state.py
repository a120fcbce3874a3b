"""Loading an optimizer's state as it was, which torch's own `load_state_dict` does not quite do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """`load_state_dict`, and then the types that the state really had: torch casts state to its
    parameter's type, which changes it where an optimizer keeps float64 or integers."""
    optimizer.load_state_dict(dict(state))
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    identifiers = [i for group in state["param_groups"] for i in group["params"]]
    for identifier, parameter in zip(identifiers, parameters, strict=True):
        saved, loaded = state["state"].get(identifier, {}), optimizer.state.get(parameter, {})
        for key, value in saved.items():
            now = loaded.get(key) if isinstance(loaded, dict) else None
            if isinstance(value, Tensor) and isinstance(now, Tensor) and now.dtype != value.dtype:
                loaded[key] = value.to(now.device, copy=True)

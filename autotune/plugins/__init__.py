"""Plugins: their contracts, their discovery, and the check that they keep the contract."""

from typing import TYPE_CHECKING, Any

from autotune.plugins.base import API_VERSION, ModelInfo, Plugin, PluginError
from autotune.plugins.torch_schedule import TorchSchedule
from autotune.plugins.training import (
    TTA,
    Adapter,
    AdapterContext,
    Control,
    GradientNorms,
    Optimizer,
    Progress,
    Schedule,
    Signals,
    StepCost,
    no_per_sample_gradients,
)

if TYPE_CHECKING:
    from autotune.plugins.conformance import CheckFailure, check

__all__ = [
    "API_VERSION",
    "TTA",
    "Adapter",
    "AdapterContext",
    "CheckFailure",
    "Control",
    "GradientNorms",
    "ModelInfo",
    "Optimizer",
    "Plugin",
    "PluginError",
    "Progress",
    "Schedule",
    "Signals",
    "StepCost",
    "TorchSchedule",
    "check",
    "no_per_sample_gradients",
]


def __getattr__(name: str) -> Any:
    """The check trains models, so it alone looks at the engine above, and only when asked."""
    if name in ("check", "CheckFailure"):
        from autotune.plugins import conformance

        return getattr(conformance, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

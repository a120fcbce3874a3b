"""Plugins: their contracts, their discovery, and the check that they keep the contract."""

from autotune.plugins.base import API_VERSION, ModelInfo, Plugin, PluginError
from autotune.plugins.training import (
    TTA,
    Adapter,
    AdapterContext,
    Control,
    Optimizer,
    Progress,
    Schedule,
    Signals,
)

__all__ = [
    "API_VERSION",
    "TTA",
    "Adapter",
    "AdapterContext",
    "Control",
    "ModelInfo",
    "Optimizer",
    "Plugin",
    "PluginError",
    "Progress",
    "Schedule",
    "Signals",
]

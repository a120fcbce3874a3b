"""Full fine-tuning, or plain training: no adapter at all."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from autotune.plugins import Adapter, AdapterContext


class Full(Adapter):
    """Trains the model as it is, with pretrained weights or without.

    Parameters that the user's own model has frozen stay frozen.
    """

    name: ClassVar[str] = "full"
    summary: ClassVar[str] = "All of the model's own parameters are trained."
    reference: ClassVar[str] = "The model's own training; no paper."
    preferred: ClassVar[bool] = True
    trains_base: ClassVar[bool] = True

    def apply(self, model: nn.Module, context: AdapterContext) -> nn.Module:
        """The model, unchanged."""
        return model

"""No adaptation: the trained model as it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from autotune.plugins import TTA

from ._model import frozen


class NoAdaptation(TTA):
    """Predicts with the trained model in eval mode. Nothing adapts, so there is no state."""

    name: ClassVar[str] = "none"
    summary: ClassVar[str] = "The trained model as it is."
    reference: ClassVar[str] = "The baseline; no paper."
    preferred: ClassVar[bool] = True

    def prepare(self, model: nn.Module, source: Iterable[Any]) -> None:
        """Keep the model."""
        self.model = frozen(model)

    @torch.no_grad()
    def predict(self, inputs: Any) -> Tensor:
        """Logits of one batch."""
        return self.model(inputs)

    def reset(self) -> None:
        """Nothing has changed."""

    def state_dict(self) -> dict[str, Any]:
        """Empty."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to load."""

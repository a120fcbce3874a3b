"""Batch normalisation by the statistics of the test batch, or a mixture with the source's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from autotune.plugins import TTA, ModelInfo, PluginError
from autotune.space import Choice, Float, Prior, Space

from ._model import BATCH_NORMS, frozen, normalise_by_target, why_not


class BatchNormStatistics(TTA):
    """Every batch normalisation uses ``N/(N+n)`` of the source's mean and variance and
    ``n/(N+n)`` of the batch's, for a batch of ``n`` samples (Schneider et al., equation 2), or
    the batch's alone (Nado et al.; ``N = 0``).

    Each batch is judged by itself: no state is carried from one to the next. The batch's
    variance is the biased one. A batch with one value per channel (a single sample in a layer
    of ``BatchNorm1d``) is normalised by the source statistics, since it has no variance.
    """

    name: ClassVar[str] = "batch_norm_statistics"
    summary: ClassVar[str] = "Batch normalisation by test-batch statistics, or a mixture."
    reference: ClassVar[str] = (
        "Schneider et al.: Improving robustness against common corruptions by covariate shift "
        "adaptation, NeurIPS 2020, arXiv 2006.16971; code: github.com/bethgelab/robustness; "
        "Nado et al.: Evaluating Prediction-Time Batch Normalization for Robustness under "
        "Covariate Shift, 2020, arXiv 2006.10963"
    )

    @classmethod
    def space(cls) -> Space:
        """The batch's statistics alone, or a mixture with the weight of the source's."""
        weight = Float(1.0, 1024.0, log=True, default=16.0, prior=Prior(16.0, "medium"))
        return Space(
            {
                "statistics": Choice(
                    {"batch": Space({}), "mixed": Space({"prior_samples": weight})},
                    default="mixed",
                )
            }
        )

    @classmethod
    def supports(cls, model_info: ModelInfo) -> str | None:
        """Needs batch normalisation and a shifted stream."""
        if not model_info.shifted:
            return why_not(model_info)
        if not model_info.has(*BATCH_NORMS):
            return "the model has no batch normalisation layer"
        return None

    def prepare(self, model: nn.Module, source: Iterable[Any]) -> None:
        """Replace the model's batch normalisations."""
        statistics = self.configuration["statistics"]
        prior = 0.0 if statistics["name"] == "batch" else float(statistics["prior_samples"])
        self.model = frozen(model)
        if not normalise_by_target(self.model, prior):
            raise PluginError(f"tta {self.name!r}: the model has no batch normalisation layer")

    @torch.no_grad()
    def predict(self, inputs: Any) -> Tensor:
        """Logits of one batch under its own statistics."""
        return self.model(inputs)

    def reset(self) -> None:
        """Nothing is carried over."""

    def state_dict(self) -> dict[str, Any]:
        """Empty."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to load."""

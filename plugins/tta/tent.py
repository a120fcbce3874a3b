"""Tent: minimise the entropy of predictions by the normalisation layers' scales and shifts."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from autotune.plugins import TTA, ModelInfo, PluginError
from autotune.space import Categorical, Float, Integer, Prior, Space

from ._model import BATCH_NORMS, frozen, normalise_by_target, why_not

_NORMS = (_BatchNorm, _InstanceNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_CHANNEL_NORMS = (
    *BATCH_NORMS,
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
)
_FEATURE_NORMS = ("LayerNorm", "RMSNorm")


def affine_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Scales and shifts of all normalisation layers, in the model's order."""
    return [
        parameter
        for module in model.modules()
        if isinstance(module, _NORMS)
        for parameter in (module.weight, getattr(module, "bias", None))
        if parameter is not None
    ]


def entropy(logits: Tensor) -> Tensor:
    """Shannon entropy, in nats, of the softmax of `logits` over the last axis."""
    logarithms = logits.log_softmax(-1)
    return -(logarithms.exp() * logarithms).sum(-1)


class Tent(TTA):
    """One or a few gradient steps a batch on the mean entropy of its predictions.

    Only the normalisation layers' affine parameters move; batch normalisation uses the
    batch's statistics throughout. As in paper and author code the logits returned are those
    from before the step (of the last one, if there are several), so a batch's adaptation helps
    the next. Differences from the author code: it adapts ``BatchNorm2d`` alone, this every
    normalisation layer with affine parameters (layer and group normalisation as well, which
    have no statistics to replace; SAR, arXiv 2302.12400, found these stable in small batches);
    and it switches the model to training mode, this to eval mode, so that dropout is off. A
    batch with one value per channel is normalised by the source statistics. Defaults are the
    author's for CIFAR (Adam, 1e-3); on ImageNet they use SGD with 2.5e-4 and momentum 0.9.
    """

    name: ClassVar[str] = "tent"
    summary: ClassVar[str] = "Entropy minimisation by the normalisation layers' affine weights."
    reference: ClassVar[str] = (
        "Wang, Shelhamer, Liu, Olshausen, Darrell: Tent: Fully Test-Time Adaptation by Entropy "
        "Minimization, ICLR 2021, arXiv 2006.10726; code: github.com/DequanWang/tent"
    )

    @classmethod
    def space(cls) -> Space:
        """Optimizer, its learning rate, steps a batch."""
        return Space(
            {
                "optimizer": Categorical(("adam", "sgd"), default="adam"),
                "learning_rate": Float(
                    1e-5, 1e-1, log=True, default=1e-3, prior=Prior(1e-3, "medium")
                ),
                "steps": Integer(1, 3, default=1, prior=Prior(1, "medium")),
            }
        )

    @classmethod
    def supports(cls, model_info: ModelInfo) -> str | None:
        """Needs class logits, a shifted stream, and normalisation with affine parameters."""
        reason = why_not(model_info)
        if reason is not None:
            return reason
        if not model_info.has(*_CHANNEL_NORMS, *_FEATURE_NORMS):
            return "the model has no normalisation layer"
        # A scale per channel is a vector called weight; layer norms' may have any shape.
        vectors = any(
            len(shape) == 1 and name.rpartition(".")[2] == "weight"
            for name, shape in model_info.parameter_shapes.items()
        )
        if not vectors and not model_info.has(*_FEATURE_NORMS):
            return "the model's normalisation layers have no affine parameters"
        return None

    def prepare(self, model: nn.Module, source: Iterable[Any]) -> None:
        """Free the affine parameters, freeze the rest, remember both."""
        self.model = frozen(model)
        normalise_by_target(self.model, prior_samples=0)
        self.parameters = affine_parameters(self.model)
        if not self.parameters:
            raise PluginError(
                f"tta {self.name!r}: the model has no normalisation layer with affine parameters"
            )
        for parameter in self.parameters:
            parameter.requires_grad_(True)
        self.optimizer = self._build_optimizer()
        self.prepared = copy.deepcopy(self.model.state_dict())

    @torch.enable_grad()
    def predict(self, inputs: Any) -> Tensor:
        """Logits of one batch, then a step on their mean entropy (`steps` times)."""
        for _ in range(self.configuration["steps"]):
            logits = self.model(inputs)
            self.optimizer.zero_grad()
            entropy(logits).mean().backward()
            self.optimizer.step()
        self.optimizer.zero_grad()
        return logits.detach()

    def reset(self) -> None:
        """Return to the trained model and a fresh optimizer."""
        self.model.load_state_dict(self.prepared)
        self.optimizer = self._build_optimizer()

    def state_dict(self) -> dict[str, Any]:
        """Model and optimizer."""
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])

    def _build_optimizer(self) -> torch.optim.Optimizer:
        rate = self.configuration["learning_rate"]
        if self.configuration["optimizer"] == "adam":
            return torch.optim.Adam(self.parameters, lr=rate)
        return torch.optim.SGD(self.parameters, lr=rate, momentum=0.9)

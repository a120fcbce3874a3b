"""Exponential moving average of a model's weights, which is then what is judged and kept."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class WeightAverage:
    """Averages the trainable parameters and the floating-point buffers of a model.

    After optimizer step t the decay is ``min(decay, (1 + t) / (10 + t))``, so that the initial
    weights are soon forgotten (as in TensorFlow's ``ExponentialMovingAverage(num_updates)``).

    Args:
        model: averaged in place as it stands.
        decay: in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.averages = {name: tensor.detach().clone() for name, tensor in averaged(model)}

    @torch.no_grad()
    def update(self, model: nn.Module, steps: int) -> None:
        """Take in the weights after optimizer step number `steps`."""
        decay = min(self.decay, (1 + steps) / (10 + steps))
        for name, tensor in averaged(model):
            average = self.averages.get(name)
            if average is None or average.shape != tensor.shape:  # a buffer made while training
                self.averages[name] = tensor.detach().clone()
            else:
                average.lerp_(tensor.detach(), 1 - decay)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Overwrite the weights with their averages."""
        for name, tensor in averaged(model):
            average = self.averages.get(name)
            if average is not None and average.shape == tensor.shape:
                tensor.copy_(average)

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by name."""
        return self.averages

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from `state_dict`."""
        device = next(iter(self.averages.values())).device
        self.averages = {name: average.to(device) for name, average in state.items()}


def averaged(model: nn.Module) -> list[tuple[str, Tensor]]:
    """The tensors that training changes and that have a mean, by name."""
    return [
        *((name, p) for name, p in model.named_parameters() if p.requires_grad),
        *((name, b) for name, b in model.named_buffers() if b.is_floating_point()),
    ]

"""The networks of deep power laws (Kadra et al. 2023, arXiv 2302.00441): each maps a configuration
to the coefficients of a power law, ``y(s) = a + b * s^-c`` (the paper's equation 3).

Here the law is written ``end + b * (s^-c - 1)``, with s the share of the horizon, so that one
coefficient is what is asked for most; and it has an error, which the paper leaves to the
spread of the ensemble: an Ornstein-Uhlenbeck process in log time (what a curve has over its law
now it has, in part, later) and noise, their sizes further outputs of the network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch.nn import functional

from autotune.plugins.search import FloatArray

MEMBERS = 5
"""Networks in the ensemble, as in the paper."""

WIDTH = 32
"""Units of each of two hidden layers (the paper's have 128)."""

STEPS, BATCH, RATE = 150, 256, 1e-2
"""Steps of Adam, observations a step (or all, if they are fewer), and the first learning rate,
which falls to 0."""

_OUTPUTS = 5
_FIRST_DEVIATION, _LEAST_DEVIATION = 0.1, 1e-3
_DECAY = 1e-3
_BETAS, _EPSILON, _CLIP = (0.9, 0.999), 1e-8, 5.0 * MEMBERS


@dataclass(frozen=True)
class Examples:
    """Observations and, of each, the one before it on its curve.

    Args:
        points: (observations, features), in the unit cube.
        time, value: (observations,); time as a share of the horizon, values normalised.
        time_before, value_before: likewise; for a first observation `time_before` is 0.
        curve: the number of its curve, from 0, (observations,).
    """

    points: FloatArray
    time: FloatArray
    value: FloatArray
    time_before: FloatArray
    value_before: FloatArray
    curve: np.ndarray


@dataclass(frozen=True)
class Networks:
    """The trained ensemble: weights and biases of every layer, (members, in, out) and
    (members, 1, out); `persistence` of the error, (members, 1)."""

    layers: list[torch.Tensor]
    persistence: torch.Tensor

    def ahead(
        self, points: FloatArray, time: FloatArray, before: FloatArray, value: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """Mean and variance over the ensemble at `time`, of curves that had `value` at `before`
        (0: not observed yet); all (queries,) but for points, (queries, features)."""
        with torch.no_grad():
            tensors = [torch.from_numpy(a) for a in (points, time, before, value)]
            mean, variance = _moments(self.layers, self.persistence, *tensors)
            middle = mean.mean(0)
            total = variance.mean(0) + mean.var(0, unbiased=False)
        return middle.numpy(), total.numpy()


def trained(examples: Examples, seed: int) -> Networks:
    """An ensemble that differs in its first weights, its batches, and in how much each curve
    counts (Bayesian bootstrap)."""
    generator = torch.Generator().manual_seed(seed)
    layers = _first(examples, generator)
    persistence = torch.zeros(MEMBERS, 1, dtype=torch.float64)
    parameters = [*layers, persistence]
    for parameter in parameters:
        parameter.requires_grad_()
    adam = _Adam(parameters)
    uniform = torch.rand(
        MEMBERS, int(examples.curve.max()) + 1, generator=generator, dtype=torch.float64
    )
    weight = -torch.log1p(-uniform)[:, torch.from_numpy(examples.curve)]
    tensors = [
        torch.from_numpy(array)
        for array in (examples.points, examples.time, examples.time_before, examples.value_before)
    ]
    value = torch.from_numpy(examples.value)
    count = len(value)
    for step in range(STEPS):
        rows = torch.randperm(count, generator=generator)[:BATCH]
        mean, variance = _moments(layers, persistence, *(tensor[rows] for tensor in tensors))
        loss = (weight[:, rows] * ((value[rows] - mean) ** 2 / variance + variance.log())).sum()
        gradients = torch.autograd.grad(loss / len(rows), parameters)
        adam.step(gradients, RATE * (1 - step / STEPS))
    return Networks([layer.detach() for layer in layers], persistence.detach())


class _Adam:
    """Adam (Kingma and Ba 2015, 1412.6980) on clipped gradients, with decoupled weight decay.
    PyTorch's own loads its compiler at the first step: seconds, and a changed environment."""

    def __init__(self, parameters: list[torch.Tensor]) -> None:
        self._parameters = parameters
        self._first = [torch.zeros_like(parameter) for parameter in parameters]
        self._second = [torch.zeros_like(parameter) for parameter in parameters]
        self._steps = 0

    def step(self, gradients: Sequence[torch.Tensor], rate: float) -> None:
        """One step against `gradients`."""
        self._steps += 1
        norm = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()
        clipped = float((_CLIP / norm.clamp_min(_CLIP)).item())
        with torch.no_grad():
            for parameter, gradient, first, second in zip(
                self._parameters, gradients, self._first, self._second, strict=True
            ):
                first.lerp_(clipped * gradient, 1 - _BETAS[0])
                second.lerp_((clipped * gradient).square(), 1 - _BETAS[1])
                away = first / (1 - _BETAS[0] ** self._steps)
                size = (second / (1 - _BETAS[1] ** self._steps)).sqrt() + _EPSILON
                parameter.mul_(1 - rate * _DECAY).sub_(rate * away / size)


def _first(examples: Examples, generator: torch.Generator) -> list[torch.Tensor]:
    sizes = [examples.points.shape[1], WIDTH, WIDTH, _OUTPUTS]
    layers = []
    for width_in, width_out in pairwise(sizes):
        normal = torch.randn(MEMBERS, width_in, width_out, generator=generator, dtype=torch.float64)
        layers.append(normal * math.sqrt(2.0 / max(width_in, 1)))
        layers.append(torch.zeros(MEMBERS, 1, width_out, dtype=torch.float64))
    layers[-2] *= 0.1
    deviation = math.log(_FIRST_DEVIATION)
    start = [float(np.median(examples.value)), -2.0, -0.5, deviation, deviation - 1.0]
    layers[-1] += torch.tensor(start, dtype=torch.float64)
    return layers


def _moments(
    layers: list[torch.Tensor],
    persistence: torch.Tensor,
    points: torch.Tensor,
    time: torch.Tensor,
    before: torch.Tensor,
    value: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance by member, (members, queries)."""
    hidden = (2.0 * points - 1.0).expand(MEMBERS, -1, -1)
    for place in range(0, len(layers), 2):
        hidden = torch.baddbmm(layers[place + 1], hidden, layers[place])
        if place < len(layers) - 2:
            hidden = functional.leaky_relu(hidden)
    end, size, exponent, log_error, log_noise = hidden.unbind(2)
    size = functional.softplus(size)
    exponent = 0.05 + 2.0 * torch.sigmoid(exponent)
    error = _LEAST_DEVIATION + log_error.clamp(-8.0, 1.0).exp()
    noise = _LEAST_DEVIATION + log_noise.clamp(-8.0, 1.0).exp()
    law = end + size * (time**-exponent - 1.0)
    seen = before > 0
    safe = torch.where(seen, before, time)
    there = end + size * (safe**-exponent - 1.0)
    # Times may stand in either order: a value is as near to an earlier as to a later one.
    ratio = torch.minimum(safe, time) / torch.maximum(safe, time)
    kept = torch.where(seen, ratio ** persistence.exp(), torch.zeros_like(ratio))
    mean = law + kept * (value - there)
    return mean, error**2 * (1.0 - kept**2) + noise**2

"""The gradient of each sample by itself, and what batch-size tests want to know of them.

`torch.func` vectorises one sample's gradient over a batch, beside the step's own forward and
backward pass. The model is called with batches of one sample; so samples must not meet in it
(batch norm), and a loss that weights samples by the rest of their batch is taken as if there
were no rest. Dropout draws masks of its own. An adapter's extra loss, the same for every sample,
adds nothing to their spread and is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from autotune.plugins import PluginError, Signals
from autotune.train.evaluation import Loss, apply_loss, check_outputs
from autotune.train.tensors import Spread, map_tensors, tensors_of

ELEMENTS_AT_ONCE = 2**25
"""Gradient elements held at a time while spreads are measured (128 MiB in float32)."""

Prepared = tuple[Any, Any, int]
"""Inputs, targets and the number of samples of a batch, ready for the model."""


@dataclass(frozen=True)
class SampleGradients:
    """Takes per-sample gradients of a model.

    Args:
        model: as it trains.
        loss: of outputs and targets.
        parameters: the trainable ones by name.
        autocast: gives the precision to compute in.
    """

    model: nn.Module
    loss: Loss
    parameters: Sequence[tuple[str, nn.Parameter]]
    autocast: Callable[[], AbstractContextManager[Any]]

    def of(self, batches: Sequence[Prepared], at_once: int) -> Iterator[dict[str, Tensor]]:
        """Gradients by parameter name, each of shape (samples, *parameter's), for at most
        `at_once` samples at a time, in order.

        Raises:
            PluginError: torch cannot vectorise the model or its loss.
        """
        for inputs, targets, samples in batches:
            for start in range(0, samples, at_once):
                yield self._vectorised(*_cut((inputs, targets), start, start + at_once))

    def _vectorised(self, inputs: Any, targets: Any) -> dict[str, Tensor]:
        # Spread takes inputs of any structure as one argument, so its names have a prefix.
        wrapped = Spread(self.model)
        weights = {f"model.{name}": p.detach() for name, p in self.parameters}
        rest = {name: p.detach() for name, p in wrapped.named_parameters() if name not in weights}
        # copies, since a forward pass may count or average in its buffers
        buffers = {name: buffer.clone() for name, buffer in wrapped.named_buffers()}
        if not all(tensor.ndim for tensor in tensors_of((inputs, targets))):
            raise PluginError("the gradient of each sample needs inputs with an axis of samples")

        def loss_of(
            weights: Mapping[str, Tensor], buffers: Mapping[str, Tensor], inputs: Any, targets: Any
        ) -> Tensor:
            inputs, targets = map_tensors(lambda tensor: tensor.unsqueeze(0), (inputs, targets))
            with self.autocast():
                outputs = functional_call(wrapped, {**weights, **rest, **buffers}, (inputs,))
                return apply_loss(self.loss, check_outputs(outputs, inputs), targets)

        try:
            gradient_of_each = vmap(
                grad(loss_of), in_dims=(None, None, 0, 0), randomness="different"
            )
            found = gradient_of_each(weights, buffers, inputs, targets)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError) as error:
            why = " ".join(str(error).split())
            raise PluginError(
                "the gradient of each sample cannot be taken of this model; expected a model and "
                "a loss that torch.func.vmap can vectorise: no batch norm, no Python branch on a "
                f"tensor's value, no .item(). torch says: {why}"
            ) from error
        return {name.removeprefix("model."): gradient for name, gradient in found.items()}


def keep_samples(gradients: SampleGradients, batches: Sequence[Prepared]) -> None:
    """Put each parameter's per-sample gradients into its ``grad_sample``."""
    parts = list(gradients.of(batches, at_once=max(samples for _, _, samples in batches)))
    for name, parameter in gradients.parameters:
        parameter.grad_sample = torch.cat([part[name] for part in parts])  # type: ignore[attr-defined]


@torch.no_grad()
def spread(
    gradients: SampleGradients,
    batches: Sequence[Prepared],
    mean: Mapping[str, Tensor],
    limit: int | None,
) -> Signals:
    """The spread of the first `limit` samples' gradients (None: of all) about the step's
    gradient `mean`, by parameter name (absent: zero). See `Signals` for what is measured.

    Raises:
        PluginError: there are fewer than two samples, or the model cannot be vectorised.
    """
    batches = _first(batches, limit)
    samples = sum(count for _, _, count in batches)
    elements = sum(parameter.numel() for _, parameter in gradients.parameters)
    g = {name: _gradient(mean.get(name), p) for name, p in gradients.parameters}
    squared_norm = math.fsum(float(value.square().sum()) for value in g.values())
    if samples < 2:
        return Signals(gradient_norm=math.sqrt(squared_norm), measured_samples=samples)
    # sums of deviations from g, which is near their mean: no digits cancel
    total = {name: torch.zeros_like(value) for name, value in g.items()}
    squares = {name: torch.zeros_like(value) for name, value in g.items()}
    along: list[Tensor] = []
    for part in gradients.of(batches, max(1, ELEMENTS_AT_ONCE // elements)):
        inner: Tensor | float = 0.0
        for name, value in g.items():
            deviation = part[name].to(value.dtype).sub_(value)
            total[name] += deviation.sum(0)
            squares[name] += torch.linalg.vector_norm(deviation, dim=0).square_()
            inner = inner + deviation.flatten(1) @ value.flatten()
        assert isinstance(inner, Tensor)
        along.append(inner.double())
    variance, ratio = 0.0, 0.0
    for name, value in g.items():
        each = (squares[name] - total[name].square() / samples).clamp_(min=0) / (samples - 1)
        variance += float(each.sum(dtype=torch.float64))
        ratios = torch.where(each > 0, each / value.square(), 0.0)
        ratio = max(ratio, float(ratios.max()))
    inner_variance = float(torch.cat(along).var(correction=1))
    # g_i less its part along g: the variance that is left when that part's is taken away
    across = variance - inner_variance / squared_norm if squared_norm > 0 else variance
    return Signals(
        gradient_norm=math.sqrt(squared_norm),
        measured_samples=samples,
        per_sample_gradient_variance=variance,
        inner_product_variance=inner_variance,
        orthogonal_variance=max(0.0, across),
        coordinate_variance_ratio=ratio,
    )


def _gradient(value: Tensor | None, parameter: nn.Parameter) -> Tensor:
    """A gradient in at least float32."""
    value = torch.zeros_like(parameter) if value is None else value.detach()
    return value.float() if value.dtype.itemsize < 4 else value


def _first(batches: Sequence[Prepared], limit: int | None) -> list[Prepared]:
    """The batches' first `limit` samples."""
    kept: list[Prepared] = []
    left = math.inf if limit is None else limit
    for inputs, targets, samples in batches:
        count = int(min(left, samples))
        if count:
            kept.append((*_cut((inputs, targets), 0, count), count))
            left -= count
    return kept


def _cut(value: Any, start: int, stop: int) -> Any:
    """The samples from `start` to before `stop` of every tensor in `value`."""
    return map_tensors(lambda tensor: tensor[start:stop], value)

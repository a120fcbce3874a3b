"""How the learning rate follows the batch size, by rules and by the curvature that a batch shows.

`linear` (Goyal et al. 2017, arXiv 1706.02677) and `square_root` (Krizhevsky 2014, arXiv
1404.5997) take powers of the ratio of batch sizes. The random-matrix rule (Granziol, Zohren,
Roberts, JMLR 2022, arXiv 2006.09092) divides by the largest curvature that a batch's Hessian
shows: small batches add noise to it, so that the rate grows in proportion to the batch while
noise rules, and stops growing where it no longer does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from autotune.train.data import Data, fetch, is_iterable
from autotune.train.evaluation import Loss, apply_loss, check_outputs
from autotune.train.generators import derive_seed, isolated
from autotune.train.task import TaskError
from autotune.train.tensors import Spread, to_device

RULES = ("none", "linear", "square_root", "random_matrix", "random_matrix_adaptive")
MEASURING = ("random_matrix", "random_matrix_adaptive")
"""Rules that need `measure_curvature`; the first for descent along the gradient, the second for
Adam and its kin."""

LANCZOS_STEPS = 15
SMALL_BATCHES = 4
"""Batches of the reference size whose largest curvature is averaged."""
LARGE = 8
"""The size, in reference batches, of the one large batch that they are compared with."""


@dataclass(frozen=True)
class Curvature:
    """The largest curvature that batches show.

    Args:
        largest: of the whole training data's Hessian, lambda.
        noise: P sigma^2, parameters times the variance of an element of a sample's Hessian.
        samples: of the training data, N.
    """

    largest: float
    noise: float
    samples: int

    def of_batch(self, batch_size: int) -> float:
        """The largest eigenvalue of the Hessian of a batch of b samples, drawn without
        replacement, so that ``1/b' = 1/b - 1/N`` stands for its noise: ``lambda + P sigma^2 /
        (b' lambda)`` if lambda rises out of the noise, ``lambda > sqrt(P sigma^2 / b')``;
        otherwise the noise's edge, ``2 sqrt(P sigma^2 / b')``."""
        noise = self.noise * _thinness(batch_size, self.samples)
        if self.largest > math.sqrt(noise):
            return self.largest + noise / self.largest
        return 2 * math.sqrt(noise)


def rate_factor(
    rule: str, batch_size: int, reference: int, curvature: Curvature | None = None
) -> float:
    """What the rate tuned for batches of `reference` samples is multiplied by for batches of
    `batch_size`; `curvature` is for the rules in `MEASURING`.

    The random-matrix rule is the ratio of the two batches' largest curvatures, whose inverse
    bounds the rate of descent; Adam and its kin divide by the root of a curvature already, so
    for them it is the root of the ratio.
    """
    if rule == "none":
        return 1.0
    if curvature is None:
        ratio = batch_size / reference
    else:
        ratio = curvature.of_batch(reference) / curvature.of_batch(batch_size)
    return ratio if rule in ("linear", "random_matrix") else math.sqrt(ratio)


def fitted(small: tuple[int, float], large: tuple[int, float], samples: int) -> Curvature:
    """The curvature that shows these largest eigenvalues, each with its batch size."""
    (_, at_small), (_, at_large) = small, large
    thin_small, thin_large = (_thinness(size, samples) for size, _ in (small, large))
    slope = (at_small - at_large) / (thin_small - thin_large)
    if slope <= 0:  # no noise that the batches could show
        return Curvature((at_small + at_large) / 2, 0.0, samples)
    largest = at_large - slope * thin_large
    if largest > 0 and largest**2 > slope * largest * thin_small:
        return Curvature(largest, slope * largest, samples)
    # The small batches show nothing but noise: it alone explains what they show.
    noise = at_small**2 / (4 * thin_small)
    root = at_large**2 - 4 * noise * thin_large
    return Curvature((at_large + math.sqrt(root)) / 2 if root > 0 else 0.0, noise, samples)


def measure_curvature(
    model: nn.Module,
    loss: Loss,
    data: Data,
    reference: int,
    seed: int,
    device: torch.device,
) -> Curvature:
    """The curvature of the training loss at the model's weights, without augmentation or an
    adapter's extra loss, from `SMALL_BATCHES` batches and one large one. Costs `LANCZOS_STEPS`
    Hessian-vector products for each. Model and generators stay as they were.

    Raises:
        TaskError: there is too little data to tell noise from curvature, the data set cannot be
            drawn from, or the largest curvature is not above 0.
    """
    rule = "learning_rate_scaling: the random-matrix rule"
    if is_iterable(data.train):
        raise TaskError(f"{rule} draws samples from Data.train; expected no iterable data set")
    samples = len(data.train)
    size = min(LARGE * reference, samples)
    if size <= reference:
        raise TaskError(
            f"{rule} compares batches of {reference} samples with larger ones, but Data.train "
            f"has {samples}; expected a smaller reference_batch_size"
        )
    with isolated(derive_seed("curvature", seed), device):
        drawn = np.random.permutation(samples)  # noqa: NPY002  seeded by `isolated`

        def largest(indices: Any) -> float:
            pair = to_device(fetch(data, data.train, indices, seed=0), device)
            return _largest_curvature(model, loss, *pair)

        starts = range(0, min(size, SMALL_BATCHES * reference) - reference + 1, reference)
        found = [largest(drawn[start : start + reference]) for start in starts]
        small, large = math.fsum(found) / len(found), largest(drawn[:size])
    if not (small > 0 and large > 0 and math.isfinite(small + large)):
        raise TaskError(
            f"{rule} found largest curvatures of {small:g} and {large:g}; expected both above 0"
        )
    return fitted((reference, small), (size, large), samples)


def lanczos_largest(
    multiply: Callable[[Sequence[Tensor]], Sequence[Tensor]], start: Sequence[Tensor], steps: int
) -> float:
    """The largest eigenvalue of a symmetric operator, by the Lanczos recurrence from `start`.

    Without reorthogonalisation, which only adds copies of eigenvalues already found, and keeps
    three vectors instead of `steps`.
    """
    diagonal: list[float] = []
    beside: list[float] = []
    vector = _scaled(start, 1 / _norm(start))
    before = _scaled(start, 0.0)
    for _ in range(steps):
        product = multiply(vector)
        length = beside[-1] if beside else 0.0
        diagonal.append(_dot(product, vector))
        rest = [
            p - diagonal[-1] * v - length * b
            for p, v, b in zip(product, vector, before, strict=True)
        ]
        beside.append(_norm(rest))
        if beside[-1] <= 1e-10 * max(abs(d) for d in diagonal):
            break  # the vectors so far span all that the operator does to them
        before, vector = vector, _scaled(rest, 1 / beside[-1])
    off = beside[: len(diagonal) - 1]
    matrix = np.diag(diagonal) + np.diag(off, 1) + np.diag(off, -1)
    return float(np.linalg.eigvalsh(matrix)[-1])


def _largest_curvature(model: nn.Module, loss: Loss, inputs: Any, targets: Any) -> float:
    parameters = [p for p in model.parameters() if p.requires_grad]
    wrapped = Spread(model)
    # copies, since a forward pass may count or average in its buffers
    buffers = {name: buffer.clone() for name, buffer in wrapped.named_buffers()}
    # fused attention kernels have no second derivative
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        outputs = check_outputs(functional_call(wrapped, buffers, (inputs,)), inputs)
        value = apply_loss(loss, outputs, targets)
        gradients = torch.autograd.grad(
            value, parameters, create_graph=True, materialize_grads=True
        )

        def multiply(vector: Sequence[Tensor]) -> Sequence[Tensor]:
            return torch.autograd.grad(
                gradients, parameters, vector, retain_graph=True, materialize_grads=True
            )

        start = [torch.randn_like(p) for p in parameters]
        return lanczos_largest(multiply, start, LANCZOS_STEPS)


def _thinness(batch_size: int, samples: int) -> float:
    return max(0.0, 1 / batch_size - 1 / samples)


def _pairs(first: Sequence[Tensor], second: Sequence[Tensor]) -> Iterator[float]:
    for one, two in zip(first, second, strict=True):
        yield float((one.detach() * two.detach()).sum(dtype=torch.float64))


def _dot(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    return math.fsum(_pairs(first, second))


def _norm(vector: Sequence[Tensor]) -> float:
    return math.sqrt(_dot(vector, vector))


def _scaled(vector: Sequence[Tensor], factor: float) -> list[Tensor]:
    return [part.detach() * factor for part in vector]

"""Adafactor: Adam's second average kept as row and column means, hardly any state."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from autotune.plugins import Optimizer
from autotune.space import Float, Prior, Space

from ._adam import decay
from ._foreach import PIECE, ListOptimizer, Lists, zeros_like
from ._groups import parameter_groups
from ._spaces import learning_rate, weight_decay

SMALLEST = 1e-30
"""The paper's epsilon 1, added to squared gradients."""


class AdafactorOptimizer(ListOptimizer):
    """The rule of the paper's algorithms 4 and 5.

    ``beta_t = 1 - t^decay_exponent``; ``V`` averages ``g^2`` by ``beta_t``, for matrices only its
    row means R and column means C are kept and ``V = R C^T / mean(R)``; ``u = g / sqrt(V)``,
    divided by ``max(1, rms(u) / clip_threshold)``; ``w -= rho * max(epsilon2, rms(w)) * u`` with
    ``rho = min(lr, 1 / sqrt(t))``.

    Args:
        parameters: parameters or groups of them.
        lr: largest step relative to a tensor's size.
        decay_exponent: negative; see above.
        clip_threshold: the paper's d.
        smallest_scale: the paper's epsilon 2.
        weight_decay: decoupled, multiplied by ``lr``.
    """

    title = "Adafactor"
    elementwise = False
    apart = ("step", "square", "rows", "columns")

    def __init__(
        self,
        parameters: Iterable[Any],
        lr: float,
        decay_exponent: float = -0.8,
        clip_threshold: float = 1.0,
        smallest_scale: float = 1e-3,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "decay_exponent": decay_exponent, "weight_decay": weight_decay}
        limits = {"clip_threshold": clip_threshold, "smallest_scale": smallest_scale}
        super().__init__(parameters, {**defaults, **limits})

    def new_state(self, parameter: Tensor) -> dict[str, Tensor]:
        """Row means and column means over the last two dimensions; for vectors all squares."""
        if parameter.ndim < 2:
            return {"square": zeros_like(parameter)}
        zero = zeros_like(parameter[:0])
        *leading, rows, columns = parameter.shape
        return {
            "rows": zero.new_zeros(*leading, rows, 1),
            "columns": zero.new_zeros(*leading, 1, columns),
        }

    def update(self, lists: Lists) -> None:
        """See the class."""
        group = lists.group
        fresh = lists.step ** group["decay_exponent"]
        relative = min(group["lr"], lists.step**-0.5)
        sizes = torch._foreach_norm(lists.weights)
        decay(lists)
        for parameter, weight, grad, size in zip(
            lists.parameters, lists.weights, lists.grads, sizes, strict=True
        ):
            rows, columns = _factors(self.state[parameter], grad, fresh)
            parts = _parts(weight, grad, rows)
            squares = [_update(slope, row, columns).square_().sum() for _, slope, row in parts]
            root = weight.numel() ** 0.5
            excess = torch.stack(squares).sum().sqrt() / (root * group["clip_threshold"])
            scale = (size / root).clamp_min(group["smallest_scale"]) / excess.clamp_min(1.0)
            scale *= -relative
            for piece, slope, row in parts:
                piece.addcmul_(_update(slope, row, columns), scale)


def _factors(state: dict[str, Tensor], grad: Tensor, fresh: float) -> tuple[Tensor, Tensor]:
    """Take the squared gradient into the average; two factors of its ``1 / sqrt(V)``, the first
    of as many rows as the gradient."""
    if grad.ndim < 2:
        squares = state["square"].lerp_(grad.square() + SMALLEST, fresh)
        return squares.rsqrt(), squares.new_ones(())
    of_rows, of_columns = _means_of_squares(grad)
    rows = state["rows"].lerp_(of_rows.add_(SMALLEST), fresh)
    columns = state["columns"].lerp_(of_columns.add_(SMALLEST), fresh)
    return rows.rsqrt(), (columns / rows.mean(dim=-2, keepdim=True)).rsqrt_()


def _update(grad: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    return (grad * rows).mul_(columns)


def _parts(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """Matrices on a CPU in slices of rows that fit its cache; anything else as it is."""
    first = tensors[0]
    if first.device.type != "cpu" or first.ndim != 2:
        return [tensors]
    length = max(1, PIECE // max(1, first.shape[1]))
    return list(zip(*(tensor.split(length) for tensor in tensors), strict=True))


def _means_of_squares(grad: Tensor) -> tuple[Tensor, Tensor]:
    """Means of the squares over the last dimension and over the one before, both kept."""
    *leading, rows, columns = grad.shape
    of_rows, of_columns = grad.new_empty(*leading, rows, 1), grad.new_zeros(*leading, 1, columns)
    for piece, of_piece in _parts(grad, of_rows):
        squares = piece.square()
        of_piece.copy_(squares.mean(-1, keepdim=True))
        of_columns += squares.sum(-2, keepdim=True)
    return of_rows, of_columns.div_(rows)


class Adafactor(Optimizer):
    """Adam's adaptivity at a fraction of its memory, with steps relative to weights' sizes.

    The paper's algorithm without momentum, as ``torch.optim.Adafactor`` has it: ``lr`` caps the
    relative step, and weight decay, which the paper does not have, is decoupled. Kernels of
    convolutions are factored over their last two dimensions, as torch does. Where gradients
    vanish torch bounds the second average below by its type's precision; here the paper's
    1e-30 is added to the squares.
    """

    name: ClassVar[str] = "adafactor"
    summary: ClassVar[str] = "Adam with factored second moments and steps relative to the weights."
    reference: ClassVar[str] = (
        "Shazeer, Stern: Adafactor: Adaptive Learning Rates with Sublinear Memory Cost, ICML "
        "2018, arXiv 1804.04235; code: torch.optim.Adafactor"
    )
    carries_over: ClassVar[bool] = False

    @classmethod
    def space(cls) -> Space:
        """Cap of the relative step, decay of the average, clipping, weight decay."""
        return Space(
            {
                "learning_rate": learning_rate(1e-2, 1e-4, 1e-1),
                "decay_exponent": Float(-1.0, -0.5, default=-0.8, prior=Prior(-0.8, "high")),
                "clip_threshold": Float(0.5, 2.0, log=True, default=1.0, prior=Prior(1.0, "high")),
                "weight_decay": weight_decay(1e-2, 1e-5, 0.5),
            }
        )

    def build(self, named_parameters: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """An `AdafactorOptimizer` over the decayed and the other parameters."""
        return AdafactorOptimizer(
            parameter_groups(named_parameters, self.configuration["weight_decay"]),
            lr=self.configuration["learning_rate"],
            decay_exponent=self.configuration["decay_exponent"],
            clip_threshold=self.configuration["clip_threshold"],
        )

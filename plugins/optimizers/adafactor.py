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
        counts = [float(weight.numel()) for weight in lists.weights]
        sizes = torch._foreach_norm(lists.weights)
        torch._foreach_div_(sizes, [count**0.5 for count in counts])
        decay(lists)
        factors, squares = [], []
        for parameter, grad in zip(lists.parameters, lists.grads, strict=True):
            rows, columns, square = _factors(self.state[parameter], grad, fresh)
            factors.append((rows, columns))
            squares.append(square)
        torch._foreach_div_(squares, counts)
        excess = torch.stack(squares).sqrt_().div_(group["clip_threshold"]).clamp_min_(1.0)
        scales = torch.stack(sizes).clamp_min_(group["smallest_scale"]).div_(excess)
        scales *= -min(group["lr"], lists.step**-0.5)
        for weight, grad, (rows, columns), scale in zip(
            lists.weights, lists.grads, factors, scales.unbind(), strict=True
        ):
            if columns is None:
                weight.addcmul_(grad, rows.mul_(scale))
                continue
            for piece, slope, row in _parts(weight, grad, rows.mul_(scale)):
                piece.addcmul_(slope * row, columns)


def _factors(
    state: dict[str, Tensor], grad: Tensor, fresh: float
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Take the squared gradient into the average; of ``1 / sqrt(V)`` the factors, by rows and by
    columns, of vectors the whole, and the sum of the squares of ``u = g / sqrt(V)``."""
    if grad.ndim < 2:
        squares = grad.square()
        average = state["square"].lerp_(squares + SMALLEST, fresh)
        return average.rsqrt(), None, squares.div_(average).sum()
    parts = [piece for (piece,) in _parts(grad)]
    whole = parts[0].square() if len(parts) == 1 else None  # more would leave the cache
    rows, columns = state["rows"], state["columns"]
    of_rows, of_columns = _means_of_squares(parts, whole)
    rows.lerp_(of_rows.add_(SMALLEST), fresh)
    columns.lerp_(of_columns.add_(SMALLEST), fresh)
    mean = rows.mean(dim=-2, keepdim=True)
    # the sum of g^2 / (R C^T / mean(R)), in an order in which neither row nor column without
    # any gradient yet overflows
    if whole is not None:
        along = _over_columns(whole, columns)
    else:
        along = torch.cat([_over_columns(piece.square(), columns) for piece in parts])
    square = along.div_(rows).mul_(mean).sum()
    return rows.rsqrt(), (columns / mean).rsqrt_(), square


def _over_columns(squares: Tensor, columns: Tensor) -> Tensor:
    """The sum of ``squares / columns`` over the last dimension, which is kept."""
    if squares.ndim == 2 and squares.device.type == "cpu":  # one pass
        return squares @ columns.reciprocal().mT
    return (squares / columns).sum(-1, keepdim=True)


def _parts(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """Matrices on a CPU in slices of rows that fit its cache; anything else as it is."""
    first = tensors[0]
    if first.device.type != "cpu" or first.ndim != 2 or first.numel() <= PIECE:
        return [tensors]
    length = max(1, PIECE // max(1, first.shape[1]))
    return list(zip(*(tensor.split(length) for tensor in tensors), strict=True))


def _means_of_squares(parts: list[Tensor], whole: Tensor | None) -> tuple[Tensor, Tensor]:
    """Means of the squares over the last dimension and over the one before, both kept; `whole`
    are the squares where there is one part."""
    if whole is not None:
        return whole.mean(-1, keepdim=True), whole.mean(-2, keepdim=True)
    of_rows, of_columns = [], torch.zeros_like(parts[0][:1])
    for part in parts:
        squares = part.square()
        of_rows.append(squares.mean(-1, keepdim=True))
        of_columns += squares.sum(-2, keepdim=True)
    return torch.cat(of_rows), of_columns.div_(sum(len(part) for part in parts))


class Adafactor(Optimizer):
    """Adam's adaptivity at a fraction of its memory, with steps relative to weights' sizes.

    The paper's algorithm without momentum, as ``torch.optim.Adafactor`` has it: ``lr`` caps the
    relative step, and weight decay, which the paper does not have, is decoupled. Kernels of
    convolutions are factored over their last two dimensions, as torch does. Where gradients
    vanish torch bounds the second average below by its type's precision; the paper is followed,
    which adds 1e-30 to the squares.
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

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
        relative = min(group["lr"], lists.step**-0.5)
        fresh = lists.step ** group["decay_exponent"]
        sizes = torch._foreach_norm(lists.weights)
        decay(lists)
        for parameter, weight, grad, size in zip(
            lists.parameters, lists.weights, lists.grads, sizes, strict=True
        ):
            state = self.state[parameter]
            update = (
                _by_factors(state, grad, fresh) if weight.ndim > 1 else _whole(state, grad, fresh)
            )
            root = weight.numel() ** 0.5
            scale = (size / root).clamp_min_(group["smallest_scale"]).mul_(-relative)
            excess = (update.norm() / (root * group["clip_threshold"])).clamp_min_(1.0)
            weight.addcmul_(update, scale / excess)


def _whole(state: dict[str, Tensor], grad: Tensor, fresh: float) -> Tensor:
    state["square"].lerp_(grad.square() + SMALLEST, fresh)
    return grad * state["square"].rsqrt()


def _by_factors(state: dict[str, Tensor], grad: Tensor, fresh: float) -> Tensor:
    of_rows, of_columns = _means_of_squares(grad)
    rows, columns = state["rows"], state["columns"]
    rows.lerp_(of_rows.add_(SMALLEST), fresh)
    columns.lerp_(of_columns.add_(SMALLEST), fresh)
    share = columns / rows.mean(dim=-2, keepdim=True)
    return (grad * rows.rsqrt()).mul_(share.rsqrt_())


def _means_of_squares(grad: Tensor) -> tuple[Tensor, Tensor]:
    """Means of the squares over the last dimension and over the one before, both kept."""
    if grad.device.type != "cpu" or grad.ndim > 2:
        squares = grad.square()
        return squares.mean(-1, keepdim=True), squares.mean(-2, keepdim=True)
    rows = grad.new_empty(len(grad), 1)
    columns = grad.new_zeros(1, grad.shape[1])
    first = 0
    for part in grad.split(max(1, PIECE // max(1, grad.shape[1]))):
        squares = part.square()
        rows[first : first + len(part)] = squares.mean(1, keepdim=True)
        columns += squares.sum(0, keepdim=True)
        first += len(part)
    return rows, columns.div_(len(grad))


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

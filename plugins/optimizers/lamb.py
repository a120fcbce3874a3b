"""LAMB: Adam whose step of each layer is scaled to the size of the layer's weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from autotune.plugins import Optimizer
from autotune.space import Space

from ._adam import MOMENTS, adamw_step, new_directions
from ._foreach import ListOptimizer, Lists, Tensors, dots, of_owners, pieces, totals
from ._layerwise import scaled_groups, trusted
from ._spaces import beta1, beta2, epsilon, learning_rate, weight_decay


class LAMBOptimizer(ListOptimizer):
    """The rule of the paper's algorithm 2, with the identity as its scaling function.

    ``u = m_hat / (sqrt(v_hat) + eps) + weight_decay * w``; ``w -= lr * trust * u`` with
    ``trust = |w| / |u|`` over the whole tensor, 1 where one of the two norms is zero and in
    groups whose ``scaled`` is False.

    Args:
        parameters: parameters or groups of them.
        lr: learning rate.
        betas: factors of the two averages.
        eps: added to the divisor.
        weight_decay: within the scaled update.
    """

    title = "LAMB"
    buffers = MOMENTS
    elementwise = False

    def __init__(
        self,
        parameters: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(parameters, {**defaults, "scaled": True})

    def update(self, lists: Lists) -> None:
        """See the class."""
        group = lists.group
        if not group["scaled"]:
            for part in pieces(lists):
                adamw_step(part, group["lr"], group["weight_decay"])
            return
        sizes = torch.stack(torch._foreach_norm(lists.weights))
        lengths: list[tuple[int, Tensor]] = []
        kept: list[tuple[Lists, Tensors]] = []
        for part in pieces(lists):
            updates = new_directions(part)
            if group["weight_decay"] != 0:
                torch._foreach_add_(updates, part.weights, alpha=group["weight_decay"])
            lengths += zip(part.owners, dots(updates, updates), strict=True)
            kept.append((part, updates))
        ratios = trusted(sizes, totals(lengths, len(sizes)).sqrt())
        for part, updates in kept:
            of_parts = of_owners(ratios, part)
            torch._foreach_addcmul_(part.weights, updates, of_parts, value=-float(group["lr"]))


class LAMB(Optimizer):
    """Adam with layer-wise trust ratios, for large batches.

    Vectors (norms, biases) are neither decayed nor scaled, as in the authors' code, which is
    followed; the paper does not except them. That code also clips the gradient's global norm to 1,
    which is the training loop's business here.
    """

    name: ClassVar[str] = "lamb"
    summary: ClassVar[str] = (
        "Adam scaled layer by layer to the weights' norm (not for norms and biases)."
    )
    reference: ClassVar[str] = (
        "You et al.: Large Batch Optimization for Deep Learning: Training BERT in 76 minutes, "
        "ICLR 2020, arXiv 1904.00962; code: github.com/tensorflow/addons"
    )
    carries_over: ClassVar[bool] = False

    @classmethod
    def space(cls) -> Space:
        """Learning rate, both averages' factors, epsilon, weight decay."""
        return Space(
            {
                "learning_rate": learning_rate(3e-3, 1e-4, 1e-1),
                "beta1": beta1(),
                "beta2": beta2(),
                "epsilon": epsilon(1e-6, 1e-8, 1e-5),
                "weight_decay": weight_decay(1e-2, 1e-4, 0.1),
            }
        )

    def normalises(self) -> Literal["nothing", "elements", "tensors"]:
        """Each tensor's step as a whole."""
        return "tensors"

    def build(self, named_parameters: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """A `LAMBOptimizer` over the decayed and scaled, and the other parameters."""
        return LAMBOptimizer(
            scaled_groups(named_parameters, self.configuration["weight_decay"]),
            lr=self.configuration["learning_rate"],
            betas=(self.configuration["beta1"], self.configuration["beta2"]),
            eps=self.configuration["epsilon"],
        )

"""perpGrad: AdamW along gradients orthogonal to the weights, and the StableMax loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from autotune.plugins import ModelInfo, Optimizer, PluginError
from autotune.space import Categorical, Space

from ._adam import MOMENTS, adamw_step
from ._foreach import ListOptimizer, Lists, dots, of_owners, pieces, totals
from ._groups import parameter_groups
from ._spaces import beta1, beta2, epsilon, learning_rate, weight_decay

TINY = 1e-30
"""Added to divisors, as in the authors' code."""
IGNORED = -100
"""The target that `torch.nn.functional.cross_entropy` leaves out by default."""


class PerpGradOptimizer(ListOptimizer):
    """AdamW on projected gradients, each tensor by itself.

    ``g' = g - <w, g> / <w, w> * w`` (equation 12 of the paper); if asked for, ``g'`` is stretched
    to the length of ``g``; then AdamW's step with ``g'``. A tensor of one number keeps its
    gradient, all of which is along it (the authors' code stretches the rounding error).

    Args:
        parameters: parameters or groups of them.
        lr: learning rate.
        betas: factors of the two averages.
        eps: added to the divisor.
        weight_decay: decoupled, multiplied by the scheduled rate.
        rescale: stretch, see above.
    """

    title = "perpGrad"
    buffers = MOMENTS
    elementwise = False

    def __init__(
        self,
        parameters: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        rescale: bool = True,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(parameters, {**defaults, "rescale": rescale})

    def update(self, lists: Lists) -> None:
        """See the class."""
        group = lists.group
        shares = _shares(lists)
        kept: list[tuple[Lists, list[Tensor]]] = []
        squares: list[tuple[int, Tensor]] = []
        for part in pieces(lists):
            kept.append((part, _projected(part, shares)))
            if group["rescale"]:
                squares += zip(part.owners, dots(kept[-1][1], kept[-1][1]), strict=True)
        if group["rescale"]:
            lengths = totals(squares, len(lists.weights)).sqrt()
            stretches = torch.stack(torch._foreach_norm(lists.grads)) / (lengths + TINY)
        for part, projected in kept:
            if group["rescale"]:
                torch._foreach_mul_(projected, of_owners(stretches, part))
            adamw_step(replace(part, grads=projected), group["lr"], group["weight_decay"])


def _shares(lists: Lists) -> Tensor:
    """``<w, g> / <w, w>`` of each tensor; zero where there is but one number, of which nothing
    would be left."""
    products = torch.stack(dots(lists.weights, lists.grads))
    squares = torch.stack(dots(lists.weights, lists.weights))
    several = torch.tensor([weight.numel() > 1 for weight in lists.weights])
    return products / (squares + TINY) * several.to(products.device)


def _projected(lists: Lists, shares: Tensor) -> list[Tensor]:
    return [
        torch.addcmul(grad, weight, share, value=-1)
        for grad, weight, share in zip(
            lists.grads, lists.weights, of_owners(shares, lists), strict=True
        )
    ]


def stablemax_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean of ``-log(s(x_y) / sum_c s(x_c))`` with ``s(x) = x + 1`` for ``x >= 0`` and
    ``1 / (1 - x)`` below (equations 5 and 6 of the paper), computed in float64.

    Args:
        logits: of shape (batch, classes), (batch, classes, ...) or (batch, ..., classes).
        targets: classes, integers of the same shape without the classes; -100 is left out.

    Raises:
        PluginError: for other shapes or kinds of targets, and for one that is no class.
    """
    if targets.is_floating_point() or targets.ndim + 1 != logits.ndim:
        raise PluginError(
            f"StableMax needs logits of shape (batch, classes) and one class a sample; got "
            f"outputs of shape {tuple(logits.shape)} and {targets.dtype} targets of shape "
            f"{tuple(targets.shape)}. Choose loss: task"
        )
    classes = -1 if logits.shape[:-1] == targets.shape else 1
    scores = logits.double().movedim(classes, -1).reshape(-1, logits.shape[classes])
    labels = targets.reshape(-1).long()  # uint8 knows no -100, and neither it nor int16 is an index
    kept = labels != IGNORED
    scores, labels = scores[kept], labels[kept]
    strange = (labels < 0) | (labels >= scores.shape[1])
    if strange.any():
        raise PluginError(
            f"StableMax met the target {labels[strange][0].item()}; expected 0 to "
            f"{scores.shape[1] - 1}, or {IGNORED}, which is left out. Choose loss: task"
        )
    positive = scores >= 0
    # Of the branch not taken the gradient would be nan at 1.
    below = 1 / (1 - torch.where(positive, 0.0, scores))
    stretched = torch.where(positive, scores + 1, below)
    chosen = stretched.gather(1, labels[:, None]).squeeze(1)
    return (stretched.sum(1).log() - chosen.log()).mean().to(logits.dtype)


class PerpGrad(Optimizer):
    """AdamW that cannot lower the loss by merely scaling weights, and so logits.

    The paper's two remedies against softmax collapse, together or alone. Its equation 12 does not
    stretch the projected gradient; the authors' code does, which is the default here. The paper
    writes it for all weights together; the code projects tensor by tensor, and is followed. With
    ``loss`` stablemax training minimises the StableMax cross-entropy in the place of the task's
    loss, so that ``training_loss`` is that; validation is still measured by the task's own.
    """

    name: ClassVar[str] = "perpgrad"
    summary: ClassVar[str] = "AdamW on gradients orthogonal to each weight tensor; StableMax loss."
    reference: ClassVar[str] = (
        "Prieto, Barsbey, Mediano, Birdal: Grokking at the Edge of Numerical Stability, ICLR "
        "2025, arXiv 2501.04697; code: "
        "github.com/LucasPrietoAl/grokking-at-the-edge-of-numerical-stability"
    )

    @classmethod
    def space(cls) -> Space:
        """AdamW's own, whether to stretch, and the loss to train with."""
        return Space(
            {
                "learning_rate": learning_rate(1e-3),
                "beta1": beta1(),
                "beta2": beta2(),
                "epsilon": epsilon(),
                "weight_decay": weight_decay(),
                "rescale": Categorical((True, False), default=True),
                "loss": Categorical(("task", "stablemax"), default="task"),
            }
        )

    @classmethod
    def supports(cls, model_info: ModelInfo) -> str | None:
        """StableMax stands in for a softmax over classes."""
        if not model_info.class_targets:
            return "its StableMax loss needs a model that returns class logits"
        return super().supports(model_info)

    def training_loss(self, loss: Callable[[Tensor, Any], Tensor]) -> Callable[..., Tensor]:
        """The task's loss, or StableMax's in its place."""
        return stablemax_cross_entropy if self.configuration["loss"] == "stablemax" else loss

    def build(self, named_parameters: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """A `PerpGradOptimizer` over the decayed and the other parameters."""
        return PerpGradOptimizer(
            parameter_groups(named_parameters, self.configuration["weight_decay"]),
            lr=self.configuration["learning_rate"],
            betas=(self.configuration["beta1"], self.configuration["beta2"]),
            eps=self.configuration["epsilon"],
            rescale=self.configuration["rescale"],
        )

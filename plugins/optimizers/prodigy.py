"""Prodigy: Adam that finds its own learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from autotune.plugins import Optimizer
from autotune.space import Categorical, Float, Prior, Space

from ._adam import MOMENTS, adamw_step, update_moments
from ._foreach import ListOptimizer, Lists, dots, pieces, zeros_like
from ._groups import parameter_groups
from ._spaces import beta1, beta2, epsilon, weight_decay


class ProdigyOptimizer(ListOptimizer):
    """The rule of the paper's algorithm 4, as the authors' package computes it.

    ``d`` estimates the distance from the start ``w_0`` to the solution. With
    ``rate = lr * d`` (times Adam's bias correction if asked for) and ``beta3 = sqrt(beta2)``:
    ``r = beta3 * r + d * rate / d_0 * <g, w_0 - w>``; ``s = beta3 * s + d * rate / d_0 * g``;
    ``m`` and ``v`` average ``d * g`` and its square; ``d = max(d, d_coefficient * r / |s|_1)``;
    ``w -= rate * m / (sqrt(v) + d * eps)``.

    Args:
        parameters: parameters or groups of them.
        lr: multiplies the estimate; 1 but for a schedule.
        betas: factors of the two averages.
        eps: added to the divisor, times ``d``.
        weight_decay: decoupled, multiplied by ``rate``.
        initial_d: ``d_0``; small.
        d_coefficient: multiplies each estimate.
        bias_correction: correct the averages' biases as Adam does.
        safeguard_warmup: leave ``lr`` out of ``s``, so that a warm-up does not inflate ``d``.
    """

    title = "Prodigy"
    buffers = (*MOMENTS, "slope_sum")

    def __init__(
        self,
        parameters: Iterable[Any],
        lr: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        initial_d: float = 1e-6,
        d_coefficient: float = 1.0,
        bias_correction: bool = False,
        safeguard_warmup: bool = False,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        estimation = {"initial_d": initial_d, "d_coefficient": d_coefficient}
        options = {"bias_correction": bias_correction, "safeguard_warmup": safeguard_warmup}
        estimate = {"d": initial_d, "numerator": 0.0}
        super().__init__(parameters, {**defaults, **estimation, **options, **estimate})

    def new_state(self, parameter: Tensor) -> dict[str, Tensor]:
        """Both averages, the sum of gradients, and the weights at first."""
        start = zeros_like(parameter).copy_(parameter)
        return {**super().new_state(parameter), "start": start}

    def take_step(self, everything: list[Lists]) -> None:
        """The estimate, and then the averages and the weights by the old estimate."""
        if not everything:
            return
        # All groups hold the same estimate; theirs must not change between them.
        rates = [_rate(lists) for lists in everything]
        old = everything[0].group["d"]
        measured = [
            _gather(part, rate)
            for lists, rate in zip(everything, rates, strict=True)
            for part in pieces(lists)
        ]
        product, size = torch.stack([tensor.cpu() for tensor in measured]).sum(0).tolist()
        self._estimate(product, size)
        for lists, rate in zip(everything, rates, strict=True):
            for part in pieces(lists):
                _move(part, old, rate if size > 0 else 0.0)

    def _estimate(self, product: float, size: float) -> None:
        """Take the step's product into the numerator, and the new ratio into ``d``."""
        group = self.param_groups[0]
        numerator = math.sqrt(group["betas"][1]) * group["numerator"] + product
        ratio = group["d_coefficient"] * numerator / size if size > 0 else 0.0
        d = max(group["d"], ratio)
        for group in self.param_groups:
            group.update(numerator=numerator, d=d)


def _rate(lists: Lists) -> float:
    """``lr * d``, corrected for the averages' biases if asked for."""
    group, (beta1, beta2) = lists.group, lists.group["betas"]
    rate = float(group["lr"] * group["d"])
    if group["bias_correction"]:
        rate *= math.sqrt(1 - beta2**lists.step) / (1 - beta1**lists.step)
    return rate


def _gather(lists: Lists, rate: float) -> Tensor:
    """Take the gradients into their sum; what they add to the numerator, and ``|s|_1``, as a
    tensor of shape (2,) and type float64."""
    group, grads, state = lists.group, lists.grads, lists.state
    d, scale = group["d"], group["d"] / group["initial_d"]
    gone = torch._foreach_sub(state["start"], lists.weights)
    products = dots(grads, gone)
    if rate > 0:
        torch._foreach_mul_(state["slope_sum"], math.sqrt(group["betas"][1]))
        weight = scale * (d if group["safeguard_warmup"] else rate)
        torch._foreach_add_(state["slope_sum"], grads, alpha=weight)
    # Four times as fast as the 1-norm of torch; into memory that is there.
    sums = zip(state["slope_sum"], gone, strict=True)
    sizes = [torch.abs(slope, out=used).sum() for slope, used in sums]
    product = torch.stack(products).double().sum() * (scale * rate)
    return torch.stack([product, torch.stack(sizes).double().sum()])


def _move(lists: Lists, old: float, rate: float) -> None:
    """Average ``old * g``, and ``w -= rate * (weight_decay * w + m / (sqrt(v) + d * eps))``.

    That is Adam's step, of whose corrections ``m_hat = m / of_mean`` and ``sqrt(v_hat) =
    sqrt(v) / of_root`` rate, decay and epsilon take back what Prodigy does not have.
    """
    group, (beta1, beta2) = lists.group, lists.group["betas"]
    scaled = replace(lists, grads=torch._foreach_mul(lists.grads, old))
    if rate == 0:
        update_moments(scaled)
        return
    of_mean, of_root = 1 - beta1**lists.step, math.sqrt(1 - beta2**lists.step)
    adam_rate = rate * of_mean / of_root
    decay = group["weight_decay"] * rate / adam_rate
    adamw_step(scaled, adam_rate, decay, group["d"] * group["eps"] / of_root)


class Prodigy(Optimizer):
    """Adam with an estimate of the distance to the solution as its rate.

    Follows the authors' package: it weighs what enters the sums ``r`` and ``s`` by ``1 / d_0``,
    where the paper has ``1 - beta3`` (either cancels), and takes the new ``d`` in ``d * eps`` but
    the old one in the rate. The authors advise a rate of 1 (which is fixed here; a schedule scales
    it) and a cosine schedule, and for warm-ups the safeguard. Short trials see little of it: the
    estimate starts tiny and grows for hundreds of steps.
    """

    name: ClassVar[str] = "prodigy"
    summary: ClassVar[str] = "Adam that estimates its own learning rate."
    reference: ClassVar[str] = (
        "Mishchenko, Defazio: Prodigy: An Expeditiously Adaptive Parameter-Free Learner, ICML "
        "2024, arXiv 2306.06101; code: github.com/konstmish/prodigy"
    )

    @classmethod
    def space(cls) -> Space:
        """The estimate's coefficient, Adam's own, and both options."""
        return Space(
            {
                "d_coefficient": Float(0.3, 3.0, log=True, default=1.0, prior=Prior(1.0, "medium")),
                "initial_d": Float(1e-7, 1e-4, log=True, default=1e-6, prior=Prior(1e-6, "high")),
                "beta1": beta1(),
                "beta2": beta2(),
                "epsilon": epsilon(),
                "weight_decay": weight_decay(),
                "bias_correction": Categorical((False, True), default=False),
                "safeguard_warmup": Categorical((False, True), default=False),
            }
        )

    def build(self, named_parameters: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """A `ProdigyOptimizer` over the decayed and the other parameters."""
        configuration = self.configuration
        return ProdigyOptimizer(
            parameter_groups(named_parameters, configuration["weight_decay"]),
            betas=(configuration["beta1"], configuration["beta2"]),
            eps=configuration["epsilon"],
            initial_d=configuration["initial_d"],
            d_coefficient=configuration["d_coefficient"],
            bias_correction=configuration["bias_correction"],
            safeguard_warmup=configuration["safeguard_warmup"],
        )

"""COSMOS: SOAP in the few leading directions of a matrix, Muon in all others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from autotune.plugins import ModelInfo, Optimizer, StepCost
from autotune.space import Float, Ordinal, Prior, Space

from . import _spaces
from ._cost import Shapes, orthogonalised, qr, sides
from ._groups import matrix_groups, no_matrices
from ._low_rank import leading_right_vectors
from ._matrix import MatrixOptimizer, add_, decay_, step_count
from ._orthogonal import newton_schulz

_TINY = 1e-8
"""Added to the norms that are divided by, as in the author code."""


class CosmosOptimizer(MatrixOptimizer):
    """The paper's algorithm 1 for an m x n matrix W with gradient G.

    ``M = beta1 M + (1 - beta1) G``;
    ``U = QR(beta2 U S + (1 - beta2) G^T G U)``, n x rank;
    ``S = U^T (beta2 U' S' U'^T + (1 - beta2) G^T G) U`` with the last step's ``U'`` and ``S'``;
    ``V = beta2 V + (1 - beta2) (G U)^2``;
    ``A = [(M U / (1 - beta1^t)) / (sqrt(V / (1 - beta2^t)) + eps)] U^T``;
    ``B = normalised(newton_schulz(M - M U U^T))``; ``W -= lr * normalised(A + gamma B)``, where
    ``normalised(X) = sqrt(m n) X / |X|``. State: ``m n + (m + n) rank + rank^2`` numbers.
    """

    title: ClassVar[str] = "COSMOS"

    def step_matrices(
        self,
        group: dict[str, Any],
        parameters: list[Tensor],
        gradients: list[Tensor],
        states: list[dict[str, Any]],
    ) -> None:
        """One matrix after the other: the decompositions have no list-wise form."""
        updates = [
            _update(group, gradient, state)
            for gradient, state in zip(gradients, states, strict=True)
        ]
        decay_(group, parameters)
        add_(parameters, updates, -group["lr"])


def _update(group: dict[str, Any], gradient: Tensor, state: dict[str, Any]) -> Tensor:
    beta1, beta2 = group["betas"]
    if not state:
        _begin(group, gradient, state)
    else:
        _turn_basis(beta2, gradient, state)
    state["step"] += 1
    count = state["step"].item()
    basis = state["basis"]
    leading = gradient @ basis
    state["mean"].lerp_(gradient, 1 - beta1)
    state["variance"].mul_(beta2).addcmul_(leading, leading, value=1 - beta2)

    coordinates = state["mean"] @ basis
    divisor = (state["variance"] / (1 - beta2**count)).sqrt_().add_(group["eps"])
    inside = (coordinates / (1 - beta1**count) / divisor) @ basis.mT
    outside = state["mean"] - coordinates @ basis.mT
    rest = _normalised(newton_schulz(outside)) * _is_more_than_rounding(outside, state["mean"])
    return _normalised(inside.add_(rest, alpha=group["gamma"]))


def _is_more_than_rounding(outside: Tensor, whole: Tensor) -> Tensor:
    """Zero where the basis holds the whole mean and its rest is noise, which normalising would
    blow up to full size; else one."""
    return outside.norm() > 10 * torch.finfo(whole.dtype).eps * whole.norm()


def _begin(group: dict[str, Any], gradient: Tensor, state: dict[str, Any]) -> None:
    """The first basis: leading eigenvectors of ``G^T G``, which are G's right singular ones."""
    _, beta2 = group["betas"]
    basis = leading_right_vectors(gradient, group["rank"])
    leading = gradient @ basis
    state["step"] = step_count()
    state["basis"] = basis
    state["spectrum"] = (leading.mT @ leading).mul_(1 - beta2)
    state["mean"] = torch.zeros_like(gradient)
    state["variance"] = torch.zeros_like(leading)


def _turn_basis(beta2: float, gradient: Tensor, state: dict[str, Any]) -> None:
    """One step of power iteration on the running mean of ``G^T G``, known by ``U S U^T``."""
    old, spectrum = state["basis"], state["spectrum"]
    image = beta2 * (old @ spectrum) + (1 - beta2) * (gradient.mT @ (gradient @ old))
    basis, _ = torch.linalg.qr(image)
    overlap = old.mT @ basis
    leading = gradient @ basis
    state["basis"] = basis
    state["spectrum"] = beta2 * (overlap.mT @ spectrum @ overlap) + (1 - beta2) * (
        leading.mT @ leading
    )


def _normalised(matrix: Tensor) -> Tensor:
    """The matrix with a root mean square of one."""
    return matrix * (matrix.numel() ** 0.5 / (matrix.norm() + _TINY))


class COSMOS(Optimizer):
    """SOAP where curvature is high, Muon where it is not, at little more than Muon's memory.

    Follows the paper, without the Nesterov step that the author code adds. The code is followed in
    that epsilon stands outside the square root (the paper: inside), the basis starts from the first
    gradient's decomposition, and the rate of matrices is multiplied by a ratio (here
    ``learning_rate_ratio``), since the update has a root mean square of one. Decay goes by the rate
    so multiplied (the code: by the full one). A rank above the shorter side is that side (the code
    fails). Matrices of linear layers take this rule; embeddings, convolution kernels and vectors
    AdamW, at the full rate. Newton-Schulz runs in bfloat16 where the processor has it, otherwise in
    float32 (float64 for float64).
    """

    name: ClassVar[str] = "cosmos"
    summary: ClassVar[str] = "SOAP in the leading eigenspace, Muon outside of it."
    reference: ClassVar[str] = (
        "Liu et al.: COSMOS: A Hybrid Adaptive Optimizer for Memory-Efficient Training of LLMs, "
        "2025, arXiv 2502.17410; code: github.com/lliu606/COSMOS"
    )
    carries_over: ClassVar[bool] = False

    @classmethod
    def space(cls) -> Space:
        """Learning rate and its ratio for matrices, rank, both averages' factors, the weight of
        the Muon part, epsilon, weight decay."""
        return Space(
            {
                "learning_rate": _spaces.learning_rate(1e-3),
                "learning_rate_ratio": Float(
                    0.05, 0.5, log=True, default=0.1, prior=Prior(0.1, "medium")
                ),
                "rank": Ordinal((8, 16, 32, 64, 128, 256), default=32, prior=Prior(64, "low")),
                "beta1": _spaces.beta1(0.95),
                "beta2": _spaces.beta2(0.95),
                "gamma": Float(0.1, 1.0, log=True, default=0.2, prior=Prior(0.2, "medium")),
                "epsilon": _spaces.epsilon(),
                "weight_decay": Ordinal(
                    (0.0, 1e-3, 1e-2, 1e-1), default=0.0, prior=Prior(0.0, "medium")
                ),
            }
        )

    @classmethod
    def supports(cls, model_info: ModelInfo) -> str | None:
        """Models with a weight matrix."""
        return super().supports(model_info) or no_matrices(model_info)

    def normalises(self) -> Literal["nothing", "elements", "tensors"]:
        """Each tensor's step as a whole."""
        return "tensors"

    def step_cost(self, parameter_shapes: Shapes) -> StepCost:
        """Seven products of every matrix with its basis, a decomposition of the basis, and
        Newton-Schulz iteration of the rest."""
        flops = 0.0
        for short, long in sides(parameter_shapes):
            rank = min(self.configuration["rank"], short)
            flops += 14.0 * short * long * rank + 2 * qr(long, rank) + orthogonalised(short, long)
        return StepCost(flops=flops)

    def build(self, named_parameters: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """A `CosmosOptimizer` over matrices and all else."""
        configuration = self.configuration
        groups = matrix_groups(named_parameters, configuration["weight_decay"])
        rate = configuration["learning_rate"]
        for group in groups:
            ratio = configuration["learning_rate_ratio"] if group["matrices"] else 1.0
            group["lr"] = rate * ratio
        return CosmosOptimizer(
            groups,
            {
                "lr": rate,
                "rank": configuration["rank"],
                "betas": (configuration["beta1"], configuration["beta2"]),
                "gamma": configuration["gamma"],
                "eps": configuration["epsilon"],
            },
        )

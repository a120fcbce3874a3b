"""Low-rank projection of gradients, shared by GaLore and the methods made from it.

A gradient of m rows and n columns is projected onto its own leading singular vectors: with more
columns than rows onto the left ones, ``P^T G`` of shape (rank, n), else onto the right ones,
``G Q`` of shape (m, rank), so that the basis belongs to the shorter side. Each basis vector is
signed so that its entry of largest magnitude is positive: a decomposition leaves the signs open,
and Adam's state, carried over when the basis is renewed, depends on them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from autotune.space import Float, Ordinal, Prior

from . import _spaces
from ._matrix import step_count


def on_left(shape: torch.Size) -> bool:
    """Whether gradients of this shape are projected from the left (fewer rows than columns)."""
    return shape[0] < shape[1]


def leading_basis(gradient: Tensor, rank: int) -> Tensor:
    """The first `rank` (or all) singular vectors of the shorter side as columns, shape
    (min(m, n), rank), signed as the module says."""
    left, _, right = torch.linalg.svd(gradient, full_matrices=False)
    vectors = left if on_left(gradient.shape) else right.mT
    basis = vectors[:, :rank]
    peaks = basis.gather(0, basis.abs().argmax(dim=0, keepdim=True))
    return (basis * torch.where(peaks < 0, -1.0, 1.0).to(basis.dtype)).contiguous()


def leading_right_vectors(gradient: Tensor, rank: int) -> Tensor:
    """The first `rank` (or all) right singular vectors as columns, shape (n, rank)."""
    _, _, right = torch.linalg.svd(gradient, full_matrices=False)
    return right.mT[:, :rank].contiguous()


def project(gradient: Tensor, basis: Tensor) -> Tensor:
    """The gradient's coordinates in the basis."""
    return basis.mT @ gradient if on_left(gradient.shape) else gradient @ basis


def project_back(coordinates: Tensor, basis: Tensor, shape: torch.Size) -> Tensor:
    """The matrix of `shape` that has these coordinates."""
    return basis @ coordinates if on_left(shape) else coordinates @ basis.mT


def add_projected_back_(matrix: Tensor, coordinates: Tensor, basis: Tensor, size: float) -> None:
    """``matrix += size *`` the matrix that has these coordinates, in place."""
    left, right = (basis, coordinates) if on_left(matrix.shape) else (coordinates, basis.mT)
    matrix.addmm_(left, right, alpha=size)


def step_back(parameter: Tensor, coordinates: Tensor, basis: Tensor, size: float) -> None:
    """`add_projected_back_` to a parameter; in half precision rounded once, from float32."""
    if parameter.dtype == coordinates.dtype:
        add_projected_back_(parameter, coordinates, basis, size)
    else:
        parameter.add_(project_back(coordinates, basis, parameter.shape), alpha=size)


def refreshed_basis(group: dict[str, Any], state: dict[str, Any], gradient: Tensor) -> Tensor:
    """The state's ``basis``, renewed from the gradient at steps 0, ``gap``, ``2 * gap``, ..."""
    state.setdefault("step", step_count())
    if "basis" not in state or state["step"].item() % group["gap"] == 0:
        state["basis"] = leading_basis(gradient, group["rank"])
    return state["basis"]


def low_rank_space(scale: float = 0.25) -> dict[str, Any]:
    """The hyperparameters of GaLore that all methods made from it have; the papers' recipes
    are rank 128 to 512 before and 4 to 32 in fine-tuning, a gap of 200 steps, rate 0.01 before
    and 1e-5 to 4e-4 in fine-tuning, no decay. A rank above a matrix's shorter side is that
    side. The small gaps are for short trials."""
    return {
        "learning_rate": Float(1e-5, 3e-2, log=True, default=5e-3, prior=Prior(5e-3, "low")),
        "rank": Ordinal(
            (4, 8, 16, 32, 64, 128, 256, 512, 1024), default=32, prior=Prior(128, "low")
        ),
        "update_projection_gap": Ordinal(
            (20, 50, 100, 200, 500, 1000), default=200, prior=Prior(200, "medium")
        ),
        "scale": Float(0.1, 4.0, log=True, default=scale, prior=Prior(scale, "medium")),
        "beta1": _spaces.beta1(),
        "beta2": _spaces.beta2(),
        "epsilon": _spaces.epsilon(1e-6),
        "weight_decay": Ordinal((0.0, 1e-3, 1e-2, 1e-1), default=0.0, prior=Prior(0.0, "medium")),
    }


def low_rank_defaults(configuration: dict[str, Any]) -> dict[str, Any]:
    """The values of `low_rank_space` as an optimizer's groups carry them."""
    return {
        "lr": configuration["learning_rate"],
        "betas": (configuration["beta1"], configuration["beta2"]),
        "eps": configuration["epsilon"],
        "rank": configuration["rank"],
        "gap": configuration["update_projection_gap"],
        "scale": configuration["scale"],
    }

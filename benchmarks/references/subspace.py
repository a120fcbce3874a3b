"""What GaLore and its descendants share: the leading subspace of a gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Subspace:
    """An orthonormal basis, as columns, of the shorter side of a matrix; `left` if that is the
    side of its rows."""

    basis: Tensor
    left: bool

    def project(self, matrix: Tensor) -> Tensor:
        return self.basis.T @ matrix if self.left else matrix @ self.basis

    def back(self, low: Tensor) -> Tensor:
        return self.basis @ low if self.left else low @ self.basis.T


def leading(gradient: Tensor, rank: int) -> Subspace:
    """The leading singular vectors on the shorter side (GaLore, section 3.3: P if m <= n, else Q;
    the authors' code, which is followed, takes Q where m = n).

    A singular vector's sign is arbitrary, and matters where moments outlive a refresh: the entry
    of largest magnitude is made positive.
    """
    left = gradient.shape[0] < gradient.shape[1]
    u, _, vh = torch.linalg.svd(gradient, full_matrices=False)
    basis = (u if left else vh.T)[:, : min(rank, *gradient.shape)]
    largest = basis.abs().argmax(dim=0)
    signs = basis[largest, torch.arange(basis.shape[1])].sign()
    return Subspace(basis * signs, left)


def projected(weight: Tensor) -> bool:
    """Whether the method works in a subspace of this parameter: matrices only."""
    return weight.ndim == 2

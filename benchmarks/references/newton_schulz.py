"""The orthogonalisation that Muon and COSMOS share, in the precision of what it is given."""

from __future__ import annotations

from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalised(matrix: Tensor, steps: int = 5) -> Tensor:
    """Five steps of the quintic iteration X <- aX + b(XX^T)X + c(XX^T)^2 X (Jordan et al.), from
    the matrix over its Frobenius norm. Works on the shorter side, which changes nothing but the
    rounding."""
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm()
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x

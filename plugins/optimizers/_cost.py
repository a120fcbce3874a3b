"""Floating-point operations of what the matrix and low-rank methods do, by their papers; a
product of an a x b and a b x c matrix takes ``2 a b c`` (Golub and Van Loan, Matrix Computations,
4th edition: QR in 5.2, SVD in 8.6)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

from ._groups import is_matrix
from ._orthogonal import STEPS

Shapes = Mapping[str, tuple[int, ...]]


def sides(shapes: Shapes, kernels: bool = False) -> Iterator[tuple[int, int]]:
    """Shorter and longer side of every matrix that the matrix methods take; with `kernels`, of
    convolution kernels too, as matrices of one row an output channel."""
    for name, shape in shapes.items():
        if is_matrix(name, shape, kernels):
            short, long = sorted((shape[0], prod(shape[1:])))
            yield short, long


def orthogonalised(short: int, long: int) -> float:
    """Newton-Schulz iteration: two products with the matrix and one of the small square a step."""
    return STEPS * (4.0 * short**2 * long + 2.0 * short**3)


def qr(rows: int, columns: int) -> float:
    """Thin QR decomposition with its first factor formed."""
    return 4.0 * rows * columns**2


def svd(short: int, long: int) -> float:
    """Thin singular value decomposition, by QR first."""
    return 6.0 * long * short**2 + 20.0 * short**3


def low_rank(shapes: Shapes, configuration: Mapping[str, Any], products: int = 2) -> float:
    """A decomposition every ``update_projection_gap`` steps, and at each step so many products
    with the basis: the gradient onto it, the step back."""
    found = 0.0
    for short, long in sides(shapes):
        rank = min(configuration["rank"], short)
        found += svd(short, long) / configuration["update_projection_gap"]
        found += products * 2.0 * short * long * rank
    return found

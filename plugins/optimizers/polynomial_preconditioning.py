"""Polynomial preconditioning: the best step along a short Krylov space of the curvature."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from autotune.plugins import Optimizer, StepCost
from autotune.space import Float, Integer, Prior, Space

from ._cost import Shapes
from ._curvature import evaluate, hessian_times
from ._foreach import TypedStateOptimizer
from ._groups import parameter_groups
from ._matrix import wide

_BREAKDOWN = 1e-10
"""A new direction shorter than this share of the curvature found so far is rounding."""


class PolynomialPreconditioning(TypedStateOptimizer):
    """Minimises ``<g, h> + (h^T |H| h + damping * |h|^2) / 2`` over the Krylov space of
    ``g, H g, ..., H^degree g``, so that ``h = -p(H) g`` with the best polynomial p of that
    degree; ``w += lr * h``.

    An orthonormal basis of the space is built by Lanczos' method with full
    reorthogonalisation, one product with the Hessian H of the batch a dimension; in it H is a
    small tridiagonal matrix, whose absolute value (of its eigenvalues) is taken. There is no
    state from step to step.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; returns the loss before it.

        Raises:
            RuntimeError: there is no closure.
        """
        loss = evaluate(closure, "polynomial preconditioning")
        settings = self.param_groups[0]
        parameters = [p for group in self.param_groups for p in group["params"]]
        parameters = [parameter for parameter in parameters if parameter.grad is not None]
        if not parameters:
            return loss
        slopes = [p.grad for p in parameters if p.grad is not None]
        gradient = _flat(slopes)
        length = gradient.norm()
        if length == 0:
            return loss

        def curvature(vector: Tensor) -> Tensor:
            parts = zip(_shaped(vector, parameters), parameters, strict=True)
            vectors = [part.to(parameter.dtype) for part, parameter in parts]
            return _flat(hessian_times(slopes, parameters, vectors))

        basis, small = lanczos(curvature, gradient / length, settings["degree"] + 1)
        weights = _minimiser(small, settings["damping"]) * length
        moves = dict(zip(parameters, _shaped(basis.mT @ weights, parameters), strict=True))
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter in moves:
                    parameter.sub_(moves[parameter], alpha=group["lr"])
        return loss


def _minimiser(small: Tensor, damping: float) -> Tensor:
    """``(|T| + damping)^-1 e_1``; not a number where T is none (a diverged run, whose loss
    tells), since the decomposition would raise instead."""
    if not small.isfinite().all():
        return small.new_full((len(small),), float("nan"))
    values, vectors = torch.linalg.eigh(small)
    return vectors @ (vectors[0] / (values.abs() + damping))


def lanczos(
    curvature: Callable[[Tensor], Tensor], start: Tensor, dimensions: int
) -> tuple[Tensor, Tensor]:
    """Orthonormal basis (rows, at most `dimensions`) of the Krylov space of a symmetric map from
    the unit vector `start`, and the map in that basis, a square matrix."""
    rows = [start]
    small = start.new_zeros(dimensions, dimensions)
    for i in range(dimensions):
        image = curvature(rows[i])
        small[i, i] = rows[i] @ image
        found = torch.stack(rows)
        for _ in range(2):  # once is not enough: rounding errors grow with the curvature
            image = image - found.mT @ (found @ image)
        length = image.norm()
        if i + 1 == dimensions or length <= _BREAKDOWN * small.abs().max():
            break
        small[i, i + 1] = small[i + 1, i] = length
        rows.append(image / length)
    size = len(rows)
    return torch.stack(rows), small[:size, :size]


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([wide(tensor.detach()).reshape(-1) for tensor in tensors])


def _shaped(vector: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    parts = vector.split([parameter.numel() for parameter in parameters])
    return [part.view_as(parameter) for part, parameter in zip(parts, parameters, strict=True)]


class PolynomialPreconditioner(Optimizer):
    """Newton's step seen through a polynomial; a product with the Hessian a degree, and one.

    The paper's adaptive method (its section on Krylov spaces) with the batch's Hessian as the
    curvature matrix, its smoothness constant 1, and the damping added. The paper is about convex
    functions; here negative curvature is taken by its absolute value. Its fixed symmetric
    polynomials, which need traces of powers of the curvature, are points of the same Krylov
    space and never better in the model that is minimised. Meant for small or nearly convex
    problems (a linear probe, a small network) and large batches. ``learning_rate`` multiplies
    the step, so that schedules act; 1 is the paper's.
    """

    name: ClassVar[str] = "polynomial_preconditioning"
    summary: ClassVar[str] = "Best polynomial of the Hessian times the gradient (Krylov step)."
    reference: ClassVar[str] = (
        "Doikov, Rodomanov: Polynomial Preconditioning for Gradient Methods, ICML 2023, "
        "arXiv 2301.13194"
    )
    needs: ClassVar[frozenset[str]] = frozenset({"closure", "second_order"})
    carries_over: ClassVar[bool] = False

    @classmethod
    def space(cls) -> Space:
        """Degree of the polynomial, multiplier of the step, damping."""
        return Space(
            {
                "degree": Integer(0, 5, default=2, prior=Prior(2, "low")),
                "learning_rate": Float(1e-2, 1.0, log=True, default=0.3, prior=Prior(1.0, "low")),
                "damping": Float(1e-4, 10.0, log=True, default=0.1, prior=Prior(0.1, "low")),
            }
        )

    def step_cost(self, parameter_shapes: Shapes) -> StepCost:
        """Products with the Hessian, each twice a gradient's work."""
        return StepCost(passes=1.0 + 2.0 * (self.configuration["degree"] + 1))

    def build(self, named_parameters: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """A `PolynomialPreconditioning` over all parameters."""
        return PolynomialPreconditioning(
            parameter_groups(named_parameters, weight_decay=0.0),
            {
                "lr": self.configuration["learning_rate"],
                "degree": self.configuration["degree"],
                "damping": self.configuration["damping"],
            },
        )

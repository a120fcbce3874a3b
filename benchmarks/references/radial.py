"""AdamP's and SGDP's projection."""

from __future__ import annotations

from torch import Tensor

TINY = 1e-8


def without_radial(w: Tensor, g: Tensor, step: Tensor, delta: float) -> tuple[Tensor, bool]:
    """Eqs. 10-12 of arXiv 2006.08217: the step without its part along the weights, where the
    cosine of weights and gradient says that they are scale-invariant, by output channel or else
    as a whole; and whether that was so."""
    for rows in (w.shape[0], 1):
        a, b, p = w.reshape(rows, -1), g.reshape(rows, -1), step.reshape(rows, -1)
        product = (a.norm(dim=1) + TINY) * (b.norm(dim=1) + TINY)
        cosine = (a * b).sum(dim=1).abs() / product
        if cosine.max() < delta / a.shape[1] ** 0.5:
            unit = a / (a.norm(dim=1, keepdim=True) + TINY)
            radial = (unit * p).sum(dim=1, keepdim=True)
            return (p - radial * unit).reshape(w.shape), True
    return step, False

"""Newton-Schulz iteration: the orthogonal matrix next to a given one, by products alone."""

from __future__ import annotations

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic in Jordan's Muon, which COSMOS uses too: steep at zero, where it matters; the
singular values end between about 0.7 and 1.2 instead of at 1."""

STEPS = 5


def newton_schulz(matrix: Tensor, steps: int = STEPS, epsilon: float = 1e-7) -> Tensor:
    """About ``U V^T`` of ``matrix = U S V^T``, shape (rows, columns), in the matrix's type.

    ``X = matrix / max(norm, epsilon)``, then `steps` times ``X = a X + (b A + c A^2) X`` with
    ``A = X X^T``. Computed in bfloat16, as the authors and torch.optim.Muon do, which is enough
    (and on processors that have it 4 to 5 times as fast); in float32 on a processor that has not,
    where torch's products take 20 to 200 times as long; of float64 in float64.
    """
    a, b, c = COEFFICIENTS
    result = matrix
    if matrix.dtype != torch.float64:
        result = matrix.bfloat16() if has_bfloat16(matrix.device) else matrix.float()
    if matrix.shape[0] > matrix.shape[1]:
        result = result.T
    result = result / result.norm().clamp(min=epsilon)
    for _ in range(steps):
        gram = result @ result.T
        result = torch.addmm(result, torch.addmm(gram, gram, gram, beta=b, alpha=c), result, beta=a)
    if matrix.shape[0] > matrix.shape[1]:
        result = result.T
    return result.to(matrix.dtype)


def has_bfloat16(device: torch.device) -> bool:
    """Whether products of bfloat16 have a fast kernel on the device."""
    if device.type != "cpu":
        return True
    if not torch.backends.mkldnn.is_available():
        return False
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())

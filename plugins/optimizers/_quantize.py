"""Numbers of few bits with shared scales: the projections, states and weights of Q-GaLore."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

GROUP = 256
"""Consecutive numbers, in row-major order, that share a scale."""


def pack_int4(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sixteen evenly spaced levels between the smallest and the largest number of each group,
    zero among them.

    Returns:
        uint8 codes, two in a byte, of ceil(size / 256) * 128 bytes; scales (groups,) in the
        matrix's type; zero points (groups,) in uint8. A number is ``(code - zero) * scale``.
    """
    rows = _grouped(matrix)
    scales, zeros = _range(rows, levels=15)
    codes = (rows.div(scales).round_() + zeros).clamp_(0, 15).to(torch.uint8)
    return codes[:, 0::2] | (codes[:, 1::2] << 4), scales[:, 0], zeros[:, 0].to(torch.uint8)


def unpack_int4(codes: Tensor, scales: Tensor, zeros: Tensor, shape: torch.Size) -> Tensor:
    """The matrix of `shape` that `pack_int4` stored."""
    numbers = torch.stack([codes & 15, codes >> 4], dim=2).flatten(1).to(scales.dtype)
    rows = (numbers - zeros.to(scales.dtype)[:, None]) * scales[:, None]
    return rows.flatten()[: shape.numel()].view(shape)


def rounded_to_int8(matrix: Tensor) -> Tensor:
    """The matrix on the 256 levels of each group, up or down by chance so that it is right on
    average (torch's global generator)."""
    rows = _grouped(matrix)
    scales, zeros = _range(rows, levels=255)
    steps = rows / scales
    below = steps.floor()
    codes = below + (torch.rand_like(steps) < steps - below) + zeros
    rounded = (codes.clamp_(0, 255) - zeros) * scales
    return rounded.flatten()[: matrix.numel()].view_as(matrix)


def pack_8bit(tensor: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    """Dettmers' blockwise dynamic quantisation: each group divided by its largest magnitude,
    each number then the nearest of 256 levels that are fine near zero.

    Returns:
        uint8 codes (groups, 256); scales (groups,) in the tensor's type.
    """
    rows = _grouped(tensor)
    scales = rows.abs().amax(dim=1)
    levels = _levels(signed).to(rows)
    middles = (levels[1:] + levels[:-1]) / 2
    shares = rows / torch.where(scales > 0, scales, 1.0)[:, None]
    return torch.bucketize(shares, middles).to(torch.uint8), scales


def unpack_8bit(codes: Tensor, scales: Tensor, signed: bool, shape: torch.Size) -> Tensor:
    """The tensor of `shape` that `pack_8bit` stored."""
    rows = _levels(signed).to(scales)[codes.int()] * scales[:, None]
    return rows.flatten()[: shape.numel()].view(shape)


def _grouped(tensor: Tensor) -> Tensor:
    """Rows of `GROUP` numbers, the last filled up with its last number, which leaves its range
    as it is."""
    flat = tensor.reshape(-1)
    missing = -flat.numel() % GROUP
    return torch.cat([flat, flat[-1:].expand(missing)]).view(-1, GROUP)


def _range(rows: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Scale and zero point of each row, both (groups, 1)."""
    low = rows.amin(dim=1, keepdim=True).clamp_(max=0)
    high = rows.amax(dim=1, keepdim=True).clamp_(min=0)
    scales = (high - low).clamp_(min=1e-5) / levels
    return scales, low.div(scales).round_().neg_()


@cache
def _levels(signed: bool) -> Tensor:
    """256 levels in [-1, 1] or [0, 1]: each decade below 1 cut into half as many equal parts as
    the one above it, their middles, and 0 and 1."""
    middles = []
    for decade in range(7):
        parts = 2 ** (6 - decade) * (1 if signed else 2)
        edges = torch.linspace(0.1, 1.0, parts + 1, dtype=torch.float64)
        middles.append((edges[1:] + edges[:-1]) / 2 * 10.0**-decade)
    positive = torch.cat(middles)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    return torch.cat([-positive, positive, ends] if signed else [positive, ends]).sort().values

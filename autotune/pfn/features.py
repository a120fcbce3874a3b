"""Turns the observed prefix of a learning curve into numbers, the network's tokens.

Curves come ragged, one flat list of observations, so that a study of thousands of curves of very
different lengths costs what it holds. The same functions serve training and use.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LAST = 8
BINS = 16
OCTAVES = 8
FREQUENCIES = 8

CURVE = 9 + 3 * LAST + 2 * BINS + 2 * OCTAVES + 3 * 2 * FREQUENCIES + 2
"""Numbers about a curve."""

HORIZON = 5 + 2 * 2 * FREQUENCIES
"""Numbers about what is asked of it."""

_SHARP = 1000.0


def curves(count: int, curve: Tensor, time: Tensor, value: Tensor, spacing: Tensor) -> Tensor:
    """Describe the observed prefixes of curves.

    Args:
        count: of curves; those without observations are described as such.
        curve: the curve of each observation, ascending, shape (observations,).
        time: shares of the horizon in (0, 1], ascending within a curve, (observations,).
        value: in [0, 1], (observations,).
        spacing: of each curve, the share of the horizon of one unit, (count,).

    Returns:
        Shape (count, `CURVE`), float32.
    """
    device = value.device
    value, time = value.float(), time.float()
    number = torch.bincount(curve, minlength=count)
    end = number.cumsum(0)
    begin = end - number
    has = number > 0
    if len(value) == 0:
        value, time = torch.zeros(1, device=device), torch.zeros(1, device=device)
        curve_of = torch.zeros(0, dtype=torch.long, device=device)
    else:
        curve_of = curve
    observed = len(curve_of)
    last_index = (end - 1).clamp(min=0)
    first_index = begin.clamp(max=len(value) - 1)
    last, first, last_time = value[last_index], value[first_index], time[last_index]
    known = value[:observed]

    def summed(numbers: Tensor, groups: Tensor, size: int) -> Tensor:
        # In float64: long curves of nearly equal values cancel.
        total = torch.zeros(size, dtype=torch.float64, device=device)
        return total.index_add_(0, groups, numbers.double())

    def mean(numbers: Tensor) -> Tensor:
        return (summed(numbers, curve_of, count) / number.clamp(min=1)).float()

    def extreme(reduce: str, initial: float) -> Tensor:
        found = torch.full((count,), initial, device=device)
        found.scatter_reduce_(0, curve_of, known, reduce)
        return torch.where(has, found, 0.0)

    highest = extreme("amax", -math.inf)
    step = torch.zeros_like(known)
    bend = torch.zeros_like(known)
    if observed > 1:
        same = curve_of[1:] == curve_of[:-1]
        step[1:] = torch.where(same, known[1:] - known[:-1], 0.0)
        inside = same[1:] & same[:-1]
        bend[2:] = torch.where(inside, step[2:] - step[1:-1], 0.0)
    scalars = [
        last,
        first,
        mean(known),
        highest,
        extreme("amin", math.inf),
        last_time,
        number.float().log1p() / 7.0,
        (mean(step.square()) + 1e-10).log() / 10.0 + 1.0,
        (mean(bend.square()) + 1e-10).log() / 10.0 + 1.0,
    ]
    place = (end[:, None] - 1) - torch.arange(LAST + 1, device=device)
    inside = place >= begin[:, None]
    place = place.clamp(min=0, max=len(value) - 1)
    recent, when = value[place], time[place]
    changes = torch.where(inside[:, 1:], recent[:, :-1] - recent[:, 1:], 0.0)
    passed = torch.where(inside[:, 1:], when[:, :-1] - when[:, 1:], 1.0)
    signed = changes.sign() * (_SHARP * changes.abs()).log1p() / math.log1p(_SHARP)

    relative = time[:observed] / last_time[curve_of].clamp(min=1e-9)
    binned = (relative * BINS).ceil().long().clamp(1, BINS) - 1
    means, times = _binned(curve_of, binned, BINS, known, time[:observed], count, summed)
    octave = (-relative.clamp(min=1e-9).log2()).floor().long().clamp(0, OCTAVES - 1)
    group = curve_of * OCTAVES + octave
    held = summed(torch.ones_like(known), group, count * OCTAVES)
    by_octave = (summed(known, group, count * OCTAVES) / held.clamp(min=1)).float()
    by_octave = by_octave.reshape(count, OCTAVES)
    filled = (held > 0).reshape(count, OCTAVES)
    by_octave = torch.where(filled, last[:, None] - by_octave, 0.0)
    found = torch.cat(
        [
            torch.stack(scalars, dim=1),
            4.0 * changes,
            signed,
            passed.clamp(min=1e-4).log() / 9.0,
            means,
            times,
            4.0 * by_octave,
            filled.float(),
            waves(last),
            waves(highest),
            waves(last_time),
        ],
        dim=1,
    )
    found = torch.where(has[:, None], found, 0.0)
    ends = torch.stack([has.float(), spacing.float().log() / 7.0], dim=1)
    return torch.cat([found, ends], dim=1)


def _binned(
    curve: Tensor,
    binned: Tensor,
    bins: int,
    value: Tensor,
    time: Tensor,
    count: int,
    summed: object,
) -> tuple[Tensor, Tensor]:
    """Means of value and time in equal parts of the prefix, empty ones as the part before."""
    assert callable(summed)
    group = curve * bins + binned
    held = summed(torch.ones_like(value), group, count * bins).reshape(count, bins)
    rows = [
        (summed(numbers, group, count * bins).reshape(count, bins) / held.clamp(min=1)).float()
        for numbers in (value, time)
    ]
    # The first part that holds something lends its mean to those before it.
    place = torch.where(held > 0, torch.arange(bins, device=value.device), -1)
    before = place.cummax(dim=1).values
    first = (held > 0).to(torch.uint8).argmax(dim=1, keepdim=True)
    source = torch.where(before >= 0, before, first)
    return rows[0].gather(1, source), rows[1].gather(1, source)


def horizon(asked: Tensor, last_time: Tensor, spacing: Tensor) -> Tensor:
    """Describe what is asked: values at the time `asked` of curves seen until `last_time`.

    Args:
        asked: shares of the horizon, any shape.
        last_time: of the curve, 0 if nothing was seen, same shape.
        spacing: the horizon's share of one unit, same shape.

    Returns:
        That shape and `HORIZON`.
    """
    ahead = asked - last_time
    ratio = (asked.clamp(min=1e-6) / last_time.clamp(min=1e-6)).log()
    numbers = torch.stack(
        [
            asked,
            ahead,
            torch.where(last_time > 0, ratio, 7.0) / 7.0,
            ahead.clamp(min=1e-4).log() / 9.0,
            (ahead / spacing).clamp(min=0.0).log1p() / 7.0,
        ],
        dim=-1,
    )
    return torch.cat([numbers, waves(asked), waves(ahead)], dim=-1)


def waves(numbers: Tensor) -> Tensor:
    """Sines and cosines of `FREQUENCIES` octaves, so that small differences are seen; of that
    shape and 2 * `FREQUENCIES`."""
    rate = math.pi * 2.0 ** torch.arange(FREQUENCIES, device=numbers.device)
    angle = numbers[..., None] * rate
    return torch.cat([angle.sin(), angle.cos()], dim=-1)

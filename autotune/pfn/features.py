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

LAST_VALUE, LAST_TIME = 0, 5
"""Where a curve's last value and its time stand among its numbers; 0 without observations."""

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
    value, time = value.float(), time.float()
    number = torch.bincount(curve, minlength=count)
    has = number > 0
    ends = torch.stack([has.float(), spacing.float().log() / 7.0], dim=1)
    if not len(value):
        return torch.cat([torch.zeros(count, CURVE - 2, device=value.device), ends], dim=1)
    end = number.cumsum(0)
    begin = (end - number).clamp(max=len(value) - 1)
    last_index = (end - 1).clamp(min=0)
    last, last_time = value[last_index], time[last_index]
    highest = _extreme(value, curve, has, "amax")
    scalars = [
        last,
        value[begin],
        _mean(value, curve, number),
        highest,
        _extreme(value, curve, has, "amin"),
        last_time,
        number.float().log1p() / 7.0,
        *_roughness(value, curve, number),
    ]
    relative = time / last_time[curve].clamp(min=1e-9)
    part = (relative * BINS).ceil().long().clamp(1, BINS) - 1
    octave = (-relative.clamp(min=1e-9).log2()).floor().long().clamp(0, OCTAVES - 1)
    level, held = _by_group(value, curve * OCTAVES + octave, count, OCTAVES)
    found = torch.cat(
        [
            torch.stack(scalars, dim=1),
            *_recent(value, time, begin, end),
            *_parts(value, time, curve * BINS + part, count),
            torch.where(held > 0, 4.0 * (last[:, None] - level), 0.0),
            (held > 0).float(),
            waves(last),
            waves(highest),
            waves(last_time),
        ],
        dim=1,
    )
    return torch.cat([torch.where(has[:, None], found, 0.0), ends], dim=1)


def _summed(numbers: Tensor, group: Tensor, groups: int) -> Tensor:
    """Sums by group, in float64: long curves of nearly equal values cancel."""
    total = torch.zeros(groups, dtype=torch.float64, device=numbers.device)
    return total.index_add_(0, group, numbers.double())


def _mean(numbers: Tensor, curve: Tensor, number: Tensor) -> Tensor:
    return (_summed(numbers, curve, len(number)) / number.clamp(min=1)).float()


def _extreme(value: Tensor, curve: Tensor, has: Tensor, reduce: str) -> Tensor:
    """Greatest (``amax``) or least (``amin``) value of every curve, 0 where there is none."""
    found = torch.full((len(has),), -math.inf if reduce == "amax" else math.inf, device=has.device)
    found.scatter_reduce_(0, curve, value, reduce)
    return torch.where(has, found, 0.0)


def _roughness(value: Tensor, curve: Tensor, number: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithms of the mean squared first and second differences of every curve."""
    step, bend = torch.zeros_like(value), torch.zeros_like(value)
    same = curve[1:] == curve[:-1]
    step[1:] = torch.where(same, value[1:] - value[:-1], 0.0)
    bend[2:] = torch.where(same[1:] & same[:-1], step[2:] - step[1:-1], 0.0)
    first, second = (
        (_mean(change.square(), curve, number) + 1e-10).log() / 10.0 + 1.0
        for change in (step, bend)
    )
    return first, second


def _recent(
    value: Tensor, time: Tensor, begin: Tensor, end: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The last steps of every curve, newest first: changes, linear and logarithmic, and the
    logarithm of the time they took, each (curves, `LAST`)."""
    place = (end[:, None] - 1) - torch.arange(LAST + 1, device=value.device)
    inside = (place >= begin[:, None])[:, 1:]
    place = place.clamp(min=0)
    recent, when = value[place], time[place]
    changes = torch.where(inside, recent[:, :-1] - recent[:, 1:], 0.0)
    passed = torch.where(inside, when[:, :-1] - when[:, 1:], 1.0)
    signed = changes.sign() * (_SHARP * changes.abs()).log1p() / math.log1p(_SHARP)
    return 4.0 * changes, signed, passed.clamp(min=1e-4).log() / 9.0


def _by_group(numbers: Tensor, group: Tensor, count: int, parts: int) -> tuple[Tensor, Tensor]:
    """Means and counts by curve and part of it, both (count, parts)."""
    held = _summed(torch.ones_like(numbers), group, count * parts)
    total = _summed(numbers, group, count * parts)
    return (total / held.clamp(min=1)).float().reshape(count, parts), held.reshape(count, parts)


def _parts(value: Tensor, time: Tensor, group: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Means of value and time in equal parts of the prefix, empty ones as the part before (the
    first ones as the first that holds something), each (count, `BINS`)."""
    means, held = _by_group(value, group, count, BINS)
    times, _ = _by_group(time, group, count, BINS)
    place = torch.where(held > 0, torch.arange(BINS, device=value.device), -1)
    before = place.cummax(dim=1).values
    first = (held > 0).to(torch.uint8).argmax(dim=1, keepdim=True)
    source = torch.where(before >= 0, before, first)
    return means.gather(1, source), times.gather(1, source)


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

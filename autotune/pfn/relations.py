"""What the other curves of a study say about one: numbers beside its own description.

A transformer of this size needs many millions of artificial studies before it learns regression
over configurations by itself. So the regression is given to it, for it to trust as far as it has
learned to:

1. the study's common curve: the sum of mean increments from one time to the next, over the
   curves that were observed at both (curves that were stopped early then do not bend it);
2. every curve's offset from it where it stands;
3. two Gaussian processes of these offsets over configurations, leave-one-out for the curves
   themselves: an isotropic one, and one whose dimensions are weighted by how well each alone
   explains the offsets.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from autotune.pfn.spaces import SLOTS

TIMES = 40
"""Parts of the logarithmic time axis, a quarter of an octave each."""

PROCESSES = 2

CURVE = 3 + 3 * PROCESSES
"""Numbers about a curve among the others."""

ASKED = 3 + PROCESSES
"""Numbers about what is asked."""

BASIS = 512
"""The processes look at no more curves."""

_NOISE = 0.05
_SHORT = 0.4
_ABSENT = 1e6
_LENGTH = 0.7
_TURNS = 7.3
_TINY = 1e-3


@dataclass(frozen=True)
class Relations:
    """Of studies, S, with K curves each.

    Args:
        curve: numbers about every curve, (S, K, `CURVE`).
        predicted: offsets as the processes tell them, (S, K, `PROCESSES`).
        common: the common curve, (S, `TIMES`).
        support: curves observed at each of its times, (S, `TIMES`).
        place: the part of time where each curve stands, (S, K).
    """

    curve: Tensor
    predicted: Tensor
    common: Tensor
    support: Tensor
    place: Tensor


def part(time: Tensor) -> Tensor:
    """The part of the time axis that a share of the horizon falls into; same shape."""
    return (TIMES + 4.0 * time.clamp(min=1e-9).log2()).ceil().long().clamp(1, TIMES) - 1


def relate(
    configurations: Tensor, curve: Tensor, time: Tensor, value: Tensor, basis: Tensor | None = None
) -> Relations:
    """Relate the curves of studies.

    Args:
        configurations: value, activity and whether it is categorical, (S, K, SLOTS, 3).
        curve: of each observation, numbered s * K + k, ascending, (observations,).
        time: shares of the horizon, (observations,).
        value: in [0, 1], (observations,).
        basis: the curves that the processes look at, (S, at most `BASIS`); the first that there
            are, if None.
    """
    studies, curves = configurations.shape[:2]
    table, there = _table(studies * curves, curve, part(time), value.float())
    table = table.reshape(studies, curves, TIMES)
    there = there.reshape(studies, curves, TIMES)
    both = there[:, :, 1:] & there[:, :, :-1]
    rise = ((table[:, :, 1:] - table[:, :, :-1]) * both).sum(1) / both.sum(1).clamp(min=1)
    common = torch.cat([torch.zeros_like(rise[:, :1]), rise], dim=1).cumsum(1)

    begun = there.any(2)
    place = torch.where(
        begun, TIMES - 1 - there.flip(2).to(torch.uint8).argmax(2), torch.zeros_like(begun.long())
    )
    offset = table.gather(2, place[..., None])[..., 0] - common.gather(1, place)
    number = begun.sum(1, keepdim=True)
    middle = (offset * begun).sum(1, keepdim=True) / number.clamp(min=1)
    common = common + middle
    offset = (offset - middle) * begun
    spread = (offset.square().sum(1, keepdim=True) / number.clamp(min=1)).sqrt().clamp(min=_TINY)

    if basis is None:
        basis = torch.arange(min(curves, BASIS), device=value.device).expand(studies, -1)
    noise = _NOISE + _SHORT * (1.0 - (place + 1) / TIMES)
    noise = torch.where(begun, noise, _ABSENT)
    mean, deviation = _processes(configurations, offset / spread, noise, basis)
    predicted = mean * spread[..., None]
    described = torch.cat(
        [
            torch.stack(
                [
                    4.0 * offset,
                    (number.float().log1p() / 7.0).expand_as(offset),
                    (spread.log() / 7.0).expand_as(offset),
                ],
                dim=-1,
            ),
            4.0 * predicted,
            mean,
            deviation,
        ],
        dim=-1,
    )
    return Relations(described, predicted, common, there.sum(1).float(), place)


def asked(relations: Relations, query: Tensor, time: Tensor, last: Tensor) -> Tensor:
    """Forecasts by the common curve.

    Args:
        query: the curves asked for, (S, Q).
        time: shares of the horizon, (S, Q).
        last: those curves' last values, 0 where nothing was observed, (S, Q).

    Returns:
        The common curve there, how many curves tell it, the curve's last value with the common
        rise added, and the common curve with each process's offset added; (S, Q, `ASKED`).
    """
    when = part(time)
    common = relations.common.gather(1, when)
    now = relations.common.gather(1, relations.place.gather(1, query))
    support = relations.support.gather(1, when).log1p() / 7.0
    offset = relations.predicted.gather(1, query[..., None].expand(-1, -1, PROCESSES))
    numbers = torch.stack([common, support, last + common - now], dim=-1)
    return torch.cat([numbers, common[..., None] + offset], dim=-1)


def _table(rows: int, curve: Tensor, when: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Mean value of each curve in each part of time, parts without one as the part before; and
    which parts lie between a curve's first and last; both (rows, TIMES)."""
    group = curve * TIMES + when
    count = torch.zeros(rows * TIMES, device=value.device).index_add_(
        0, group, torch.ones_like(value)
    )
    total = torch.zeros(rows * TIMES, device=value.device).index_add_(0, group, value)
    held = (count > 0).reshape(rows, TIMES)
    means = (total / count.clamp(min=1)).reshape(rows, TIMES)
    index = torch.where(held, torch.arange(TIMES, device=value.device), -1)
    before = index.cummax(1).values
    after = held.flip(1).cummax(1).values.flip(1)
    return means.gather(1, before.clamp(min=0)), (before >= 0) & after


def _processes(
    configurations: Tensor, offset: Tensor, noise: Tensor, basis: Tensor
) -> tuple[Tensor, Tensor]:
    """Means and standard deviations of unit-variance processes, both (S, K, PROCESSES).

    Args:
        offset: standardised, (S, K); what is absent has the noise `_ABSENT`.
        noise: variances, (S, K).
        basis: the curves that are looked at, (S, B).
    """
    points, owner = _points(configurations)
    here = basis[..., None].expand(-1, -1, points.shape[-1])
    known = points.gather(1, here)
    target, variance = offset.gather(1, basis), noise.gather(1, basis)
    weight = _relevance(known, owner, target, (variance < _ABSENT).float())
    used = (configurations[..., 1].amax(1) > 0).sum(-1).clamp(min=1)[:, None, None]
    length = _LENGTH * used / 6.0
    means, deviations = [], []
    for factor in (torch.ones_like(weight), weight):
        scale = (factor[:, None] / (2.0 * length)).sqrt()
        cross = (-_squared_distances(points * scale, known * scale)).exp()
        mean, deviation = _regress(cross, target, variance, basis)
        means.append(mean)
        deviations.append(deviation)
    return torch.stack(means, dim=-1), torch.stack(deviations, dim=-1)


def _points(configurations: Tensor) -> tuple[Tensor, Tensor]:
    """Configurations as points, (S, K, 4 * SLOTS), and the slot that each coordinate is of:
    numbers as they are, centred; activity; categories on a circle, so that any two differ."""
    value, active, categorical = configurations.unbind(-1)
    number = (value - 0.5) * active * (1.0 - categorical)
    angle = value * (2.0 * torch.pi * _TURNS)
    circle = [0.4 * categorical * angle.cos(), 0.4 * categorical * angle.sin()]
    points = torch.cat([number, 0.5 * (active - 0.5), *circle], dim=-1)
    return points, torch.arange(SLOTS, device=points.device).repeat(4)


def _relevance(points: Tensor, owner: Tensor, target: Tensor, present: Tensor) -> Tensor:
    """A weight a coordinate, (S, coordinates), 1 on average over the slots: by the squared
    correlation of each slot's best coordinate with the target, chance included."""
    count = present.sum(1).clamp(min=1)[:, None]
    there = present[..., None]
    centred = (points - (points * there).sum(1, keepdim=True) / count[..., None]) * there
    power = centred.square().sum(1)
    product = (centred * target[..., None]).sum(1)
    total = (target.square() * present).sum(1)[:, None].clamp(min=_TINY)
    share = product.square() / (power * total).clamp(min=1e-9)
    share = torch.where(power > 1e-6, share, 0.0)
    by_slot = share.reshape(len(share), -1, SLOTS).amax(1)
    varies = (power.reshape(len(power), -1, SLOTS).amax(1) > 1e-6).float()
    by_slot = (by_slot + 1.0 / (count + 2.0)) * varies
    mean = by_slot.sum(1, keepdim=True) / varies.sum(1, keepdim=True).clamp(min=1)
    return (by_slot / mean.clamp(min=1e-9))[:, owner]


def _squared_distances(left: Tensor, right: Tensor) -> Tensor:
    product = left @ right.transpose(1, 2)
    norms = left.square().sum(-1)[..., None] + right.square().sum(-1)[:, None]
    return (norms - 2.0 * product).clamp(min=0.0)


def _regress(
    cross: Tensor, target: Tensor, variance: Tensor, basis: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of a unit-variance process everywhere, both (S, K); for the
    curves of the basis without their own value (Rasmussen and Williams 2006, section 5.4.2).

    Args:
        cross: covariances of all with the basis, (S, K, B).
    """
    inside = cross.gather(1, basis[..., None].expand(-1, -1, cross.shape[-1]))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(inside + torch.diag_embed(variance)))
    alpha = inverse @ target[..., None]
    diagonal = inverse.diagonal(dim1=1, dim2=2).clamp(min=1e-9)
    mean = (cross @ alpha)[..., 0]
    spread = (1.0 - ((cross @ inverse) * cross).sum(-1)).clamp(min=1e-6)
    own = target - alpha[..., 0] / diagonal
    own_spread = (1.0 / diagonal - variance).clamp(min=1e-6)
    # What is absent has no value of its own to leave out.
    absent = variance >= _ABSENT
    own = torch.where(absent, mean.gather(1, basis), own)
    own_spread = torch.where(absent, spread.gather(1, basis), own_spread)
    return mean.scatter(1, basis, own), spread.scatter(1, basis, own_spread).sqrt()

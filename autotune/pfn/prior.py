"""Draws artificial studies: curves that depend on their configurations, which of their
observations a tuner has seen, and what it asks next.

The core is the prior of FT-PFN (Rakotoarison et al. 2024, arXiv 2404.16795; `families`,
`landscape`). Around it stands what real curves show beside: late take-off, wiggles, noise that
changes along the curve, spikes, crashes, regions that never learn, metrics on a part of their
range, clipped, warped, rounded or rescaled by what was observed, missing epochs, spaces with
steps, categories and conditions. Everything is oriented so that more is better, on [0, 1].
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from autotune.pfn import families, landscape, spaces

MOST_OBSERVATIONS = 2048

_OUTPUTS = 32
_CANDIDATES = 512
_WAVES = 3


@dataclass(frozen=True)
class Batch:
    """Artificial studies of equal shape. S studies, C context curves, Q queries, N observations
    in all; the curves of all studies are numbered s * (C + U) + c, U of them never observed.

    Args:
        configurations: as `Configurations.seen`, (S, C + U, SLOTS, 3).
        curve: the curve of each observation, (N,), ascending.
        time: of each observation as a share of the horizon, (N,), ascending in each curve.
        value: observed, in [0, 1], (N,).
        spacing: the horizon's share of one unit, (S,).
        query: the curve asked for, numbered within its study, (S, Q).
        query_time: (S, Q).
        target: the values there, in [0, 1], (S, Q).
        context: C.
    """

    configurations: Tensor
    curve: Tensor
    time: Tensor
    value: Tensor
    spacing: Tensor
    query: Tensor
    query_time: Tensor
    target: Tensor
    context: int


@dataclass(frozen=True)
class _Curves:
    """Parameters of all curves, shape (curves,) or (curves, ...), and of their studies."""

    start: Tensor
    end: Tensor
    weight: Tensor
    saturation: Tensor
    alpha: Tensor
    precision: Tensor
    after: Tensor
    noise: Tensor
    growth: Tensor
    delay: Tensor
    wave_size: Tensor
    wave_rate: Tensor
    wave_phase: Tensor
    crash: Tensor
    crash_value: Tensor
    spike_rate: Tensor
    low: Tensor
    width: Tensor
    floor: Tensor
    warp: Tensor


@dataclass
class _Draw:
    """Random numbers of one batch."""

    generator: torch.Generator

    def uniform(self, *size: int) -> Tensor:
        return torch.rand(*size, generator=self.generator, device=self.generator.device)

    def normal(self, *size: int) -> Tensor:
        return torch.randn(*size, generator=self.generator, device=self.generator.device)

    def chance(self, probability: float, *size: int) -> Tensor:
        return self.uniform(*size) < probability

    def between(self, low: float, high: float, *size: int) -> Tensor:
        return low + (high - low) * self.uniform(*size)

    def exponential(self, *size: int) -> Tensor:
        return -self.uniform(*size).clamp(min=1e-12).log()


@torch.no_grad()
def sample(studies: int, context: int, new: int, queries: int, generator: torch.Generator) -> Batch:
    """Draw a batch.

    Args:
        studies: S, a multiple of `landscape.SHARED`.
        context: C, curves that may be observed.
        new: U, configurations that are not.
        queries: Q.
        generator: of the device to work on.
    """
    draw = _Draw(generator)
    configurations = spaces.sample(studies, context + new, generator)
    curves = _curves(draw, configurations.inputs)
    levels = _levels(draw, studies)
    count = _counts(draw, studies, context, levels)
    curve, level = _observed(draw, count, context + new)
    value = _noisy(draw, curves, curve, _time(level, levels, curve, context + new))
    query, query_level, repeats = _asked(draw, count, levels, new, queries)
    offset = torch.arange(studies, device=query.device)[:, None] * (context + new)
    asked = (query + offset).flatten()
    asked_time = _time(query_level.flatten(), levels, asked, context + new)
    target = _noisy(draw, curves, asked, asked_time).reshape(studies, queries)

    # A finished curve returns its own last value.
    last = torch.zeros(studies * (context + new), device=value.device)
    last.scatter_reduce_(0, curve, torch.arange(len(curve), device=curve.device).float(), "amax")
    if len(curve):
        known = value[last.long()[asked]].reshape(target.shape)
        target = torch.where(repeats, known, target)
    value, target = _displayed(draw, value, curve // (context + new), target)
    return Batch(
        configurations.seen,
        curve,
        _time(level, levels, curve, context + new),
        value,
        1.0 / levels,
        query,
        asked_time.reshape(studies, queries),
        target,
        context,
    )


def _time(level: Tensor, levels: Tensor, curve: Tensor, curves: int) -> Tensor:
    return level / levels[curve // curves]


def _curves(draw: _Draw, inputs: Tensor) -> _Curves:
    """Parameters of the curves of all configurations, from random functions of them."""
    studies, count, _ = inputs.shape
    u = _uniforms(draw, inputs)
    each = iter(u.unbind(-1))

    def of_study(values: Tensor) -> Tensor:
        return values.reshape(studies, 1).expand(studies, count).reshape(-1)

    def take(number: int) -> Tensor:
        return torch.stack([next(each) for _ in range(number)], dim=-1)

    two = draw.uniform(2, studies)
    start = two.amin(0)
    highest = torch.where(draw.chance(0.25, studies), two.amax(0), 1.0)
    end = of_study(start) + next(each) * of_study(highest - start)
    weight = -take(4).log()
    weight = weight / weight.sum(-1, keepdim=True)
    bell = _normal(take(4))
    alpha = torch.stack(
        [
            (bell[:, 0] + 1.0).exp(),
            bell[:, 1].exp(),
            1.0 + (bell[:, 2] - 4.0).exp(),
            (0.5 * bell[:, 3] + 0.5).exp(),
        ],
        dim=-1,
    )
    furthest = 10.0 ** _normal(next(each))
    relative = -take(4).log()
    saturation = furthest[:, None] * relative / relative.amax(-1, keepdim=True)
    precision = 10.0 ** (3.0 * take(4))
    after = 1.0 + take(4).log()
    decline = of_study(draw.uniform(studies))[:, None]
    shrink = of_study(draw.between(0.0, 0.3, studies))[:, None]
    after = torch.where(
        decline < 0.35,
        after,
        torch.where(
            decline < 0.75, after.clamp(min=0.0), torch.where(after < 0, shrink * after, after)
        ),
    )

    noise = (_normal(next(each)) - 5.0).exp()
    noise = noise * of_study((0.7 * draw.normal(studies)).exp())
    noise = noise * of_study((~draw.chance(0.1, studies)).float())
    growth = of_study(draw.normal(studies) * 1.5 * draw.chance(0.5, studies))
    delayed = of_study(draw.chance(0.3, studies).float())
    reach = of_study(draw.between(0.05, 0.6, studies))
    delay = delayed * reach * (next(each) * 1.6 - 0.6).clamp(min=0.0)

    wavy = of_study(draw.chance(0.5, studies).float() * (draw.normal(studies) - 4.5).exp())
    wave_size = wavy * (2.0 * next(each))
    waves = (studies * count, _WAVES)
    wave_rate = 2.0 * math.pi * 10.0 ** draw.between(0.0, 1.6, *waves)
    wave_phase = 2.0 * math.pi * draw.uniform(*waves)

    crashing, crash_at, crash_to = next(each), next(each), next(each)
    share = of_study(draw.between(0.02, 0.5, studies) * draw.chance(0.4, studies))
    crashes = crashing < share
    never = crash_at < 0.4
    crash = torch.where(never, 0.0, (crash_at - 0.4) / 0.6)
    crash = torch.where(crashes, crash, math.inf)
    kind = of_study(draw.uniform(studies))
    first = of_study(start)
    crash_value = torch.where(
        never & (kind < 0.5), first, torch.where(kind < 0.6, 0.0, first * crash_to)
    )

    spikes = draw.between(0.005, 0.08, studies) * draw.chance(0.15, studies)
    range_of = draw.uniform(studies)
    width = torch.where(range_of < 0.25, 10.0 ** draw.between(-2.0, 0.0, studies), 1.0)
    low = draw.uniform(studies) * (1.0 - width)
    # A loss told as a share of what it was at the start, worse ones clipped.
    relative = range_of > 0.8
    width = torch.where(relative, 1.0 / (1.0 - start).clamp(min=0.01), width)
    low = torch.where(relative, -start * width, low)
    floor = torch.where(draw.chance(0.2, studies), start, 0.0)
    warp = torch.where(draw.chance(0.15, studies), 10.0 ** draw.between(0.0, 3.0, studies), 0.0)
    return _Curves(
        first, end, weight, saturation, alpha, precision, after, noise, growth, delay,
        wave_size, wave_rate, wave_phase, crash, crash_value, of_study(spikes), of_study(low),
        of_study(width), of_study(floor), of_study(warp),
    )  # fmt: skip


def _uniforms(draw: _Draw, inputs: Tensor) -> Tensor:
    """Uniform numbers that depend on the configuration, shape (curves, `_OUTPUTS`)."""
    studies, count, slots = inputs.shape
    shared = landscape.SHARED
    order = draw.uniform(studies, slots).argsort(1)
    mixed = inputs.gather(2, order[:, None].expand(-1, count, -1))
    mixed = mixed.reshape(studies // shared, shared * count, slots)
    shape = landscape.random_shape(draw.generator)
    out = landscape.outputs(mixed, _OUTPUTS, shape, draw.generator)
    out = out.reshape(studies, count, _OUTPUTS)
    order = draw.uniform(studies, _OUTPUTS).argsort(1)
    out = out.gather(2, order[:, None].expand(-1, count, -1))
    return landscape.uniforms(out.contiguous()).reshape(studies * count, _OUTPUTS)


def _normal(u: Tensor) -> Tensor:
    return torch.special.ndtri(u)


def _levels(draw: _Draw, studies: int) -> Tensor:
    """Units of the horizon, (studies,)."""
    usual = draw.chance(0.6, studies)
    power = torch.where(usual, draw.between(0.6, 2.4, studies), draw.between(0.0, 3.0, studies))
    return (10.0**power).round().clamp(min=1.0)


def _counts(draw: _Draw, studies: int, context: int, levels: Tensor) -> Tensor:
    """How many units of each context curve were observed, (studies, context): the first ones.

    Curves are drawn by an exponential race: of n units, each is observed by the time T with
    probability 1 - exp(-w T / n), and T is such that the study has about as many observations as
    it should.
    """
    many = draw.chance(0.5, studies)
    power = torch.where(many, draw.between(-4.0, -1.0, studies), draw.between(-1.0, 0.7, studies))
    concentration = (10.0**power)[:, None].expand(-1, _CANDIDATES)
    # A Gamma(a) variable is Gamma(a + 1) * U^(1/a): for small a only its logarithm is a number.
    gamma = torch._standard_gamma(concentration + 1.0, generator=draw.generator)
    log_weight = gamma.log() + draw.uniform(studies, _CANDIDATES).clamp(min=1e-30).log() / (
        concentration
    )
    log_weight = log_weight - log_weight.amax(1, keepdim=True)
    weight = log_weight.exp() + 1e-9

    least = draw.chance(0.6, studies)
    weight = torch.where(
        least[:, None] & (torch.arange(_CANDIDATES, device=weight.device) >= context),
        0.0,
        weight,
    )
    most = (context * levels).clamp(max=float(MOST_OBSERVATIONS))
    wanted = most ** draw.uniform(studies) ** 0.7
    low = torch.full_like(wanted, -10.0)
    high = torch.full_like(wanted, 30.0)
    for _ in range(24):
        middle = 0.5 * (low + high)
        expected = levels * (-(-weight * (middle.exp() / levels)[:, None]).expm1()).sum(1)
        low = torch.where(expected < wanted, middle, low)
        high = torch.where(expected < wanted, high, middle)
    probability = -(-weight * (high.exp() / levels)[:, None]).expm1()
    count = torch.binomial(
        levels[:, None].expand_as(probability).contiguous(),
        probability.clamp(0.0, 1.0),
        generator=draw.generator,
    )
    # Those with observations first; where trials are all begun, one observation at least.
    order = (draw.uniform(*count.shape) + 2.0 * (count == 0)).argsort(1)
    count = count.gather(1, order)[:, :context]
    begun = draw.uniform(studies, 1) * context
    first = torch.arange(context, device=count.device) < begun
    return torch.where(least[:, None] & first, count.clamp(min=1.0), count).long()


def _observed(draw: _Draw, count: Tensor, curves: int) -> tuple[Tensor, Tensor]:
    """Curve and unit (from 1) of every observation; in some studies epochs are missing."""
    studies, context = count.shape
    flat = count.flatten()
    device = count.device
    number = torch.arange(studies, device=device)[:, None] * curves
    number = (number + torch.arange(context, device=device)).flatten()
    curve = number.repeat_interleave(flat)
    begin = flat.cumsum(0) - flat
    level = torch.arange(len(curve), device=device) - begin.repeat_interleave(flat) + 1
    missing = draw.uniform(studies) * 0.8 * draw.chance(0.15, studies)
    last = level == flat.repeat_interleave(flat)
    kept = last | (draw.uniform(len(curve)) >= missing[curve // curves])
    return curve[kept], level[kept]


def _asked(
    draw: _Draw, count: Tensor, levels: Tensor, new: int, queries: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Curve, unit, and whether it is the last observed unit again, each (studies, queries)."""
    studies, context = count.shape
    size = (studies, queries)
    fresh = draw.chance(0.3, *size)
    begun = (count > 0).sum(1, keepdim=True)
    chosen = (draw.uniform(*size) * begun).long().clamp(max=context - 1)
    # The k-th curve that has observations.
    ordered = (count == 0).long().argsort(dim=1, stable=True)
    chosen = ordered.gather(1, chosen)
    other = context + (draw.uniform(*size) * new).long().clamp(max=new - 1)
    fresh = fresh | (begun == 0)
    query = torch.where(fresh, other, chosen)
    seen = torch.where(fresh, 0, count.gather(1, chosen))
    whole = levels[:, None]
    level = seen + 1 + (draw.uniform(*size) * (whole - seen)).floor()
    level = torch.where(draw.chance(0.35, *size), whole, level).clamp(max=whole)
    repeats = ~fresh & (draw.chance(0.04, *size) | (seen >= whole))
    return query, torch.where(repeats, seen.to(level.dtype), level), repeats


def _noisy(draw: _Draw, curves: _Curves, curve: Tensor, time: Tensor) -> Tensor:
    """Values as the task would report them, (points,), of `curve` at `time`."""
    delay = curves.delay[curve]
    x = (time - delay).clamp(min=0.0) / (1.0 - delay)
    y = families.value(
        x,
        curves.start[curve],
        curves.end[curve],
        curves.weight[curve],
        curves.saturation[curve],
        curves.alpha[curve],
        curves.precision[curve],
        curves.after[curve],
    )
    waves = (curves.wave_rate[curve] * time[:, None] + curves.wave_phase[curve]).sin().mean(1)
    y = y + curves.wave_size[curve] * waves
    crashed = time > curves.crash[curve]
    y = torch.where(crashed, curves.crash_value[curve], y)
    y = y + curves.noise[curve] * (curves.growth[curve] * (time - 0.5)).exp() * draw.normal(
        len(time)
    )
    spike = draw.uniform(len(time)) < curves.spike_rate[curve]
    y = y - spike * 0.2 * draw.exponential(len(time))
    y = torch.maximum(y.clamp(0.0, 1.0), curves.floor[curve])
    warp = curves.warp[curve]
    bent = 1.0 - (warp * (1.0 - y)).log1p() / warp.log1p().clamp(min=1e-9)
    y = torch.where(warp > 0, bent, y)
    return curves.low[curve] + curves.width[curve] * y


def _displayed(draw: _Draw, value: Tensor, study: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """In some studies, values normalised by the observed range, or rounded."""
    studies = len(target)
    device = value.device
    value = value.clamp(0.0, 1.0)
    low = torch.full((studies,), math.inf, device=device).scatter_reduce_(0, study, value, "amin")
    high = torch.full((studies,), -math.inf, device=device).scatter_reduce_(0, study, value, "amax")
    known = (high > low) & draw.chance(0.2, studies)
    margin = draw.between(0.0, 0.1, studies) * draw.chance(0.5, studies) * (high - low)
    low = torch.where(known, low - margin, 0.0)
    width = torch.where(known, high + margin - low, 1.0)
    digits = 10.0 ** draw.between(1.5, 3.5, studies)
    rounded = draw.chance(0.15, studies)

    def shown(y: Tensor, of: Tensor) -> Tensor:
        y = ((y.clamp(0.0, 1.0) - low[of]) / width[of]).clamp(0.0, 1.0)
        return torch.where(rounded[of], (y * digits[of]).round() / digits[of], y).clamp(0.0, 1.0)

    of_query = torch.arange(studies, device=device)[:, None].expand_as(target)
    return shown(value, study), shown(target, of_query)

"""The pieces that schedules are made of: warm-up, and ways down from 1 to a final factor.

All take and return plain numbers. A step is judged by the samples seen before it, so the last
step of a decay is taken at a rate a little above the final one, as torch's schedulers do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from autotune.space import Integer


def warm_up_space() -> Integer:
    """Length of the linear warm-up in samples, so that it does not depend on the horizon.

    1 means none: the first batch is past it. The range suits data sets up to some hundred
    thousand samples; override it for larger ones.
    """
    return Integer(1, 100_000, log=True, default=1)


def warm_up(samples: float, batch_size: int, length: float) -> float:
    """Linear warm-up over `length` samples: the share of it done once the coming batch is
    (so the first step is not lost to a rate of 0), at most 1."""
    return min(1.0, (samples + batch_size) / length) if length > 0 else 1.0


def share_done(position: float, start: float, end: float) -> float:
    """Where `position` lies between `start` and `end`, in [0, 1]."""
    if end <= start:
        return 1.0 if position >= end else 0.0
    return min(1.0, max(0.0, (position - start) / (end - start)))


def linear(share: float, final: float) -> float:
    """Straight line from 1 to `final`."""
    return final + (1 - final) * (1 - share)


def cosine(share: float, final: float) -> float:
    """Half a cosine wave from 1 to `final` (Loshchilov and Hutter 2017, equation 5)."""
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * share))


def one_minus_square_root(share: float, final: float) -> float:
    """``1 - sqrt(share)``, stretched to end at `final` (Hägele et al. 2024, section 3)."""
    return final + (1 - final) * (1 - math.sqrt(share))


def one_minus_square(share: float, final: float) -> float:
    """``1 - share ** 2``, stretched to end at `final` (Hägele et al. 2024, appendix)."""
    return final + (1 - final) * (1 - share**2)


def inverse_square_root(share: float, final: float) -> float:
    """From 1 to `final` as ``(1 + c * share) ** -1/2``, with the ``c`` that ends there.

    Needs ``final > 0``.
    """
    return (1 + (final**-2 - 1) * share) ** -0.5


def exponential(share: float, final: float) -> float:
    """From 1 to `final` by equal ratios: ``final ** share``. Needs ``final > 0``."""
    return final**share


COOLDOWNS: Mapping[str, Callable[[float, float], float]] = {
    "linear": linear,
    "1-sqrt": one_minus_square_root,
    "cosine": cosine,
    "1-square": one_minus_square,
}
"""Shapes of the last decay of a warm-up-stable-decay schedule, by name."""

DESCENTS: Mapping[str, Callable[[float, float], float]] = {
    "cosine": cosine,
    "inverse_square_root": inverse_square_root,
    "linear": linear,
}
"""Shapes of an infinite schedule's way down to its constant rate, by name."""

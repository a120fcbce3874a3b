"""Parameters: the leaves of a space. Each maps its values to the unit interval and back.

A value that came out of `decode` goes through `encode` and `decode` unchanged, bit for bit:
continuous parameters are rounded on the unit axis, to a grid that is coarse enough for the
rounding errors of both directions to vanish on it and finer than any effect of a hyperparameter
(about 1e-12 of the range, unless the range is a tiny interval around a large number).
"""

from __future__ import annotations

import math
import re
from bisect import bisect
from dataclasses import dataclass, field
from decimal import Decimal
from statistics import NormalDist
from typing import Any, Literal, TypeAlias, get_args

from autotune.space.errors import MISSING, SpaceError, listed, nearest

Scalar: TypeAlias = bool | int | float | str | None
Confidence = Literal["low", "medium", "high"]

# Standard deviations on the unit axis, as in NePS (Mallik et al., "PriorBand", 2023).
_SIGMA = {"low": 0.5, "medium": 0.25, "high": 0.125}
# How many times more likely than any other value the centre of a categorical prior is.
_WEIGHT = {"low": 2.0, "medium": 4.0, "high": 8.0}
_NORMAL = NormalDist()
# Integers beyond this do not survive the logarithm and back.
_LARGEST = 2**40
_HUGE = 1e300
_NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?")


@dataclass(frozen=True)
class Prior:
    """A belief about where a parameter's best value lies.

    Numbers and ordinals are drawn from a normal distribution around `center`, truncated to the
    range, on the encoded axis (so in the logarithm for ``log=True``); its standard deviation is
    0.5, 0.25 or 0.125 of the range for a low, medium or high `confidence`. Of a categorical
    parameter or a choice the centre is 2, 4 or 8 times as likely as every other value.
    """

    center: Any
    confidence: Confidence = "medium"

    def __post_init__(self) -> None:
        if self.confidence not in get_args(Confidence):
            raise SpaceError(
                ("prior", "confidence"),
                self.confidence,
                f"one of {listed(get_args(Confidence))}",
                nearest(self.confidence, get_args(Confidence)),
            )


def truncated_normal(uniform: float, center: float, confidence: Confidence) -> float:
    """The quantile `uniform` of the prior of a number with encoded centre `center`."""
    sigma = _SIGMA[confidence]
    low, high = _NORMAL.cdf(-center / sigma), _NORMAL.cdf((1 - center) / sigma)
    quantile = low + uniform * (high - low)
    if not 0.0 < quantile < 1.0:
        return 0.0 if quantile <= 0.0 else 1.0
    return min(1.0, max(0.0, center + sigma * _NORMAL.inv_cdf(quantile)))


def weighted_bin(uniform: float, count: int, center: int, confidence: Confidence) -> float:
    """The encoded value of the bin that quantile `uniform` of a categorical prior falls in."""
    weights = [1.0] * count
    weights[center] = _WEIGHT[confidence]
    total = sum(weights)
    edges, reached = [], 0.0
    for weight in weights[:-1]:
        reached += weight / total
        edges.append(reached)
    return (bisect(edges, uniform) + 0.5) / count


def is_number(value: Any) -> bool:
    """Whether `value` is a finite int or float, and no bool."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, int) or math.isfinite(value)


def _decimal(value: float) -> Decimal:
    # As written, not as stored: 0.1 is a tenth.
    return Decimal(value) if isinstance(value, int) else Decimal(repr(float(value)))


def as_number(value: Any) -> Any:
    """`value`, read as a number if it is text like ``1e-3`` (which YAML 1.1 takes for a string);
    anything else as it is."""
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        return float(value)
    return value


def is_scalar(value: Any) -> bool:
    """Whether `value` can be a constant or an item of choices: no container, NaN or infinity."""
    return value is None or isinstance(value, bool | str) or is_number(value)


def same(a: Any, b: Any) -> bool:
    """Equality of scalars that, unlike Python's, tells True from 1."""
    return isinstance(a, bool) == isinstance(b, bool) and bool(a == b)


def _set(owner: Any, **values: Any) -> None:
    for name, value in values.items():
        object.__setattr__(owner, name, value)


def _check_start(parameter: Float | Integer | Categorical | Ordinal) -> None:
    """Default and prior centre lie in the range; both are made canonical."""
    if not isinstance(parameter.evaluation, bool):
        raise SpaceError("evaluation", parameter.evaluation, "true or false")
    if parameter.default is not MISSING and (
        parameter.default is not None or isinstance(parameter, Categorical)
    ):
        if (canonical := parameter.canonical(parameter.default)) is MISSING:
            raise SpaceError("default", parameter.default, parameter.expected)
        _set(parameter, default=canonical)
    if parameter.prior is not None:
        if not isinstance(parameter.prior, Prior):
            raise SpaceError("prior", parameter.prior, "a center and a confidence")
        center = parameter.canonical(parameter.prior.center)
        if center is MISSING:
            raise SpaceError(("prior", "center"), parameter.prior.center, parameter.expected)
        _set(parameter, prior=Prior(center, parameter.prior.confidence))


def _check_range(low: Any, high: Any, log: Any, step: Any, whole: bool) -> None:
    kind = "an integer" if whole else "a number"
    for key, value in (("low", low), ("high", high), ("step", step)):
        if value is None and key == "step":
            continue
        if not is_number(value) or abs(value) > _HUGE or (whole and value != int(value)):
            raise SpaceError(key, value, kind)
    if not isinstance(log, bool):
        raise SpaceError("log", log, "true or false")
    if low >= high:
        raise SpaceError(
            "high", high, f"{kind} above low ({low:g}); a fixed value is written as that value"
        )
    if log and low <= 0:
        raise SpaceError("low", low, f"{kind} above 0, because log is true")
    if step is not None and step <= 0:
        raise SpaceError("step", step, f"{kind} above 0")
    if log and step is not None:
        raise SpaceError("step", step, "no step together with log: true; an ordinal lists values")
    if step is not None:
        steps = (_decimal(high) - _decimal(low)) / _decimal(step)
        if steps > 2**31:
            raise SpaceError("step", step, "a step that divides the range into fewer values")
        if steps != int(steps):
            below = float(_decimal(low) + int(steps) * _decimal(step))
            raise SpaceError("high", high, f"low plus a whole number of steps, such as {below:g}")


@dataclass(frozen=True)
class Float:
    """A real number in [low, high].

    Args:
        log: search the logarithm.
        step: only ``low, low + step, ...`` (not together with `log`).
        default: where the search begins; by default the prior's centre, else the middle of the
            (logarithmic) range.
        prior: a belief about the best value.
        evaluation: the parameter affects only the evaluation of a trained model.
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None
    default: float | None = None
    prior: Prior | None = None
    evaluation: bool = False
    _from: float = field(init=False, repr=False, compare=False)
    _width: float = field(init=False, repr=False, compare=False)
    _grid: float = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_range(self.low, self.high, self.log, self.step, whole=False)
        _set(self, low=float(self.low), high=float(self.high))
        if self.step is not None:
            _set(self, step=float(self.step))
            steps = (_decimal(self.high) - _decimal(self.low)) / _decimal(self.step)
            _set(self, _from=self.low, _width=float(self.step), _grid=float(int(steps) + 1))
        else:
            low, high = (
                (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
            )
            width = high - low
            if not math.isfinite(width):
                raise SpaceError("high", self.high, "a range that a 64-bit number can hold")
            # Each of the two directions errs by a few units in the last place of the larger
            # end; the grid leaves ten bits of room for that.
            magnitude = max(abs(low), abs(high), width) / width
            bits = 41 - math.ceil(math.log2(magnitude))
            if bits < 16:
                raise SpaceError("high", self.high, f"a wider range than {self.low!r} to this")
            _set(self, _from=low, _width=width, _grid=2.0**bits)
        _check_start(self)

    @property
    def expected(self) -> str:
        """What values are allowed, for people."""
        text = f"a number from {self.low:g} to {self.high:g}"
        return text if self.step is None else f"{text} in steps of {self.step:g}"

    @property
    def size(self) -> float:
        """How many values there are."""
        return math.inf if self.step is None else self._grid

    @property
    def default_value(self) -> float:
        """The default, stated or derived."""
        if self.default is not None:
            return self.default
        return self.decode(0.5) if self.prior is None else self.prior.center

    def canonical(self, value: Any) -> Any:
        """`value` as this parameter writes it, or `MISSING` if it is not allowed."""
        if not is_number(value) or not self.low <= value <= self.high:
            return MISSING
        if self.step is None:
            return float(value)
        canonical = self.decode(self.encode(value))
        return canonical if abs(canonical - value) <= 1e-9 * self.step else MISSING

    def encode(self, value: float) -> float:
        """The place of an allowed value in [0, 1]."""
        if self.step is not None:
            return (round((value - self._from) / self._width) + 0.5) / self._grid
        place = ((math.log(value) if self.log else value) - self._from) / self._width
        return round(place * self._grid) / self._grid

    def decode(self, place: float) -> float:
        """The value at a place in [0, 1]."""
        if self.step is not None:
            index = min(int(place * self._grid), int(self._grid) - 1)
            # In decimals, so that the third step of 0.1 is 0.3.
            return float(_decimal(self.low) + index * _decimal(self.step))
        place = round(place * self._grid) / self._grid
        if place <= 0.0:
            return self.low
        if place >= 1.0:
            return self.high
        value = self._from + place * self._width
        value = min(self.high, max(self.low, math.exp(value) if self.log else value))
        # The shortest number at this place: 0.001 for 0.0010000000000000002.
        short = float(f"{value:.11g}")
        if self.low <= short <= self.high and self.encode(short) == place:
            return short
        return value

    def warp(self, uniform: float) -> float:
        """The place at quantile `uniform` of the prior (or `uniform` itself without one)."""
        if self.prior is None:
            return uniform
        return truncated_normal(uniform, self.encode(self.prior.center), self.prior.confidence)


@dataclass(frozen=True)
class Integer:
    """A whole number in [low, high]; arguments as for `Float`."""

    low: int
    high: int
    log: bool = False
    step: int | None = None
    default: int | None = None
    prior: Prior | None = None
    evaluation: bool = False
    _from: float = field(init=False, repr=False, compare=False)
    _width: float = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_range(self.low, self.high, self.log, self.step, whole=True)
        _set(self, low=int(self.low), high=int(self.high))
        if self.step is not None:
            _set(self, step=int(self.step))
        for key, value in (("low", self.low), ("high", self.high)):
            if abs(value) > _LARGEST:
                raise SpaceError(key, value, f"an integer from -{_LARGEST} to {_LARGEST}")
        if self.log:
            # Half a unit beyond both ends, so that the ends are as likely as the others.
            low, high = math.log(self.low - 0.5), math.log(self.high + 0.5)
            _set(self, _from=low, _width=high - low)
        else:
            _set(self, _from=float(self.low), _width=float(self.size))
        _check_start(self)

    @property
    def expected(self) -> str:
        """What values are allowed, for people."""
        text = f"an integer from {self.low} to {self.high}"
        return text if self.step is None else f"{text} in steps of {self.step}"

    @property
    def size(self) -> int:
        """How many values there are."""
        return (self.high - self.low) // (self.step or 1) + 1

    @property
    def default_value(self) -> int:
        """The default, stated or derived."""
        if self.default is not None:
            return self.default
        return self.decode(0.5) if self.prior is None else self.prior.center

    def canonical(self, value: Any) -> Any:
        """`value` as this parameter writes it, or `MISSING` if it is not allowed."""
        if not is_number(value) or not self.low <= value <= self.high:
            return MISSING
        if value != int(value) or (int(value) - self.low) % (self.step or 1):
            return MISSING
        return int(value)

    def encode(self, value: int) -> float:
        """The place of an allowed value in [0, 1]."""
        if self.log:
            return (math.log(value) - self._from) / self._width
        return ((value - self.low) // (self.step or 1) + 0.5) / self._width

    def decode(self, place: float) -> int:
        """The value at a place in [0, 1]."""
        if self.log:
            return min(self.high, max(self.low, round(math.exp(self._from + place * self._width))))
        index = min(int(place * self._width), self.size - 1)
        return self.low + index * (self.step or 1)

    def warp(self, uniform: float) -> float:
        """As `Float.warp`."""
        if self.prior is None:
            return uniform
        return truncated_normal(uniform, self.encode(self.prior.center), self.prior.confidence)


def _check_values(key: str, values: Any) -> tuple[Scalar, ...]:
    if isinstance(values, str) or not isinstance(values, list | tuple):
        raise SpaceError(key, values, "a list of values")
    if not values:
        raise SpaceError(key, values, "at least one value")
    for index, value in enumerate(values):
        if not is_scalar(value):
            raise SpaceError((key, index), value, "a number, a string, true, false or null")
        if any(same(value, other) for other in values[:index]):
            raise SpaceError((key, index), value, "every value once")
    return tuple(values)


class _Listed:
    """What parameters share whose values are listed: one bin of the unit interval a value."""

    _values: tuple[Scalar, ...]
    _index: dict[tuple[bool, Scalar], int]

    def _number(self, values: tuple[Scalar, ...]) -> None:
        index = {(isinstance(value, bool), value): i for i, value in enumerate(values)}
        _set(self, _values=values, _index=index)

    @property
    def expected(self) -> str:
        """What values are allowed, for people."""
        return f"one of {listed(repr(value) for value in self._values)}"

    @property
    def size(self) -> int:
        """How many values there are."""
        return len(self._values)

    def canonical(self, value: Any) -> Any:
        """`value` as it is listed, or `MISSING` if it is not."""
        if not is_scalar(value):
            return MISSING
        index = self._index.get((isinstance(value, bool), value))
        return MISSING if index is None else self._values[index]

    def encode(self, value: Scalar) -> float:
        """The middle of the value's bin in [0, 1]."""
        return (self._index[(isinstance(value, bool), value)] + 0.5) / len(self._values)

    def decode(self, place: float) -> Scalar:
        """The value whose bin holds a place in [0, 1]."""
        return self._values[min(int(place * len(self._values)), len(self._values) - 1)]


@dataclass(frozen=True)
class Categorical(_Listed):
    """One of some scalars that have no order. Without a `default` the prior's centre, else the
    first."""

    choices: tuple[Scalar, ...]
    default: Any = MISSING
    prior: Prior | None = None
    evaluation: bool = False

    def __post_init__(self) -> None:
        _set(self, choices=_check_values("choices", self.choices))
        self._number(self.choices)
        # None is "not stated" unless it is one of the choices.
        if self.default is None and (False, None) not in self._index:
            _set(self, default=MISSING)
        _check_start(self)

    @property
    def default_value(self) -> Scalar:
        """The default, stated or derived."""
        if self.default is not MISSING:
            return self.default
        return self.choices[0] if self.prior is None else self.prior.center

    def warp(self, uniform: float) -> float:
        """As `Float.warp`."""
        if self.prior is None:
            return uniform
        center = self._index[(isinstance(self.prior.center, bool), self.prior.center)]
        return weighted_bin(uniform, self.size, center, self.prior.confidence)


@dataclass(frozen=True)
class Ordinal(_Listed):
    """One of some scalars in the order given, equally spaced. Without a `default` the prior's
    centre, else the middle one (the lower of two)."""

    values: tuple[Scalar, ...]
    default: Scalar = None
    prior: Prior | None = None
    evaluation: bool = False

    def __post_init__(self) -> None:
        _set(self, values=_check_values("values", self.values))
        self._number(self.values)
        if None in self.values:
            raise SpaceError("values", self.values, "no null; a categorical may have it")
        _check_start(self)

    @property
    def default_value(self) -> Scalar:
        """The default, stated or derived."""
        if self.default is not None:
            return self.default
        if self.prior is not None:
            return self.prior.center
        return self.values[(len(self.values) - 1) // 2]

    def warp(self, uniform: float) -> float:
        """As `Float.warp`."""
        if self.prior is None:
            return uniform
        return truncated_normal(uniform, self.encode(self.prior.center), self.prior.confidence)


@dataclass(frozen=True)
class Constant:
    """A fixed value; part of every configuration, no dimension of the search."""

    value: Scalar

    def __post_init__(self) -> None:
        if not is_scalar(self.value):
            raise SpaceError("value", self.value, "a number, a string, true, false or null")

    @property
    def expected(self) -> str:
        """What values are allowed, for people."""
        return f"the fixed value {self.value!r}"

    @property
    def default_value(self) -> Scalar:
        """The value."""
        return self.value

    def canonical(self, value: Any) -> Any:
        """The value, or `MISSING` if it is another."""
        return self.value if is_scalar(value) and same(value, self.value) else MISSING


Parameter: TypeAlias = Float | Integer | Categorical | Ordinal | Constant

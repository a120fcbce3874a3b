"""Random spaces, for the properties that hold of every space."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from autotune.space import (
    Categorical,
    Choice,
    Constant,
    Float,
    Integer,
    Ordinal,
    Prior,
    Space,
    SpaceError,
)

names = st.sampled_from(
    ["a", "b", "c_1", "d-e", "low", "rank", "on", "null", "no", "E5", "plugin", "typ"]
)
option_names = st.sampled_from(["x", "y", "z", "1e-3", "off", "dist:z", "null", "8"])
confidences = st.sampled_from(["low", "medium", "high"])
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-1000, 1000),
    st.floats(-1e6, 1e6),
    st.sampled_from(
        ["relu", "float", "1e-3", "off", "null", "", " x ", "0o17", "1_000", "é\u2028", "a: b"]
    ),
    st.text(max_size=8).filter(lambda text: text.isprintable()),
)


def _prior(center: st.SearchStrategy[Any]) -> st.SearchStrategy[Prior | None]:
    return st.none() | st.builds(Prior, center, confidences)


@st.composite
def floats(draw: st.DrawFn, evaluation: bool = False) -> Float:
    if draw(st.booleans()):
        low = draw(st.floats(1e-12, 1e6))
        high = low * draw(st.floats(1.01, 1e9))
        log = True
    else:
        low = draw(st.floats(-1e6, 1e6))
        high = low + draw(st.floats(1e-3, 1e9)) * max(1.0, abs(low))
        log = False
    inside = st.floats(0, 1).map(lambda t: min(high, max(low, low + t * (high - low))))
    default, prior = draw(st.none() | inside), draw(_prior(inside))
    return Float(low, high, log, default=default, prior=prior, evaluation=evaluation)


@st.composite
def stepped_floats(draw: st.DrawFn, evaluation: bool = False) -> Float:
    low = draw(st.integers(-50, 50)) / 10
    step = draw(st.sampled_from([0.1, 0.25, 1.0, 0.001, 3.0]))
    count = draw(st.integers(1, 40))
    # The end as people write it, not with the error of the sum.
    high = round(low + count * step, 6)
    return Float(low, high, step=step, evaluation=evaluation)


@st.composite
def integers(draw: st.DrawFn, evaluation: bool = False) -> Integer:
    log = draw(st.booleans())
    low = draw(st.integers(1, 1000) if log else st.integers(-(2**39), 2**39))
    step = None if log else draw(st.none() | st.integers(1, 7))
    high = low + (step or 1) * draw(st.integers(1, 2**30 if log else 1000))
    values = st.integers(0, (high - low) // (step or 1)).map(lambda i: low + i * (step or 1))
    default, prior = draw(st.none() | values), draw(_prior(values))
    return Integer(low, high, log, step, default, prior, evaluation)


@st.composite
def categoricals(draw: st.DrawFn, evaluation: bool = False) -> Categorical:
    values = draw(st.lists(scalars, min_size=1, max_size=5, unique_by=_identity))
    arguments = {"default": draw(st.sampled_from(values))} if draw(st.booleans()) else {}
    prior = draw(_prior(st.sampled_from(values)))
    return Categorical(tuple(values), prior=prior, evaluation=evaluation, **arguments)


@st.composite
def ordinals(draw: st.DrawFn, evaluation: bool = False) -> Ordinal:
    numbers = scalars.filter(lambda value: value is not None)
    values = draw(st.lists(numbers, min_size=1, max_size=5, unique_by=_identity))
    default = draw(st.none() | st.sampled_from(values))
    prior = draw(_prior(st.sampled_from(values)))
    return Ordinal(tuple(values), default, prior, evaluation)


def _identity(value: Any) -> tuple[bool, Any]:
    return isinstance(value, bool), value


def leaves(evaluation: bool = False) -> st.SearchStrategy[Any]:
    kinds = (floats, stepped_floats, integers, categoricals, ordinals)
    return st.one_of(*(kind(evaluation) for kind in kinds), st.builds(Constant, scalars))


@st.composite
def choices(draw: st.DrawFn, depth: int, evaluation: bool = False) -> Choice:
    options = draw(st.dictionaries(option_names, spaces(depth - 1, False), min_size=1, max_size=3))
    default = draw(st.none() | st.sampled_from(sorted(options)))
    prior = draw(_prior(st.sampled_from(sorted(options))))
    return Choice(options, default, prior, evaluation)


@st.composite
def spaces(draw: st.DrawFn, depth: int = 2, marks: bool = True) -> Space:
    """Spaces up to `depth` choices or groups deep; `marks`: some only affect evaluation."""
    parameters: dict[str, Any] = {}
    for name in draw(st.lists(names, max_size=4, unique=True)):
        evaluation = marks and draw(st.booleans())
        kinds = [leaves(evaluation)]
        if depth > 0:
            kinds += [choices(depth, evaluation), spaces(depth - 1, marks)]
        parameters[name] = draw(st.one_of(kinds))
    return Space(parameters)


@st.composite
def constrained_spaces(draw: st.DrawFn) -> Space:
    """Spaces with up to four forbidden combinations."""
    space = draw(spaces())
    clauses: list[dict[str, Any]] = []
    for _ in range(draw(st.integers(0, 4)) if space.slots else 0):
        slots = draw(st.lists(st.sampled_from(space.slots), min_size=1, max_size=3))
        clause = {slot.path: draw(_condition(slot.parameter)) for slot in slots}
        try:
            space = Space(space.parameters, [*clauses, clause])
        except SpaceError as error:
            # A clause that forbids the default is a mistake, and not looked for here.
            if "default configuration is forbidden" not in str(error):
                raise
        else:
            clauses.append(clause)
    return space


@st.composite
def _condition(draw: st.DrawFn, parameter: Any) -> Any:
    places = st.lists(st.floats(0, 1), min_size=1, max_size=3)
    values = [parameter.decode(place) for place in draw(places)]
    number = isinstance(values[0], int | float) and not isinstance(values[0], bool)
    if number and draw(st.booleans()):
        return f"{draw(st.sampled_from(['>', '>=', '<', '<=', '!=']))} {values[0]}"
    return values if draw(st.booleans()) or isinstance(values[0], str) else values[0]

"""Single parameters: values, defaults, priors, and the words for what is wrong with them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from autotune.space import (
    Categorical,
    Choice,
    Constant,
    Float,
    Integer,
    Ordinal,
    Plugins,
    Prior,
    Space,
    SpaceError,
)


def test_log_scale_is_uniform_in_the_logarithm() -> None:
    parameter = Float(1e-4, 1.0, log=True)
    assert parameter.decode(0.5) == pytest.approx(1e-2)
    assert parameter.decode(0.0) == 1e-4
    assert parameter.decode(1.0) == 1.0
    assert parameter.encode(1e-3) == pytest.approx(0.25)


def test_steps_give_the_numbers_people_write() -> None:
    parameter = Float(0.0, 1.0, step=0.1)
    values = [parameter.decode((index + 0.5) / 11) for index in range(11)]
    assert values == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    assert parameter.canonical(0.1 + 0.2) == 0.3
    assert [Integer(1, 10, step=3).decode(place) for place in (0.0, 0.3, 0.6, 1.0)] == [1, 4, 7, 10]


@pytest.mark.parametrize("log", [False, True])
def test_every_integer_is_drawn_the_ends_included(log: bool) -> None:
    space = Space({"n": Integer(1, 4, log=log)})
    rng = np.random.default_rng(0)
    counts = np.bincount([space.sample(rng)["n"] for _ in range(8000)], minlength=5)[1:]
    expected = np.diff(np.log(np.arange(0.5, 5.0))) / math.log(9) if log else np.full(4, 0.25)
    assert counts / 8000 == pytest.approx(expected, abs=0.025)


@pytest.mark.parametrize(
    ("parameter", "default"),
    [
        (Float(0, 1), 0.5),
        (Float(1e-4, 1.0, log=True, default=1e-3), 1e-3),
        (Float(1e-4, 1.0, log=True, prior=Prior(1e-3)), 1e-3),
        (Float(0, 1, default=0.25, prior=Prior(0.75)), 0.25),
        (Integer(1, 9), 5),
        (Integer(16, 64, log=True), 32),
        (Categorical(("b", "a")), "b"),
        (Categorical(("b", None), default=None), None),
        (Categorical(("b", "a"), prior=Prior("a")), "a"),
        (Ordinal((16, 32, 64)), 32),
        (Ordinal((16, 32)), 16),
        (Choice({"x": {}, "y": {}}), "x"),
        (Choice({"x": {}, "y": {}}, prior=Prior("y")), "y"),
        (Constant("fixed"), "fixed"),
    ],
)
def test_defaults(parameter: Any, default: Any) -> None:
    assert parameter.default_value == pytest.approx(default)
    assert type(parameter.default_value) is type(default)


def test_a_prior_is_a_truncated_normal_on_the_encoded_axis() -> None:
    for confidence, sigma in (("low", 0.5), ("medium", 0.25), ("high", 0.125)):
        parameter = Float(1e-4, 1.0, log=True, prior=Prior(1e-3, confidence))
        places = np.array([parameter.warp((i + 0.5) / 20000) for i in range(20000)])
        grid = np.linspace(0, 1, 20001)
        density = np.exp(-0.5 * ((grid - 0.25) / sigma) ** 2)
        mean = (grid * density).sum() / density.sum()
        spread = math.sqrt((grid**2 * density).sum() / density.sum() - mean**2)
        assert places.mean() == pytest.approx(mean, abs=1e-3)
        assert places.std() == pytest.approx(spread, abs=1e-3)


def test_a_prior_raises_the_weight_of_a_categorical_centre() -> None:
    rng = np.random.default_rng(0)
    for confidence, weight in (("low", 2), ("medium", 4), ("high", 8)):
        space = Space(
            {
                "c": Categorical(("a", "b", "c"), prior=Prior("b", confidence)),
                "o": Choice({"x": {}, "y": {}, "z": {}}, prior=Prior("y", confidence)),
            }
        )
        drawn = [space.sample(rng, prior=True) for _ in range(4000)]
        for share in (
            np.mean([d["c"] == "b" for d in drawn]),
            np.mean([d["o"]["name"] == "y" for d in drawn]),
        ):
            assert share == pytest.approx(weight / (weight + 2), abs=0.03)
        plain = [space.sample(rng)["c"] == "b" for _ in range(4000)]
        assert np.mean(plain) == pytest.approx(1 / 3, abs=0.03)


def test_true_is_not_one() -> None:
    parameter = Categorical((1, True, 0, False))
    for value in parameter.choices:
        assert parameter.decode(parameter.encode(value)) is value
    with pytest.raises(SpaceError, match=r"got True, expected a number from 0 to 2"):
        Space({"a": Float(0, 2)}).validate({"a": True})


def test_what_has_one_value_takes_no_dimension() -> None:
    space = Space({"a": Categorical(("x",)), "b": Choice({"only": {"c": Float(0, 1)}}), "d": 3})
    assert [slot.name for slot in space.slots] == ["b.only.c"]
    assert space.slots[0].conditions == ()
    assert space.default() == {"a": "x", "b": {"name": "only", "c": 0.5}, "d": 3}


def test_a_narrow_range_far_from_zero_still_encodes_exactly() -> None:
    parameter = Float(1e6, 1e6 + 1)
    for place in np.random.default_rng(0).random(100):
        value = parameter.decode(float(place))
        assert parameter.decode(parameter.encode(value)) == value
    with pytest.raises(SpaceError, match="wider range"):
        Float(1e15, 1e15 + 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Float(1, 0), "high: got 0, expected a number above low (1)"),
        (lambda: Float(1, 1), "high: got 1, expected a number above low (1)"),
        (lambda: Float("a", 1), "low: got 'a', expected a number"),
        (lambda: Float(0, math.inf), "high: got inf, expected a number"),
        (lambda: Float(0, True), "high: got True, expected a number"),
        (lambda: Float(0, 1, log=True), "low: got 0, expected a number above 0, because log"),
        (lambda: Float(0, 1, log="yes"), "log: got 'yes', expected true or false"),
        (lambda: Float(0, 1, step=0.3), "low plus a whole number of steps, such as 0.9"),
        (lambda: Float(0, 1, step=-1), "step: got -1, expected a number above 0"),
        (lambda: Float(0, 1, step=1e-12), "divides the range into fewer values"),
        (lambda: Float(1, 2, log=True, step=1), "no step together with log"),
        (lambda: Float(0, 1, default=2), "default: got 2, expected a number from 0 to 1"),
        (lambda: Float(0, 1, prior=Prior(2)), "prior.center: got 2, expected a number"),
        (lambda: Float(0, 1, prior=0.5), "prior: got 0.5, expected a center and a confidence"),
        (lambda: Float(0, 1, evaluation=1), "evaluation: got 1, expected true or false"),
        (lambda: Prior(1, "hihg"), "one of low, medium, high (did you mean 'high'?)"),
        (lambda: Integer(0.5, 2), "low: got 0.5, expected an integer"),
        (lambda: Integer(0, 2**50), "high: got 1125899906842624, expected an integer from"),
        (lambda: Integer(0, 5, step=2), "such as 4"),
        (lambda: Categorical(()), "choices: got (), expected at least one value"),
        (lambda: Categorical("abc"), "choices: got 'abc', expected a list of values"),
        (lambda: Categorical(("a", "a")), "choices[1]: got 'a', expected every value once"),
        (lambda: Categorical((1, 1.0)), "choices[1]: got 1.0, expected every value once"),
        (lambda: Categorical(([],)), "choices[0]: got [], expected a number, a string"),
        (lambda: Categorical((math.nan,)), "choices[0]: got nan"),
        (lambda: Categorical(("a",), default="b"), "default: got 'b', expected one of 'a'"),
        (lambda: Ordinal((1, None)), "no null"),
        (lambda: Constant([1]), "value: got [1], expected a number, a string"),
        (lambda: Choice({}), "options: got {}, expected a mapping with at least one option"),
        (lambda: Choice({"a b": {}}), "options.a b: bad name"),
        (lambda: Choice({"ab": {}}, default="abc"), "unknown option 'abc'"),
        (lambda: Choice({"ab": {"name": 1}}), "options.ab.name: 'name' is reserved"),
        (lambda: Choice({"ab": {"c": []}}), "options.ab.c: got [], expected a parameter"),
        (lambda: Plugins(""), "plugins: got '', expected a plugin kind"),
        (lambda: Plugins("k", include=()), "include: got [], expected at least one plugin"),
        (lambda: Plugins("k", exclude="a"), "exclude: got 'a', expected a list of plugin names"),
        (lambda: Plugins("k", exclude=("a", "a")), "exclude[1]: got 'a', expected every plugin"),
        (lambda: Plugins("k", override={"a": 1}), "override.a: got 1, expected a mapping"),
        (lambda: Space({"type": 1}), "type: 'type' cannot name a parameter"),
        (lambda: Space({"a.b": 1}), "a.b: 'a.b' cannot name a parameter"),
        (lambda: Space({1: 1}), "1: 1 cannot name a parameter"),
        (lambda: Space({"g": {"h": object}}), "g.h: got <class 'object'>, expected a parameter"),
        (lambda: Space([]), "got [], expected a mapping of parameters"),
    ],
)
def test_mistakes_name_key_value_and_what_was_expected(make: Any, message: str) -> None:
    with pytest.raises(SpaceError) as caught:
        make()
    assert message in str(caught.value)


def test_an_error_carries_its_parts() -> None:
    space = Space({"optimizer": Choice({"adamw": {"rate": Float(0, 1)}})})
    with pytest.raises(SpaceError) as caught:
        space.complete({"optimizer": {"name": "adamv"}})
    error = caught.value
    assert (error.key, error.value, error.nearest) == ("optimizer.name", "adamv", "adamw")
    assert error.expected == "one of adamw"
    with pytest.raises(SpaceError) as caught:
        space.complete({"optimizer": {"name": "adamw", "rat": 1}})
    assert (caught.value.key, caught.value.nearest) == ("optimizer.rat", "rate")

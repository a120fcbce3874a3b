"""What holds of every space, found out on random ones."""

from __future__ import annotations

import json
import math
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import constrained_spaces, leaves, spaces

from autotune.space import MISSING, Categorical, Choice, Constant, Float, Space, SpaceError, join

# The same spaces in every run of CI; raise the number and drop `derandomize` to look for more.
relaxed = settings(
    deadline=None, suppress_health_check=list(HealthCheck), max_examples=120, derandomize=True
)
seeds = st.integers(0, 2**32)


def equal(a: Any, b: Any, tolerance: float = 0.0) -> bool:
    """Equality that tells 1 from True, with a relative tolerance for floats."""
    if isinstance(a, dict):
        return (
            isinstance(b, dict)
            and list(a) == list(b)
            and all(equal(a[key], b[key], tolerance) for key in a)
        )
    if isinstance(a, float) and isinstance(b, float):
        return a == b or math.isclose(a, b, rel_tol=tolerance, abs_tol=0.0)
    return type(a) is type(b) and a == b


@relaxed
@given(spaces())
def test_yaml_and_json_lose_nothing(space: Space) -> None:
    text = space.to_yaml()
    again = Space.from_yaml(text)
    assert again == space
    assert again.to_yaml() == text
    assert equal(again.default(), space.default())
    assert Space.from_plain(json.loads(json.dumps(space.to_plain()))) == space
    assert pickle.loads(pickle.dumps(space)) == space


@relaxed
@given(constrained_spaces())
def test_clauses_survive_yaml(space: Space) -> None:
    again = Space.from_yaml(space.to_yaml())
    assert again == space
    assert [dict(clause) for clause in again.forbidden] == list(space.forbidden)


@relaxed
@given(spaces(), seeds, st.booleans())
def test_encoding_and_decoding_are_inverse_bit_for_bit(
    space: Space, seed: int, prior: bool
) -> None:
    configuration = space.sample(np.random.default_rng(seed), prior=prior)
    encoded, mask = space.encode(configuration)
    assert encoded.shape == mask.shape == (len(space.slots),)
    assert encoded.dtype == np.float64
    assert ((encoded >= 0) & (encoded <= 1)).all()
    assert (encoded[~mask] == 0).all()
    assert equal(space.decode(encoded), configuration)
    # What stands in inactive entries does not matter.
    noise = np.random.default_rng(seed).random(len(space.slots))
    assert equal(space.decode(np.where(mask, encoded, noise)), configuration)


@relaxed
@given(spaces(), seeds)
def test_any_place_of_the_cube_decodes_stably(space: Space, seed: int) -> None:
    places = np.random.default_rng(seed).random(len(space.slots))
    places[places < 0.1], places[places > 0.9] = 0.0, 1.0
    configuration = space.decode(places)
    space.validate(configuration)
    encoded, _ = space.encode(configuration)
    assert equal(space.decode(encoded), configuration)
    assert (space.encode(space.decode(encoded))[0] == encoded).all()


@relaxed
@given(leaves(), st.floats(0, 1))
def test_a_users_own_value_survives_encoding(parameter: Any, t: float) -> None:
    if isinstance(parameter, Constant):
        return
    value = parameter.default_value
    if isinstance(parameter, Float) and parameter.step is None:
        value = parameter.low + t * (parameter.high - parameter.low)
        value = min(parameter.high, max(parameter.low, value))
        place = parameter.encode(value)
        assert parameter.encode(parameter.decode(place)) == place
        width = parameter.high - parameter.low
        scale = value if parameter.log else width
        assert abs(parameter.decode(place) - value) <= 1e-9 * scale
    else:
        assert equal(parameter.decode(parameter.encode(value)), value)


@relaxed
@given(spaces(), seeds)
def test_slots_tell_where_values_stand(space: Space, seed: int) -> None:
    assert len({slot.name for slot in space.slots}) == len(space.slots)
    configuration = space.sample(np.random.default_rng(seed))
    encoded, mask = space.encode(configuration)
    for slot, place, active in zip(space.slots, encoded, mask, strict=True):
        value = slot.value(configuration)
        assert (value is not MISSING) == active
        if active:
            assert slot.parameter.encode(value) == place


@relaxed
@given(spaces(), seeds)
def test_the_two_levels_split_and_join(space: Space, seed: int) -> None:
    training, evaluation = space.split()
    assert [s.name for s in training.slots] == [s.name for s in space.slots if not s.evaluation]
    assert [s.name for s in evaluation.slots] == [s.name for s in space.slots if s.evaluation]
    configuration = space.sample(np.random.default_rng(seed))
    train, evaluate = space.split_configuration(configuration)
    training.validate(train)
    evaluation.validate(evaluate)
    assert join(train, evaluate) == configuration
    assert training.encode(configuration)[0].tolist() == training.encode(train)[0].tolist()


@relaxed
@given(constrained_spaces(), seeds)
def test_nothing_drawn_is_forbidden(space: Space, seed: int) -> None:
    rng = np.random.default_rng(seed)
    assert space.forbids(space.default()) is None
    space.validate(space.default())
    try:
        configuration = space.sample(rng)
    except SpaceError as error:
        # Clauses may leave the default alone; then it says so, and names them.
        met = space.forbids(space.decode(rng.random(len(space.slots))))
        if "no allowed configuration in 10000 draws" not in str(error) or str(met) not in str(
            error
        ):
            raise
        return
    for _ in range(30):
        for drawn in (space.sample(rng), space.sample(rng, prior=True)):
            assert space.forbids(drawn) is None
            space.validate(drawn)
        configuration = space.neighbour(configuration, rng)
        space.validate(configuration)


@relaxed
@given(constrained_spaces(), seeds)
def test_a_clause_across_the_levels_holds_for_the_whole(space: Space, seed: int) -> None:
    training, evaluation = space.split()
    rng = np.random.default_rng(seed)
    places = rng.random((8, len(space.slots)))
    for train, evaluate in map(space.split_configuration, map(space.decode, places)):
        whole = join(train, evaluate)
        caught = training.forbids(train) or evaluation.forbids(whole)
        assert (space.forbids(whole) is None) == (caught is None)


@relaxed
@given(spaces(), seeds)
def test_a_part_is_completed_with_defaults(space: Space, seed: int) -> None:
    configuration = space.sample(np.random.default_rng(seed))
    assert equal(space.complete(configuration), configuration)
    assert equal(space.complete({}), space.default())
    for name, value in configuration.items():
        completed = space.complete({name: value})
        assert equal(completed, {**space.default(), name: value})


@relaxed
@given(spaces(), seeds, st.text(max_size=5))
def test_what_does_not_belong_is_refused_with_its_key(space: Space, seed: int, name: str) -> None:
    configuration = space.sample(np.random.default_rng(seed))
    if name not in configuration:
        with pytest.raises(SpaceError) as caught:
            space.validate({**configuration, name: 1})
        assert caught.value.path == (name,)
    for key in configuration:
        rest = {other: value for other, value in configuration.items() if other != key}
        with pytest.raises(SpaceError) as caught:
            space.validate(rest)
        assert caught.value.path[0] == key
        with pytest.raises(SpaceError) as caught:
            space.validate({**configuration, key: ["no", "parameter", "is", "a", "list"]})
        assert caught.value.path[0] == key


@relaxed
@given(leaves(), seeds)
def test_a_neighbour_differs_where_it_can(parameter: Any, seed: int) -> None:
    space = Space({"p": parameter})
    rng = np.random.default_rng(seed)
    configuration = space.sample(rng)
    moved = space.neighbour(configuration, rng)
    assert equal(moved, configuration) == (not space.slots)


@relaxed
@given(spaces(), seeds)
def test_a_neighbour_keeps_what_does_not_move(space: Space, seed: int) -> None:
    rng = np.random.default_rng(seed)
    start = space.default()
    moved = space.neighbour(start, rng)
    before, mask = space.encode(start)
    after, mask_after = space.encode(moved)
    changed = [
        slot
        for slot, a, b, both in zip(space.slots, before, after, mask & mask_after, strict=True)
        if both and a != b
    ]
    assert len(changed) == (1 if mask.any() else 0)
    for slot, both in zip(space.slots, mask & mask_after, strict=True):
        if both and slot not in changed:
            assert equal(slot.value(moved), slot.value(start))


@relaxed
@given(leaves(), seeds)
def test_priors_stay_in_the_range(parameter: Any, seed: int) -> None:
    if isinstance(parameter, Constant):
        return
    for uniform in (0.0, 1.0 - 2**-53, *np.random.default_rng(seed).random(20)):
        assert 0.0 <= parameter.warp(float(uniform)) <= 1.0


@relaxed
@given(st.lists(st.integers(0, 5), min_size=1, max_size=4, unique=True), seeds)
def test_choices_nest_to_any_depth(levels: list[int], seed: int) -> None:
    space = Space({"leaf": Categorical((0, 1))})
    for level in levels * 3:
        space = Space({f"c{level}": Choice({"in": space, "out": {}})})
    assert len(space.slots) == 3 * len(levels) + 1
    assert len(space.slots[-1].conditions) == 3 * len(levels)
    configuration = space.sample(np.random.default_rng(seed))
    encoded, mask = space.encode(configuration)
    assert space.decode(encoded) == configuration
    assert mask.sum() == str(configuration).count("name") + str(configuration).count("leaf")

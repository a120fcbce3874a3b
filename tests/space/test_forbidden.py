"""Forbidden combinations: what clauses mean, where they are checked, what they cost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from autotune.space import (
    Categorical,
    Choice,
    Float,
    Integer,
    Ordinal,
    Space,
    SpaceError,
    join,
)

PARAMETERS = {
    "optimizer": Choice(
        {
            "adamw": {"learning_rate": Float(1e-5, 1.0, log=True, default=1e-3)},
            "sgd": {"learning_rate": Float(1e-5, 1.0, log=True), "nesterov": Categorical((0, 1))},
        }
    ),
    "adapter": Choice({"full": {}, "lora": {"rank": Integer(1, 64)}, "pissa": {}}),
    "batch_size": Ordinal((16, 32, 64)),
    "flag": Categorical((True, 1, "x")),
    "tta": Choice({"none": {}, "tent": {"steps": Integer(1, 5)}}, evaluation=True),
}
DEFAULT = Space(PARAMETERS).default()


def forbids(clause: dict[str, Any], **changes: Any) -> bool:
    space = Space(PARAMETERS, [clause])
    return space.forbids({**DEFAULT, **changes}) is not None


def test_all_conditions_of_a_clause_must_hold() -> None:
    clause = {"optimizer": "sgd", "adapter": ["lora", "pissa"]}
    sgd = {"name": "sgd", "learning_rate": 0.1, "nesterov": 0}
    assert forbids(clause, optimizer=sgd, adapter={"name": "lora", "rank": 3})
    assert forbids(clause, optimizer=sgd, adapter={"name": "pissa"})
    assert not forbids(clause, optimizer=sgd)
    assert not forbids(clause, adapter={"name": "pissa"})


@pytest.mark.parametrize(
    ("condition", "allowed", "forbidden"),
    [
        ("> 0.1", 0.1, 0.11),
        (">= 0.1", 0.09, 0.1),
        ("<1e-4", 1e-4, 1e-5),
        ("<= 1e-4", 2e-4, 1e-4),
        (0.5, 0.4, 0.5),
        ([0.5, 0.25], 0.4, 0.25),
    ],
)
def test_comparisons_and_values(condition: Any, allowed: float, forbidden: float) -> None:
    clause = {"optimizer.learning_rate": condition}
    assert not forbids(clause, optimizer={"name": "adamw", "learning_rate": allowed})
    assert forbids(clause, optimizer={"name": "adamw", "learning_rate": forbidden})


def test_unequal_and_the_difference_of_true_and_one() -> None:
    assert forbids({"batch_size": "!= 32"}, batch_size=16)
    assert not forbids({"batch_size": "!= 32"}, batch_size=32)
    assert forbids({"flag": 1}, flag=1)
    assert not forbids({"flag": 1}, flag=True)


def test_a_condition_on_what_is_inactive_is_false() -> None:
    assert not forbids({"adapter.rank": "> 0"})
    assert not forbids({"adapter.rank": "!= 3"})
    assert forbids({"adapter.rank": "> 0"}, adapter={"name": "lora", "rank": 1})


def test_nothing_forbidden_in_many_samples() -> None:
    clauses = [
        {"optimizer": "sgd", "adapter": ["lora", "pissa"]},
        {"optimizer.learning_rate": "> 0.1"},
        {"adapter.rank": "> 8", "batch_size": [16, 32]},
        {"flag": "x"},
        {"tta": "tent", "adapter": "pissa"},
    ]
    space = Space(PARAMETERS, clauses)
    rng = np.random.default_rng(0)
    for index in range(10_000):
        drawn = space.sample(rng, prior=index % 2 == 0)
        # Spelt out once more, since `forbids` may be wrong about what it let through.
        assert drawn["optimizer"]["learning_rate"] <= 0.1
        assert drawn["flag"] != "x"
        assert drawn["optimizer"]["name"] == "adamw" or drawn["adapter"]["name"] == "full"
        assert drawn["adapter"].get("rank", 0) <= 8 or drawn["batch_size"] == 64
        assert drawn["tta"]["name"] == "none" or drawn["adapter"]["name"] != "pissa"


def test_allowed_configurations_stay_equally_likely() -> None:
    space = Space({"a": Ordinal((0, 1, 2)), "b": Ordinal((0, 1, 2))}, [{"a": "> 1", "b": "< 1"}])
    rng = np.random.default_rng(0)
    counts = np.zeros((3, 3))
    for _ in range(8000):
        drawn = space.sample(rng)
        counts[drawn["a"], drawn["b"]] += 1
    assert counts[2, 0] == 0
    assert np.delete(counts.ravel(), 6) / 8000 == pytest.approx(np.full(8, 0.125), abs=0.02)


def test_clauses_of_nested_spaces_hold_under_their_full_paths() -> None:
    inner = Space({"low": Float(0, 1, default=0.1), "high": Float(0, 1)}, [{"low": "> 0.5"}])
    space = Space({"o": Choice({"x": inner, "y": {"low": Float(0, 1)}}), "g": inner})
    assert list(space.forbidden) == [{"o": "x", "o.low": "> 0.5"}, {"g.low": "> 0.5"}]
    rng = np.random.default_rng(0)
    seen_above = False
    for _ in range(300):
        drawn = space.sample(rng)
        assert drawn["g"]["low"] <= 0.5
        assert drawn["o"]["name"] == "y" or drawn["o"]["low"] <= 0.5
        seen_above = seen_above or drawn["o"]["low"] > 0.5
    assert seen_above
    assert Space.from_yaml(space.to_yaml()) == space


def test_a_clause_across_the_levels_is_asked_of_the_whole() -> None:
    space = Space(PARAMETERS, [{"adapter": "pissa", "tta": "tent"}, {"tta.steps": "> 3"}])
    training, evaluation = space.split()
    assert training.forbidden == ()
    assert list(evaluation.forbidden) == [{"tta.steps": "> 3"}]
    assert list(evaluation.across) == [{"adapter": "pissa", "tta": "tent"}]
    pissa = {**training.default(), "adapter": {"name": "pissa"}}
    tent = {"tta": {"name": "tent", "steps": 2}}
    assert evaluation.forbids(tent) is None
    assert evaluation.forbids(join(training.default(), tent)) is None
    assert evaluation.forbids(join(pissa, tent)) == {"adapter": "pissa", "tta": "tent"}
    rng = np.random.default_rng(0)
    for _ in range(200):
        assert evaluation.sample(rng, given=pissa) == {"tta": {"name": "none"}}
    assert {evaluation.sample(rng)["tta"]["name"] for _ in range(50)} == {"none", "tent"}
    assert Space.from_yaml(evaluation.to_yaml()) == evaluation


def test_a_default_beside_a_given_configuration() -> None:
    space = Space(PARAMETERS, [{"adapter": "pissa", "tta": "none"}])
    training, evaluation = space.split()
    pissa = {**training.default(), "adapter": {"name": "pissa"}}
    assert evaluation.default(given=training.default()) == {"tta": {"name": "none"}}
    assert evaluation.default(given=pissa) == {"tta": {"name": "tent", "steps": 3}}


def test_nothing_left_is_said_with_the_clauses() -> None:
    space = Space({"a": Float(0, 1, default=0)}, [{"a": "> 0"}])
    with pytest.raises(SpaceError, match=r"no allowed configuration .* \{'a': '> 0'\}"):
        space.sample(np.random.default_rng(0))


@pytest.mark.parametrize(
    ("clause", "message"),
    [
        ({"optimzer": "sgd"}, "forbidden[1].optimzer: unknown parameter 'optimzer'"),
        ({"optimizer.learning_rat": 1}, "(did you mean 'optimizer.learning_rate'?)"),
        ({"optimizer": "sdg"}, "forbidden[1].optimizer: got 'sdg'"),
        ({"optimizer": "> 1"}, "forbidden[1].optimizer: got '> 1', expected one of adamw, sgd"),
        ({"optimizer": ["sgd", "x"]}, "got 'x', expected one of adamw, sgd"),
        ({"batch_size": 17}, "forbidden[1].batch_size: got 17, expected one of 16, 32, 64"),
        ({"batch_size": ">> 17"}, "got '>> 17', expected a value, a list of values"),
        ({"batch_size": []}, "got [], expected a value, a list of values"),
        ({"batch_size": {"a": 1}}, "expected a value, a list of values"),
        ({"batch_size": [[1]]}, "forbidden[1].batch_size[0]: got [1]"),
        ({}, "forbidden[1]: got {}, expected a mapping of parameter to condition"),
        ("sgd", "forbidden[1]: got 'sgd', expected a mapping"),
        ({"optimizer": "adamw"}, "the default configuration is forbidden by"),
    ],
)
def test_mistakes_in_clauses(clause: Any, message: str) -> None:
    with pytest.raises(SpaceError) as caught:
        Space(PARAMETERS, [{"batch_size": 64}, clause])
    assert message in str(caught.value)
    assert caught.value.path[:2] == ("forbidden", 1)


def test_forbidden_configurations_are_refused_by_name() -> None:
    space = Space(PARAMETERS, [{"batch_size": 64, "optimizer": "sgd"}])
    with pytest.raises(SpaceError, match=r"batch_size: this combination is forbidden by \{'batch"):
        space.complete({"optimizer": "sgd", "batch_size": 64})

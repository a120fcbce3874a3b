"""All plugins of a kind: includes, excludes, overrides, and what cannot work on a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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

ADAMW = Space(
    {
        "learning_rate": Float(1e-5, 1e-1, log=True, default=1e-3, prior=Prior(1e-3)),
        "betas": {"beta1": Float(0.8, 0.99, default=0.9)},
        "steps": Integer(1, 100, default=90),
        "mode": Categorical(("a", "b", "c"), default="c"),
        "size": Ordinal((1, 2, 4), default=4),
        "decay": Choice({"none": {}, "some": {"by": Float(0, 1)}}, default="some"),
    },
    [{"mode": "a", "size": 1}],
)


class Shelf:
    """A catalogue of two optimizers and three adapters, one of which cannot work here."""

    spaces: Mapping[str, Mapping[str, Space]] = {
        "optimizer": {"adamw": ADAMW, "sgd": Space({"learning_rate": Float(1e-4, 1)})},
        "adapter": {
            "full": Space({}),
            "lora": Space({"rank": Integer(1, 64)}),
            "broken": Space({}),
        },
    }
    hindrances: Mapping[str, str] = {"lora": "it needs pretrained weights", "broken": "it raised"}

    def options(self, kind: str) -> dict[str, Space]:
        return {n: s for n, s in self.spaces[kind].items() if n not in self.hindrances}

    def names(self, kind: str) -> list[str]:
        return list(self.spaces[kind])

    def why_not(self, kind: str, name: str) -> str | None:
        return self.hindrances.get(name)

    def get(self, kind: str, name: str) -> Any:
        if name == "broken":
            raise RuntimeError("adapter 'broken' cannot be used: it raised")
        space = self.spaces[kind][name]
        return type(name, (), {"space": staticmethod(lambda: space)})


def resolved(**entries: Any) -> Space:
    forbidden = entries.pop("forbidden", ())
    return Space(entries, forbidden).resolve(Shelf())


def test_all_plugins_of_a_kind() -> None:
    choice = resolved(o=Plugins("optimizer")).parameters["o"]
    assert isinstance(choice, Choice)
    assert (list(choice.options), choice.default, choice.kind) == (
        ["adamw", "sgd"],
        "adamw",
        "optimizer",
    )
    assert not choice.evaluation
    assert list(resolved(a=Plugins("adapter")).parameters["a"].options) == ["full"]


def test_evaluation_is_told_by_kind_or_mark() -> None:
    assert Plugins("tta").evaluation_only
    assert not Plugins("tta", evaluation=False).evaluation_only
    assert resolved(o=Plugins("optimizer", evaluation=True)).slots[0].evaluation


def test_include_exclude_default_and_depth() -> None:
    assert list(resolved(o=Plugins("optimizer", include=("sgd",))).parameters["o"].options) == [
        "sgd"
    ]
    nested = resolved(g={"c": Choice({"on": {"o": Plugins("optimizer", exclude=("adamw",))}})})
    assert nested.default() == {
        "g": {"c": {"name": "on", "o": {"name": "sgd", "learning_rate": 0.50005}}}
    }
    assert resolved(o=Plugins("optimizer", default="sgd")).default()["o"]["name"] == "sgd"


def test_what_cannot_work_is_left_out_even_if_included() -> None:
    space = resolved(a=Plugins("adapter", include=("full", "lora"), override={"lora": {"rank": 4}}))
    assert list(space.parameters["a"].options) == ["full"]


def test_an_unresolved_space_says_so_and_survives_yaml() -> None:
    space = Space(
        {"o": Plugins("optimizer", ("sgd",), (), {"sgd": {"learning_rate": {"low": 0.1}}})},
        [{"o": "sgd", "o.learning_rate": "> 0.9"}],
    )
    assert not space.is_resolved
    assert Space.from_yaml(space.to_yaml()) == space
    with pytest.raises(SpaceError, match="resolve"):
        space.default()


def overridden(change: Any, name: str = "learning_rate") -> Any:
    space = resolved(o=Plugins("optimizer", override={"adamw": {name: change}}))
    return space.parameters["o"].options["adamw"].parameters[name]


def test_overrides_change_ranges() -> None:
    assert overridden({"low": "1e-4", "high": 1e-2, "default": 5e-3}) == Float(
        1e-4, 1e-2, log=True, default=5e-3, prior=Prior(1e-3)
    )
    assert overridden({"log": False, "low": 0, "step": 0.01, "default": 0.02}).size == 11
    assert overridden({"prior": {"center": 1e-2, "confidence": "high"}}).prior == Prior(
        1e-2, "high"
    )
    assert overridden({"prior": None}).prior is None
    assert overridden({"choices": ["c", "d"]}, "mode") == Categorical(("c", "d"), default="c")
    assert overridden({"values": [2, 4, 8]}, "size") == Ordinal((2, 4, 8), default=4)


def test_a_default_that_an_override_leaves_outside_moves_in() -> None:
    moved = overridden({"low": 1e-2})
    assert moved.default == moved.low == moved.prior.center == 1e-2
    assert overridden({"high": 50}, "steps").default == 50
    assert overridden({"low": 2, "high": 50, "step": 4}, "steps").default == 50
    assert overridden({"choices": ["a", "b"]}, "mode").default_value == "a"
    assert overridden({"values": [1, 2]}, "size").default_value == 1


def test_overrides_fix_values_also_beyond_the_range() -> None:
    assert overridden(0.5) == Constant(0.5)
    assert overridden("1e-3") == Constant(1e-3)
    assert overridden(7, "steps") == Constant(7)
    assert overridden("a", "mode") == Constant("a")
    assert overridden("none", "decay").default_value == "none"
    assert overridden("none", "decay").size == 1


def test_overrides_reach_groups_and_choices() -> None:
    assert overridden({"beta1": 0.95}, "betas") == Space({"beta1": 0.95})
    changed = overridden({"default": "none", "options": {"some": {"by": {"high": 0.5}}}}, "decay")
    assert changed.default == "none"
    assert changed.options["some"] == Space({"by": Float(0, 0.5)})


def test_a_plugins_own_clauses_come_along() -> None:
    space = resolved(o=Plugins("optimizer"))
    assert list(space.forbidden) == [{"o": "adamw", "o.mode": "a", "o.size": 1}]


def test_a_plugins_clauses_lose_values_that_an_override_took() -> None:
    def clauses(**changes: Any) -> list[Any]:
        return list(resolved(o=Plugins("optimizer", override={"adamw": changes})).forbidden)

    assert clauses(mode={"choices": ["b", "c"]}) == []
    assert clauses(mode="a", size={"default": 2}) == [{"o": "adamw", "o.mode": "a", "o.size": 1}]


def test_clauses_about_absent_plugins_are_dropped_not_misspelt() -> None:
    space = resolved(
        o=Plugins("optimizer", exclude=("sgd",)),
        a=Plugins("adapter"),
        forbidden=[
            {"o": "sgd"},
            {"a": ["lora", "full"], "o.steps": "< 5"},
            {"a.rank": "> 8"},
            {"o.learning_rate": "> 0.05", "a": "lora"},
        ],
    )
    assert list(space.forbidden[:-1]) == [{"a": ["full"], "o.steps": "< 5"}]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            Plugins("optimizer", include=("adam",)),
            "o.include[0]: unknown optimizer 'adam', expected one of adamw, sgd "
            "(did you mean 'adamw'?)",
        ),
        (Plugins("optimizer", exclude=("sdg",)), "o.exclude[0]: unknown optimizer 'sdg'"),
        (Plugins("optimizer", default="sg"), "o.default: unknown optimizer 'sg'"),
        (
            Plugins("optimizer", default="sgd", exclude=("sgd",)),
            "o.default: 'sgd' is not among the options, expected one of adamw",
        ),
        (Plugins("adapter", default="lora"), "not among the options: it needs pretrained weights"),
        (Plugins("adapter", include=("lora",)), "o: no adapter is left to choose from (lora: it"),
        (Plugins("adapter", include=("broken",)), "o.include[0]: adapter 'broken' cannot be used"),
        (Plugins("optimizer", exclude=("adamw", "sgd")), "no optimizer is left to choose from"),
        (Plugins("optimizer", override={"adam": {}}), "o.override.adam: unknown optimizer 'adam'"),
        (
            Plugins("optimizer", exclude=("sgd",), override={"sgd": {}}),
            "o.override.sgd: 'sgd' is not among the options",
        ),
    ],
)
def test_mistakes_about_plugins(entry: Plugins, message: str) -> None:
    with pytest.raises(SpaceError) as caught:
        resolved(o=entry)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("learning_rat", 1, ".learning_rat: unknown parameter 'learning_rat'"),
        ("learning_rate", {"lo": 1}, ".learning_rate.lo: unknown key 'lo'"),
        ("learning_rate", {"lo": 1}, "(did you mean 'low'?)"),
        ("learning_rate", {"choices": [1]}, "unknown key 'choices', expected one of low, high"),
        ("learning_rate", {"type": "float"}, "unknown key 'type'"),
        ("learning_rate", {"low": 1}, ".learning_rate.high: got 0.1, expected a number above"),
        ("learning_rate", {"default": 5}, ".learning_rate.default: got 5, expected a number from"),
        ("learning_rate", "fast", ".learning_rate: got 'fast', expected a number"),
        ("learning_rate", [1], "expected a fixed value or a mapping with low, high, log"),
        ("steps", 1.5, ".steps: got 1.5, expected an integer"),
        ("mode", "d", ".mode: got 'd', expected one of 'a', 'b', 'c'"),
        ("decay", "som", ".decay: unknown option 'som'"),
        ("decay", {"option": {}}, ".decay.option: unknown key 'option'"),
        ("decay", {"options": {"some": {"bye": 1}}}, ".decay.options.some.bye: unknown parameter"),
        ("betas", 0.9, ".betas: got 0.9, expected a mapping"),
    ],
)
def test_mistakes_in_overrides(name: str, change: Any, message: str) -> None:
    with pytest.raises(SpaceError) as caught:
        overridden(change, name)
    assert message in str(caught.value)
    assert caught.value.path[:3] == ("o", "override", "adamw")


def test_a_mistake_in_a_clause_is_told_by_its_own_number() -> None:
    with pytest.raises(SpaceError) as caught:
        resolved(o=Plugins("optimizer", exclude=("sgd",)), forbidden=[{"o": "sgd"}, {"o.stepz": 1}])
    assert caught.value.path[:2] == ("forbidden", 1)

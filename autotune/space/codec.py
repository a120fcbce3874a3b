"""A space compiled to a tree of nodes, which walk configurations fast.

The deciding loop samples, encodes and decodes hundreds of times a decision, so paths are never
looked up then: every node knows its key and its place in the vector.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from autotune.space.errors import MISSING, Path, SpaceError, dotted, unknown
from autotune.space.parameters import Constant, Parameter

if TYPE_CHECKING:
    from autotune.space.choices import Choice
    from autotune.space.space import Space

Configuration: TypeAlias = dict[str, Any]
"""One choice from a space, in plain JSON values. A parameter holds its value, a choice ``{"name":
option, **that option's parameters}``, a group a mapping."""


@dataclass(frozen=True)
class Slot:
    """One dimension of the unit cube. What has a single possible value takes none.

    Args:
        path: where its value stands in a configuration, dotted: ``optimizer.learning_rate``.
            Options of one choice may share a path.
        name: the same with the options on the way, ``optimizer.adamw.learning_rate``; unique.
        parameter: the parameter or choice; of a choice the option's name is encoded.
        conditions: (path of a choice, option it must have), outermost first.
        evaluation: affects only the evaluation of a trained model.
    """

    path: str
    name: str
    parameter: Any
    conditions: tuple[tuple[str, str], ...]
    evaluation: bool

    def value(self, configuration: Mapping[str, Any]) -> Any:
        """What the configuration holds here (of a choice the option's name); `MISSING` where
        the slot is inactive or absent."""
        for path, option in self.conditions:
            if _at(configuration, path) != option:
                return MISSING
        return _at(configuration, self.path)


def _at(configuration: Mapping[str, Any], path: str) -> Any:
    value: Any = configuration
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return MISSING
        value = value[part]
    return value.get("name", MISSING) if isinstance(value, Mapping) else value


class Leaf:
    """A parameter; `index` is None if it has one possible value."""

    __slots__ = ("fixed", "index", "key", "parameter")

    def __init__(self, key: str, parameter: Any, index: int | None) -> None:
        self.key, self.parameter, self.index = key, parameter, index
        self.fixed = parameter.default_value if index is None else None

    def encode(
        self, configuration: Mapping[str, Any], places: list[float], mask: list[bool]
    ) -> None:
        """Fill in the active places."""
        if self.index is not None:
            places[self.index] = self.parameter.encode(configuration[self.key])
            mask[self.index] = True

    def decode(self, places: list[float], configuration: Configuration) -> None:
        """Fill in the configuration."""
        configuration[self.key] = (
            self.fixed if self.index is None else self.parameter.decode(places[self.index])
        )

    def default(self, configuration: Configuration) -> None:
        """Fill in the default."""
        configuration[self.key] = self.parameter.default_value

    def read(self, value: Any, path: Path, strict: bool) -> Any:
        """The value in canonical form, checked; `strict` refuses an integer written 3.0."""
        canonical = self.parameter.canonical(value)
        if canonical is MISSING or (
            strict and isinstance(canonical, int) and isinstance(value, float)
        ):
            raise SpaceError(path, value, self.parameter.expected)
        return canonical


class Group:
    """Parameters under one key."""

    __slots__ = ("key", "nodes")

    def __init__(self, key: str, nodes: tuple[Node, ...]) -> None:
        self.key, self.nodes = key, nodes

    def encode(
        self, configuration: Mapping[str, Any], places: list[float], mask: list[bool]
    ) -> None:
        """As `Leaf.encode`."""
        inner = configuration[self.key]
        for node in self.nodes:
            node.encode(inner, places, mask)

    def decode(self, places: list[float], configuration: Configuration) -> None:
        """As `Leaf.decode`."""
        inner: Configuration = {}
        configuration[self.key] = inner
        for node in self.nodes:
            node.decode(places, inner)

    def default(self, configuration: Configuration) -> None:
        """As `Leaf.default`."""
        inner: Configuration = {}
        configuration[self.key] = inner
        for node in self.nodes:
            node.default(inner)

    def read(self, value: Any, path: Path, strict: bool) -> Any:
        """As `Leaf.read`."""
        return read(self.nodes, value, path, strict)


class Branch:
    """A choice; `index` is None if it has one option."""

    __slots__ = ("choice", "index", "key", "options")

    def __init__(
        self, key: str, choice: Choice, index: int | None, options: dict[str, tuple[Node, ...]]
    ) -> None:
        self.key, self.choice, self.index, self.options = key, choice, index, options

    def encode(
        self, configuration: Mapping[str, Any], places: list[float], mask: list[bool]
    ) -> None:
        """As `Leaf.encode`."""
        inner = configuration[self.key]
        name = inner["name"]
        if self.index is not None:
            places[self.index] = self.choice.encode(name)
            mask[self.index] = True
        for node in self.options[name]:
            node.encode(inner, places, mask)

    def decode(self, places: list[float], configuration: Configuration) -> None:
        """As `Leaf.decode`."""
        name = self.choice.decode(0.5 if self.index is None else places[self.index])
        inner: Configuration = {"name": name}
        configuration[self.key] = inner
        for node in self.options[name]:
            node.decode(places, inner)

    def default(self, configuration: Configuration) -> None:
        """As `Leaf.default`."""
        name = self.choice.default_value
        inner: Configuration = {"name": name}
        configuration[self.key] = inner
        for node in self.options[name]:
            node.default(inner)

    def read(self, value: Any, path: Path, strict: bool) -> Any:
        """As `Leaf.read`; not strict, an option's name alone stands for the option, and no
        name for the default option."""
        if isinstance(value, str) and not strict:
            value = {"name": value}
        if not isinstance(value, Mapping):
            raise SpaceError(path, value, f'{{"name": {self.choice.expected}, ...}}')
        if "name" not in value and strict:
            raise SpaceError((*path, "name"), MISSING, self.choice.expected)
        name = value.get("name", self.choice.default_value)
        if not isinstance(name, str) or name not in self.options:
            raise unknown((*path, "name"), name, self.options, self.choice.kind or "option")
        inner = {key: item for key, item in value.items() if key != "name"}
        return {"name": name, **read(self.options[name], inner, path, strict)}


Node: TypeAlias = Leaf | Group | Branch


def read(nodes: tuple[Node, ...], value: Any, path: Path, strict: bool) -> Configuration:
    """A configuration of `nodes` in canonical form and order.

    Args:
        strict: whether everything must be there, else what is missing takes its default.

    Raises:
        SpaceError: at the first key that is wrong.
    """
    if not isinstance(value, Mapping):
        raise SpaceError(path, value, "a mapping of parameters to values")
    known = [node.key for node in nodes]
    for key in value:
        if key not in known:
            raise unknown((*path, str(key)), key, known, "parameter")
    configuration: Configuration = {}
    for node in nodes:
        place = (*path, node.key)
        if node.key in value:
            configuration[node.key] = node.read(value[node.key], place, strict)
        elif not strict:
            node.default(configuration)
        elif isinstance(node, Leaf):
            raise SpaceError(place, MISSING, node.parameter.expected)
        else:
            raise SpaceError(place, MISSING, "a mapping")
    return configuration


class Compiler:
    """Numbers the slots of a resolved space and builds its nodes.

    After `compile`, `slots` is filled, `levels` says of every dotted path whether it affects
    only evaluation, and `at` what stands there (several, where options share a path).
    """

    def __init__(self) -> None:
        self.slots: list[Slot] = []
        self.levels: dict[str, bool] = {}
        self.at: dict[str, list[Any]] = {}

    def compile(
        self,
        space: Space,
        path: Path = (),
        name: Path = (),
        conditions: tuple[tuple[str, str], ...] = (),
        inside: bool | None = None,
    ) -> tuple[Node, ...]:
        """Nodes of `space`; `inside` is the level of the choice around it, if any."""
        nodes: list[Node] = []
        parameter: Any
        for key, parameter in space.parameters.items():
            # By what they have, since the classes themselves are defined on top of this module.
            here, called = (*path, key), (*name, key)
            if hasattr(parameter, "parameters"):
                inner = self.compile(parameter, here, called, conditions, inside)
                nodes.append(Group(key, inner))
                continue
            evaluation = self._level(parameter, here, inside)
            index = self._slot(parameter, here, called, conditions, evaluation)
            if not hasattr(parameter, "options"):
                nodes.append(Leaf(key, parameter, index))
                continue
            options = {}
            for option, inner_space in parameter.options.items():
                condition = ((dotted(here), option),) if index is not None else ()
                options[option] = self.compile(
                    inner_space, here, (*called, option), (*conditions, *condition), evaluation
                )
            nodes.append(Branch(key, parameter, index, options))
        return tuple(nodes)

    def _level(self, parameter: Parameter | Choice, path: Path, inside: bool | None) -> bool:
        marked = False if isinstance(parameter, Constant) else parameter.evaluation
        if inside is False and marked:
            raise SpaceError(
                (*path, "evaluation"),
                True,
                "no such mark inside a choice that affects training; mark the whole choice, or "
                "move this out of it",
            )
        self.levels[dotted(path)] = level = bool(marked or inside)
        return level

    def _slot(
        self,
        parameter: Parameter | Choice,
        path: Path,
        name: Path,
        conditions: tuple[tuple[str, str], ...],
        evaluation: bool,
    ) -> int | None:
        place = dotted(path)
        self.at.setdefault(place, []).append(parameter)
        if isinstance(parameter, Constant) or parameter.size == 1:
            return None
        self.slots.append(Slot(place, dotted(name), parameter, conditions, evaluation))
        return len(self.slots) - 1

"""The space: the conditional tree of what may be chosen, as one value.

>>> from autotune.space import Choice, Float, Integer, Space
>>> space = Space({
...     "width": Integer(16, 64, log=True),
...     "optimizer": Choice({
...         "sgd": Space({"learning_rate": Float(1e-3, 1.0, log=True, default=0.1)}),
...         "adamw": Space({"learning_rate": Float(1e-5, 1e-1, log=True, default=1e-3)}),
...     }, default="adamw"),
... })
>>> space.default()
{'width': 32, 'optimizer': {'name': 'adamw', 'learning_rate': 0.001}}
>>> [slot.name for slot in space.slots]
['width', 'optimizer', 'optimizer.sgd.learning_rate', 'optimizer.adamw.learning_rate']
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from autotune.space import forbidden as rules
from autotune.space.choices import Choice, Plugins
from autotune.space.codec import Compiler, Configuration, Node, Slot, read
from autotune.space.errors import SpaceError, listed
from autotune.space.levels import configuration_part, join, part_of_space
from autotune.space.moves import keep_unmoved, moved_place
from autotune.space.parameters import (
    Categorical,
    Constant,
    Float,
    Integer,
    Ordinal,
    Parameter,
    is_scalar,
)

# How often a random configuration is drawn before the clauses are said to leave nothing.
_DRAWS = 10_000
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*\Z")
_RESERVED = ("type", "plugins")


class Catalogue(Protocol):
    """What resolving "all plugins of a kind" needs to know (`autotune.plugins.discovery`)."""

    def options(self, kind: str) -> Mapping[str, Space]:
        """Space of every usable plugin of a kind, by name; the first is the default."""

    def why_not(self, kind: str, name: str) -> str | None:
        """Why a plugin is no option, for people; None if it is one."""

    def names(self, kind: str) -> list[str]:
        """All plugins of a kind, usable or not."""

    def get(self, kind: str, name: str) -> Any:
        """The plugin's class, even if it cannot work on the model; raises if it is broken."""


Entry: TypeAlias = "Parameter | Choice | Plugins | Space"


class Space:
    """Parameters, choices and groups by name, and the combinations that are forbidden.

    A value: never changed, compared by content. What is nested in it keeps no clauses of its
    own; they are taken over here, under their full paths.

    Args:
        parameters: by name a parameter, a `Choice`, `Plugins`, a group (a `Space` or mapping),
            or a scalar, which is a fixed value.
        forbidden: clauses; each maps dotted paths to conditions (a value, a list of values, a
            comparison like ``"> 0.1"``; a choice compares its option's name) and forbids what
            meets them all.
        across: clauses that look at the other level too; only `split` makes them.

    Raises:
        SpaceError: something is wrong, or the default is forbidden.
    """

    def __init__(
        self,
        parameters: Mapping[str, Any],
        forbidden: Sequence[rules.Clause] = (),
        across: Sequence[rules.Clause] = (),
    ) -> None:
        if not isinstance(parameters, Mapping):
            raise SpaceError("", parameters, "a mapping of parameters")
        self.parameters: dict[str, Entry] = {}
        clauses: list[dict[str, Any]] = []
        for name, value in parameters.items():
            if not isinstance(name, str) or not _NAME.match(name) or name in _RESERVED:
                raise SpaceError(
                    (str(name),),
                    name,
                    "a letter, then letters, digits, _ and -, and not 'type' or 'plugins'",
                    problem=f"{name!r} cannot name a parameter",
                )
            entry = _entry(name, value)
            self.parameters[name], inner = _without_clauses(name, entry)
            clauses += inner
        self.forbidden = (*rules.normalise(forbidden), *clauses)
        self.across = rules.normalise(across)
        self._rules = rules.compile_rules([*self.forbidden, *self.across])
        self.is_resolved = not any(_unresolved(entry) for entry in self.parameters.values())
        if self.is_resolved:
            self._compile()

    def _compile(self) -> None:
        compiler = Compiler()
        self._nodes: tuple[Node, ...] = compiler.compile(self)
        self._slots = tuple(compiler.slots)
        self._levels = compiler.levels
        for index, clause in enumerate(self.forbidden):
            for path, condition in clause.items():
                try:
                    rules.check_term(path, condition, compiler.at)
                except SpaceError as error:
                    raise error.under("forbidden", index) from None
        broken = self.forbids(self._default())
        if broken is not None:
            place = ("forbidden", [rule.clause for rule in self._rules].index(broken))
            raise SpaceError(
                place,
                broken,
                "other defaults or another clause",
                problem=f"the default configuration is forbidden by {broken}",
            )

    def _require_resolved(self) -> None:
        if not self.is_resolved:
            raise SpaceError(
                "", self, "Space.resolve(catalogue) first", problem='holds "all plugins of a kind"'
            )

    # --- as a value -------------------------------------------------------------------------

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Space):
            return NotImplemented
        return (
            list(self.parameters.items()) == list(other.parameters.items())
            and self.forbidden == other.forbidden
            and self.across == other.across
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        clauses = f", forbidden={list(self.forbidden)}" if self.forbidden else ""
        return f"Space({self.parameters!r}{clauses})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Space, (self.parameters, self.forbidden, self.across)

    def to_plain(self) -> dict[str, Any]:
        """JSON-ready values that `from_plain` reads back to an equal space:
        ``{"parameters": ..., "forbidden": [...]}``, as in a study file."""
        from autotune.space.plain import space_to_plain

        return space_to_plain(self)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Space:
        """Inverse of `to_plain`. Raises SpaceError at the first mistake."""
        from autotune.space.plain import space_from_plain

        return space_from_plain(plain)

    def to_yaml(self) -> str:
        """The same as YAML text."""
        from autotune.space.yaml_text import dump

        return dump(self.to_plain())

    @classmethod
    def from_yaml(cls, text: str) -> Space:
        """Inverse of `to_yaml`."""
        from autotune.space.yaml_text import parse

        return cls.from_plain(parse(text).value)

    # --- resolving --------------------------------------------------------------------------

    def resolve(self, catalogue: Catalogue) -> Space:
        """The space with every "all plugins of a kind" made a `Choice`. Plugins that cannot
        work (`Catalogue.why_not`) are left out, and clauses about them dropped.

        Raises:
            SpaceError: a name that is no plugin, an override that does not fit, or no plugin
                left to choose from (with the reasons).
        """
        from autotune.space.resolve import resolve

        return resolve(self, catalogue)

    # --- what is in it ----------------------------------------------------------------------

    @property
    def is_empty(self) -> bool:
        """Whether there are no parameters at all."""
        return not self.parameters

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The dimensions of the unit cube, in the order of `encode`."""
        self._require_resolved()
        return self._slots

    # --- configurations ---------------------------------------------------------------------

    def _default(self) -> Configuration:
        configuration: Configuration = {}
        for node in self._nodes:
            node.default(configuration)
        return configuration

    def default(self, given: Mapping[str, Any] | None = None) -> Configuration:
        """Every parameter's default. `given` is a configuration of the other level; if the two
        together are forbidden, the defaults with the first other option of one choice that is
        allowed, else a random allowed configuration."""
        self._require_resolved()
        configuration = self._default()
        if given is None or not self._rules or self._allows(configuration, given):
            return configuration
        for name, entry in self.parameters.items():
            for option in entry.options if isinstance(entry, Choice) else ():
                configuration = read(self._nodes, {name: option}, (), strict=False)
                if self._allows(configuration, given):
                    return configuration
        return self.sample(np.random.default_rng(0), given=given)

    def sample(
        self,
        rng: np.random.Generator,
        prior: bool = False,
        given: Mapping[str, Any] | None = None,
    ) -> Configuration:
        """A random allowed configuration: uniform on the unit cube, or from the priors.

        Args:
            rng: the only source of randomness.
            prior: follow the priors of those parameters that have one.
            given: a configuration of the other level that it must go together with.

        Raises:
            SpaceError: the clauses leave nothing, as far as 10 000 draws tell.
        """
        self._require_resolved()
        met: list[rules.Clause] = []
        for _ in range(_DRAWS):
            places = rng.random(len(self._slots)).tolist()
            if prior:
                places = [
                    slot.parameter.warp(place)
                    for slot, place in zip(self._slots, places, strict=True)
                ]
            configuration = self._decode(places)
            if not self._rules:
                return configuration
            clause = self.forbids(configuration if given is None else join(given, configuration))
            if clause is None:
                return configuration
            if clause not in met:
                met.append(clause)
        raise SpaceError(
            "forbidden",
            met,
            "clauses that leave something",
            problem=f"no allowed configuration in {_DRAWS} draws; they met {listed(met)}",
        )

    def neighbour(
        self, configuration: Mapping[str, Any], rng: np.random.Generator
    ) -> Configuration:
        """An allowed configuration one local move away: another option or value of a
        categorical, a Gaussian step (0.2 of the unit axis, as in SMAC) of a number, at least
        one value of an ordinal. Parameters that a new option brings take their defaults. The
        configuration itself, if no move is allowed."""
        encoded, mask = self.encode(configuration)
        original = np.where(mask, encoded, self._starts).tolist()
        unmoved = self._decode(original)
        active = np.flatnonzero(mask)
        for _ in range(100 if len(active) else 0):
            places = list(original)
            index = int(rng.choice(active))
            places[index] = moved_place(self._slots[index].parameter, places[index], rng)
            if places[index] == original[index]:
                continue
            moved = self._decode(places)
            keep_unmoved(self._nodes, moved, unmoved, configuration)
            if self.forbids(moved) is None:
                return moved
        return read(self._nodes, _known_part(self._nodes, configuration), (), strict=False)

    @cached_property
    def _starts(self) -> NDArray[np.float64]:
        return np.array([s.parameter.encode(s.parameter.default_value) for s in self._slots])

    def complete(self, partial: Mapping[str, Any]) -> Configuration:
        """A part of a configuration filled up with defaults, in canonical form and order. A
        choice may be given as its option's name alone.

        Raises:
            SpaceError: an unknown key, a value that is not allowed, or a forbidden whole.
        """
        self._require_resolved()
        configuration = read(self._nodes, partial, (), strict=False)
        self._check_allowed(configuration)
        return configuration

    def validate(self, configuration: Mapping[str, Any]) -> None:
        """Raises SpaceError unless the configuration has exactly the active parameters, with
        allowed values, and is not forbidden."""
        self._require_resolved()
        read(self._nodes, configuration, (), strict=True)
        self._check_allowed(configuration)

    def _check_allowed(self, configuration: Mapping[str, Any]) -> None:
        clause = self.forbids(configuration)
        if clause is not None:
            path = next(iter(clause))
            raise SpaceError(
                tuple(path.split(".")),
                configuration,
                "an allowed combination",
                problem=f"this combination is forbidden by {dict(clause)}",
            )

    def forbids(self, configuration: Mapping[str, Any]) -> rules.Clause | None:
        """The first clause that forbids a configuration, or None. Conditions on what is not in
        the configuration are false, so half a configuration can be asked about; an evaluation
        space is asked about ``join(training, evaluation)``."""
        for rule in self._rules:
            if rule.forbids(configuration):
                return rule.clause
        return None

    def _allows(self, configuration: Configuration, given: Mapping[str, Any]) -> bool:
        return self.forbids(join(given, configuration)) is None

    # --- the unit cube ----------------------------------------------------------------------

    def encode(
        self, configuration: Mapping[str, Any]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """The configuration's place in the unit cube, shape (slots,), and which entries are
        active, same shape; the others are 0. Keys that are not of this space are ignored.

        Raises:
            SpaceError: a parameter is missing or its value not allowed.
        """
        self._require_resolved()
        places = [0.0] * len(self._slots)
        mask = [False] * len(self._slots)
        try:
            for node in self._nodes:
                node.encode(configuration, places, mask)
            inside = not places or (min(places) >= 0.0 and max(places) <= 1.0)
        except (KeyError, TypeError, ValueError, OverflowError):
            inside = False
        if not inside:
            read(self._nodes, _known_part(self._nodes, configuration), (), strict=True)
        return np.array(places, dtype=np.float64), np.array(mask, dtype=np.bool_)

    def decode(self, values: NDArray[np.float64] | Sequence[float]) -> Configuration:
        """The configuration at a place in the unit cube, shape (slots,). Inactive entries do
        not matter; entries beyond [0, 1] count as its ends. It may be forbidden: ask
        `forbids`."""
        self._require_resolved()
        places = np.asarray(values, dtype=np.float64)
        if places.shape != (len(self._slots),):
            raise SpaceError("", places.shape, f"an array of shape ({len(self._slots)},)")
        if np.isnan(places).any():
            raise SpaceError("", "NaN", "numbers from 0 to 1")
        return self._decode(np.clip(places, 0.0, 1.0).tolist())

    def _decode(self, places: list[float]) -> Configuration:
        configuration: Configuration = {}
        for node in self._nodes:
            node.decode(places, configuration)
        return configuration

    # --- the two levels ---------------------------------------------------------------------

    def split(self) -> tuple[Space, Space]:
        """The space of what affects training, and of what affects only evaluation. Clauses
        about both stand `across` in the second, which is asked about the two together:
        ``evaluation_space.forbids(join(training, evaluation))``."""
        self._require_resolved()
        levels = [{self._levels[path] for path in clause} for clause in self.forbidden]
        parts: list[list[rules.Clause]] = [[], [], []]
        for clause, found in zip(self.forbidden, levels, strict=True):
            parts[2 if len(found) == 2 else int(True in found)].append(clause)
        training, evaluation, across = parts
        return Space(part_of_space(self, False), training), Space(
            part_of_space(self, True), evaluation, across
        )

    def split_configuration(
        self, configuration: Mapping[str, Any]
    ) -> tuple[Configuration, Configuration]:
        """A whole configuration as its training and its evaluation part."""
        return (
            configuration_part(self, configuration, False),
            configuration_part(self, configuration, True),
        )

    @staticmethod
    def join(training: Mapping[str, Any], evaluation: Mapping[str, Any]) -> Configuration:
        """Inverse of `split_configuration`, up to the order of keys."""
        return join(training, evaluation)


def _entry(name: str, value: Any) -> Entry:
    if isinstance(value, Float | Integer | Categorical | Ordinal | Constant | Choice | Plugins):
        return value
    if isinstance(value, Space):
        return value
    try:
        if isinstance(value, Mapping):
            return Space(value)
        if is_scalar(value):
            return Constant(value)
    except SpaceError as error:
        raise error.under(name) from None
    raise SpaceError(name, value, "a parameter, a choice, a group, or a fixed value")


def _without_clauses(name: str, entry: Entry) -> tuple[Entry, list[dict[str, Any]]]:
    """An entry whose nested spaces hold no clauses, and these clauses as its parent's."""
    if isinstance(entry, Space):
        if not entry.forbidden:
            return entry, []
        return Space(entry.parameters), [rules.under(name, c, {}) for c in entry.forbidden]
    if not isinstance(entry, Choice) or not any(o.forbidden for o in entry.options.values()):
        return entry, []
    clauses = [
        rules.under(name, clause, {name: option})
        for option, space in entry.options.items()
        for clause in space.forbidden
    ]
    bare = {option: Space(space.parameters) for option, space in entry.options.items()}
    return replace(entry, options=bare), clauses


def _unresolved(entry: Entry) -> bool:
    if isinstance(entry, Plugins):
        return True
    if isinstance(entry, Space):
        return not entry.is_resolved
    return isinstance(entry, Choice) and any(not o.is_resolved for o in entry.options.values())


def _known_part(nodes: Iterable[Node], configuration: Any) -> Any:
    if not isinstance(configuration, Mapping):
        return configuration
    keys = {node.key for node in nodes}
    return {key: value for key, value in configuration.items() if key in keys}

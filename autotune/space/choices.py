"""Choices between named options: written out, or "all plugins of a kind"."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from autotune.space.errors import MISSING, SpaceError, listed, unknown
from autotune.space.parameters import Prior, as_number, weighted_bin

if TYPE_CHECKING:
    from autotune.space.space import Space

_OPTION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:+-]*\Z")


@dataclass(frozen=True)
class Choice:
    """One of several named options, each with parameters of its own, which exist only while it
    is chosen. Options may hold choices, to any depth.

    Args:
        options: the parameters of each option; ``{}`` if it has none.
        default: an option; else the prior's centre, else the first.
        prior: a belief about the best option.
        evaluation: the choice affects only the evaluation of a trained model.
        kind: the plugin kind, if the options are plugins.
    """

    options: Mapping[str, Space]
    default: str | None = None
    prior: Prior | None = None
    evaluation: bool = False
    kind: str | None = None
    _index: dict[str, int] = field(init=False, repr=False, compare=False)
    _names: tuple[str, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.options, Mapping) or not self.options:
            raise SpaceError("options", self.options, "a mapping with at least one option")
        # A space is made of choices and a choice of spaces.
        from autotune.space.space import Space

        options = {}
        for name, option in self.options.items():
            if not isinstance(name, str) or not _OPTION.match(name):
                raise SpaceError(
                    ("options", str(name)), name, "a name without spaces", problem="bad name"
                )
            try:
                options[name] = option if isinstance(option, Space) else Space(option)
            except SpaceError as error:
                raise error.under("options", name) from None
            if "name" in options[name].parameters:
                raise SpaceError(
                    ("options", name, "name"),
                    "name",
                    "another name; this one holds the chosen option",
                    problem="'name' is reserved inside options",
                )
        object.__setattr__(self, "options", options)
        object.__setattr__(self, "_index", {name: i for i, name in enumerate(options)})
        object.__setattr__(self, "_names", tuple(options))
        if not isinstance(self.evaluation, bool):
            raise SpaceError("evaluation", self.evaluation, "true or false")
        self._check("default", self.default)
        if self.prior is not None:
            self._check(("prior", "center"), self.prior.center)

    def _check(self, key: str | tuple[str, ...], name: Any) -> None:
        if name is not None and (not isinstance(name, str) or name not in self._index):
            path = (key,) if isinstance(key, str) else key
            raise unknown(path, name, self.options, "option")

    @property
    def expected(self) -> str:
        """What may be chosen, for people."""
        return f"one of {listed(self.options)}"

    @property
    def size(self) -> int:
        """How many options there are."""
        return len(self.options)

    @property
    def default_value(self) -> str:
        """The default option, stated or derived."""
        if self.default is not None:
            return self.default
        return next(iter(self.options)) if self.prior is None else self.prior.center

    def encode(self, name: str) -> float:
        """The middle of the option's bin in [0, 1]."""
        return (self._index[name] + 0.5) / len(self._index)

    def decode(self, place: float) -> str:
        """The option whose bin holds a place in [0, 1]."""
        return self._names[min(int(place * len(self._names)), len(self._names) - 1)]

    def warp(self, uniform: float) -> float:
        """The place at quantile `uniform` of the prior."""
        if self.prior is None:
            return uniform
        center = self._index[self.prior.center]
        return weighted_bin(uniform, self.size, center, self.prior.confidence)


@dataclass(frozen=True)
class Plugins:
    """All plugins of a kind: a choice that is made from a catalogue, by `Space.resolve`.

    Args:
        kind: e.g. ``optimizer``.
        include: only these, if given.
        exclude: not these.
        override: by plugin, changes to its own parameters: a mapping of arguments (``low``,
            ``high``, ``log``, ``step``, ``default``, ``choices``, ``values``, ``prior``) or a
            fixed value.
        default: a plugin; else the first of the catalogue.
        evaluation: affects only evaluation; by default true of the kind ``tta`` alone.
    """

    kind: str
    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    override: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    default: str | None = None
    evaluation: bool | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str) or not self.kind:
            raise SpaceError("plugins", self.kind, "a plugin kind")
        if self.include is not None:
            object.__setattr__(self, "include", self._names("include", self.include))
            if not self.include:
                raise SpaceError("include", [], "at least one plugin; without it, all")
        object.__setattr__(self, "exclude", self._names("exclude", self.exclude))
        if self.default is not None and not isinstance(self.default, str):
            raise SpaceError("default", self.default, "a plugin's name")
        if self.evaluation is not None and not isinstance(self.evaluation, bool):
            raise SpaceError("evaluation", self.evaluation, "true or false")
        if not isinstance(self.override, Mapping):
            raise SpaceError("override", self.override, "a mapping of plugins to changes")
        for name, changes in self.override.items():
            if not isinstance(changes, Mapping):
                raise SpaceError(
                    ("override", str(name)), changes, "a mapping of parameters to changes"
                )

    @staticmethod
    def _names(key: str, names: Any) -> tuple[str, ...]:
        if isinstance(names, str) or not isinstance(names, Sequence):
            raise SpaceError(key, names, "a list of plugin names")
        for index, name in enumerate(names):
            if not isinstance(name, str):
                raise SpaceError((key, index), name, "a plugin's name")
            if name in names[:index]:
                raise SpaceError((key, index), name, "every plugin once")
        return tuple(names)

    @property
    def evaluation_only(self) -> bool:
        """Whether it affects only evaluation, stated or by kind."""
        return self.kind == "tta" if self.evaluation is None else self.evaluation


def as_prior(value: Any, of_number: bool = False) -> Prior | None:
    """A prior from ``{center: ..., confidence: ...}``."""
    if value is None or isinstance(value, Prior):
        return value
    if not isinstance(value, Mapping):
        raise SpaceError("prior", value, "a mapping with center and confidence")
    for key in value:
        if key not in ("center", "confidence"):
            raise unknown(("prior", str(key)), key, ("center", "confidence"), "key")
    if "center" not in value:
        raise SpaceError("prior", MISSING, "", problem="a prior needs the key 'center'")
    center = as_number(value["center"]) if of_number else value["center"]
    return Prior(center, value.get("confidence", "medium"))

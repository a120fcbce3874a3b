"""Spaces as JSON-ready values and back, in the form of the `space` key of study files.

A mapping with ``type`` is a parameter or choice, one with ``plugins`` all plugins of a kind, any
other mapping a group; a scalar is a fixed value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

from autotune.space.choices import Choice, Plugins, as_prior
from autotune.space.errors import MISSING, Path, SpaceError, unknown
from autotune.space.parameters import (
    Categorical,
    Constant,
    Float,
    Integer,
    Ordinal,
    Prior,
    as_number,
    is_scalar,
)
from autotune.space.space import Entry, Space

KEYS: dict[str, tuple[str, ...]] = {
    "float": ("low", "high", "log", "step", "default", "prior", "evaluation"),
    "integer": ("low", "high", "log", "step", "default", "prior", "evaluation"),
    "categorical": ("choices", "default", "prior", "evaluation"),
    "ordinal": ("values", "default", "prior", "evaluation"),
    "choice": ("options", "default", "prior", "evaluation", "kind"),
    "constant": ("value",),
}
"""The keys that each ``type`` may have beside it; the first ones without a default are required."""

PLUGINS_KEYS = ("plugins", "include", "exclude", "override", "default", "evaluation")

_REQUIRED = {
    "float": ("low", "high"),
    "integer": ("low", "high"),
    "categorical": ("choices",),
    "ordinal": ("values",),
    "choice": ("options",),
    "constant": ("value",),
}
_CLASSES: dict[str, Callable[..., Entry]] = {
    "float": Float,
    "integer": Integer,
    "categorical": Categorical,
    "ordinal": Ordinal,
    "constant": Constant,
}
_NUMBERS = ("low", "high", "step", "default")

# --- out ------------------------------------------------------------------------------------


def space_to_plain(space: Space) -> dict[str, Any]:
    """As `Space.to_plain`."""
    plain: dict[str, Any] = {"parameters": parameters_to_plain(space)}
    for key in ("forbidden", "across"):
        if clauses := getattr(space, key):
            plain[key] = [dict(clause) for clause in clauses]
    return plain


def parameters_to_plain(space: Space) -> dict[str, Any]:
    """What stands under the ``space`` key of a study file."""
    return {name: _entry_to_plain(name, entry) for name, entry in space.parameters.items()}


def _entry_to_plain(name: str, entry: Entry) -> Any:
    match entry:
        case Space():
            return parameters_to_plain(entry)
        case Constant() if entry.value is None or _misspelt_marker(name, entry.value):
            # Bare they would read as something forgotten or misspelt.
            return {"type": "constant", "value": entry.value}
        case Constant():
            return entry.value
        case Plugins():
            return _plugins_to_plain(entry)
    kind = type(entry).__name__.lower()
    plain: dict[str, Any] = {"type": kind}
    for key in KEYS[kind]:
        value = getattr(entry, key)
        if not _stated(entry, key, value):
            continue
        if isinstance(value, Mapping):
            value = {name: parameters_to_plain(option) for name, option in value.items()}
        plain[key] = _plain_copy(value)
    return plain


def _stated(entry: Entry, key: str, value: Any) -> bool:
    if key != "default":
        return value is not None and value is not False
    # A categorical may have null or false as its default.
    return value is not (MISSING if isinstance(entry, Categorical) else None)


def _plugins_to_plain(entry: Plugins) -> dict[str, Any]:
    plain: dict[str, Any] = {"plugins": entry.kind}
    if entry.include is not None:
        plain["include"] = list(entry.include)
    if entry.exclude:
        plain["exclude"] = list(entry.exclude)
    if entry.override:
        plain["override"] = _plain_copy(entry.override)
    if entry.default is not None:
        plain["default"] = entry.default
    if entry.evaluation is not None:
        plain["evaluation"] = entry.evaluation
    return plain


def _plain_copy(value: Any) -> Any:
    if isinstance(value, Prior):
        return {"center": value.center, "confidence": value.confidence}
    if isinstance(value, Mapping):
        return {key: _plain_copy(item) for key, item in value.items()}
    return [_plain_copy(item) for item in value] if isinstance(value, list | tuple) else value


# --- in -------------------------------------------------------------------------------------


def space_from_plain(plain: Mapping[str, Any]) -> Space:
    """As `Space.from_plain`."""
    if not isinstance(plain, Mapping):
        raise SpaceError("", plain, "a mapping with parameters")
    for key in plain:
        if key not in ("parameters", "forbidden", "across"):
            raise unknown((str(key),), key, ("parameters", "forbidden", "across"), "key")
    if "parameters" not in plain:
        raise SpaceError("parameters", MISSING, "a mapping of parameters")
    problems: list[SpaceError] = []
    try:
        entries = read_parameters(plain["parameters"], (), problems)
        if not problems:
            return Space(entries, plain.get("forbidden", ()), plain.get("across", ()))
    except SpaceError as error:
        # Mistakes in clauses already say where: forbidden[0]...
        outer = error.path[:1] in (("forbidden",), ("across",))
        raise (error if outer else error.under("parameters")) from None
    raise problems[0].under("parameters")


def read_parameters(plain: Any, path: Path, problems: list[SpaceError]) -> dict[str, Entry]:
    """Entries of a group. Every mistake is appended to `problems`, with its path."""
    if not isinstance(plain, Mapping):
        problems.append(SpaceError(path, plain, "a mapping of parameters"))
        return {}
    for name, value in plain.items():
        if (meant := _misspelt_marker(name, value)) is not None:
            expected = (
                "type or plugins; a fixed value of that name is written "
                "{type: constant, value: ...}"
            )
            problem = f"unknown key {name!r}"
            problems.append(SpaceError((*path, str(name)), value, expected, meant, problem))
            return {}
    entries = {}
    for name, definition in plain.items():
        place = (*path, str(name))
        before = len(problems)
        try:
            entry = _read_entry(definition, place, problems)
            if len(problems) == before:
                # Space checks the name and what else a single entry can have wrong.
                Space({name: entry})
                entries[name] = entry
        except SpaceError as error:
            nested = error.path[:1] == (name,)
            problems.append(error.under(*path) if nested else error)
    return entries


def _read_entry(plain: Any, path: Path, problems: list[SpaceError]) -> Any:
    if isinstance(plain, Mapping):
        if "type" in plain:
            return _read_typed(plain, path, problems)
        if "plugins" in plain:
            return _read_plugins(plain, path)
        return Space(read_parameters(plain, path, problems))
    if plain is None or not is_scalar(plain):
        raise SpaceError(path, plain, "a parameter, a choice, a group, or a fixed value")
    return Constant(plain)


def _misspelt_marker(name: Any, value: Any) -> str | None:
    """``type`` or ``plugins`` if a fixed value looks like one of them misspelt, which would
    quietly make a group of what was meant as a parameter."""
    if not isinstance(value, str):
        return None
    markers = ["plugins", *(["type"] if value in KEYS else [])]
    return next(iter(get_close_matches(str(name), markers, n=1, cutoff=0.75)), None)


def _read_typed(plain: Mapping[str, Any], path: Path, problems: list[SpaceError]) -> Any:
    kind = plain["type"]
    if not isinstance(kind, str) or kind not in KEYS:
        raise unknown((*path, "type"), kind, KEYS, "type")
    for key in plain:
        if key != "type" and key not in KEYS[kind]:
            raise unknown((*path, str(key)), key, KEYS[kind], "key")
    for key in _REQUIRED[kind]:
        if key not in plain:
            raise SpaceError(path, MISSING, "", problem=f"a {kind} needs the key {key!r}")
    arguments = {key: value for key, value in plain.items() if key != "type"}
    try:
        if kind in ("float", "integer"):
            arguments.update(
                {key: as_number(arguments[key]) for key in _NUMBERS if key in arguments}
            )
        if "prior" in arguments:
            arguments["prior"] = as_prior(arguments["prior"], kind in ("float", "integer"))
        if kind != "choice":
            return _CLASSES[kind](**arguments)
    except SpaceError as error:
        raise error.under(*path) from None
    return _read_choice(arguments, path, problems)


def _read_choice(arguments: dict[str, Any], path: Path, problems: list[SpaceError]) -> Any:
    options = arguments["options"]
    if not isinstance(options, Mapping) or not options:
        raise SpaceError((*path, "options"), options, "a mapping with at least one option")
    before = len(problems)
    spaces = {}
    for name, option in options.items():
        # An option without parameters may be left blank.
        inner = {} if option is None else option
        spaces[name] = Space(read_parameters(inner, (*path, "options", str(name)), problems))
    if len(problems) > before:
        return None
    try:
        return Choice(**{**arguments, "options": spaces})
    except SpaceError as error:
        raise error.under(*path) from None


def _read_plugins(plain: Mapping[str, Any], path: Path) -> Plugins:
    for key in plain:
        if key not in PLUGINS_KEYS:
            raise unknown((*path, str(key)), key, PLUGINS_KEYS, "key")
    arguments = {key: value for key, value in plain.items() if key != "plugins"}
    try:
        return Plugins(plain["plugins"], **arguments)
    except SpaceError as error:
        raise error.under(*path) from None

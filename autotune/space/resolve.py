"""Makes "all plugins of a kind" a choice, from a catalogue, with the user's overrides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from autotune.space import forbidden as rules
from autotune.space.choices import Choice, Plugins, as_prior
from autotune.space.codec import Compiler
from autotune.space.errors import MISSING, Path, SpaceError, dotted, listed, shown, unknown
from autotune.space.parameters import (
    Categorical,
    Constant,
    Float,
    Integer,
    Ordinal,
    Parameter,
    Prior,
    as_number,
    is_number,
    is_scalar,
)
from autotune.space.space import Catalogue, Entry, Space

_ARGUMENTS: dict[type, tuple[str, ...]] = {
    Float: ("low", "high", "log", "step", "default", "prior"),
    Integer: ("low", "high", "log", "step", "default", "prior"),
    Categorical: ("choices", "default", "prior"),
    Ordinal: ("values", "default", "prior"),
}


class _Resolver:
    """Resolves one space; `dormant` collects the paths and option names that exist but are not
    in this resolved space, so that clauses about them are dropped and not taken for misspelt."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue
        self.dormant: dict[str, set[str]] = {}

    def space(self, space: Space, path: Path, place: Path) -> Space:
        """`space` resolved; `path` leads to it in a configuration, `place` in the file."""
        parameters: dict[str, Entry] = {}
        for name, entry in space.parameters.items():
            parameters[name] = self._entry(entry, (*path, name), (*place, name))
        return Space(parameters)

    def _entry(self, entry: Entry, path: Path, place: Path) -> Entry:
        if isinstance(entry, Space):
            return self.space(entry, path, place)
        if isinstance(entry, Choice):
            options = {
                name: self.space(option, path, (*place, "options", name))
                for name, option in entry.options.items()
            }
            return replace(entry, options=options)
        return self._plugins(entry, path, place) if isinstance(entry, Plugins) else entry

    def _plugins(self, entry: Plugins, path: Path, place: Path) -> Choice:
        usable = self.catalogue.options(entry.kind)
        for key, names in (("include", entry.include or ()), ("exclude", entry.exclude)):
            for index, name in enumerate(names):
                self._require(entry.kind, name, usable, (*place, key, index), key == "include")
        for name in entry.override:
            self._require(entry.kind, name, usable, (*place, "override", name), True)
        if entry.default is not None:
            self._require(entry.kind, entry.default, usable, (*place, "default"), True)
        wanted = [
            name
            for name in (usable if entry.include is None else entry.include)
            if name not in entry.exclude
        ]
        for name in entry.override:
            if name not in wanted and name in usable:
                raise SpaceError(
                    (*place, "override", name),
                    name,
                    f"one of {listed(wanted)}",
                    problem=f"{name!r} is not among the options, so nothing can be overridden",
                )
        options = {}
        for name in wanted:
            if name in usable:
                changes = entry.override.get(name, {})
                options[name] = override(usable[name], changes, (*place, "override", name))
        if not options:
            raise SpaceError(place, entry.kind, "", problem=self._why_none(entry, wanted))
        if entry.default is not None and entry.default not in options:
            reason = self.catalogue.why_not(entry.kind, entry.default)
            raise SpaceError(
                (*place, "default"),
                entry.default,
                f"one of {listed(options)}",
                problem=f"{entry.default!r} is not among the options"
                + (f": {reason}" if reason else ""),
            )
        self._note_absent(entry.kind, set(options), usable, path)
        return Choice(
            options,
            default=next(iter(options)) if entry.default is None else entry.default,
            evaluation=entry.evaluation_only,
            kind=entry.kind,
        )

    def _require(
        self, kind: str, name: str, usable: Mapping[str, Space], place: Path, working: bool
    ) -> None:
        """Whether a plugin that the user names exists and, if `working`, is not broken. One
        that cannot work with the model is no mistake; it is left out."""
        if name in usable:
            return
        known = self.catalogue.names(kind)
        if name not in known:
            raise unknown(place, name, known, kind)
        if working:
            try:
                self.catalogue.get(kind, name)
            except Exception as error:
                raise SpaceError(place, name, "", problem=str(error)) from error

    def _why_none(self, entry: Plugins, wanted: Iterable[str]) -> str:
        names = list(wanted) or self.catalogue.names(entry.kind)
        reasons = [
            f"{name}: {self.catalogue.why_not(entry.kind, name) or 'excluded'}" for name in names
        ]
        return f"no {entry.kind} is left to choose from ({'; '.join(reasons) or 'none installed'})"

    def _note_absent(
        self, kind: str, present: set[str], usable: Mapping[str, Space], path: Path
    ) -> None:
        place = dotted(path)
        for name in (*usable, *self.catalogue.names(kind)):
            if name in present:
                continue
            self.dormant.setdefault(place, set()).add(name)
            try:
                space = usable[name] if name in usable else self.catalogue.get(kind, name).space()
            except Exception:
                # Broken: it has no parameters that a clause could name.
                continue
            for inner in _paths(space, path):
                self.dormant.setdefault(inner, set())

    def clauses(self, space: Space, resolved: Space) -> list[tuple[int, dict[str, Any]]]:
        """The clauses of `space` that can still be met in `resolved`, with their numbers."""
        present = set(_paths(resolved, ()))
        kept = []
        for index, clause in enumerate(space.forbidden):
            mended: dict[str, Any] | None = dict(clause)
            for path, condition in clause.items():
                if path not in present and path in self.dormant:
                    mended = None
                    break
                left = _without(condition, self.dormant.get(path, set()))
                if left is MISSING:
                    mended = None
                    break
                assert mended is not None
                mended[path] = left
            if mended is not None:
                kept.append((index, mended))
        return kept


def resolve(space: Space, catalogue: Catalogue) -> Space:
    """As `Space.resolve`."""
    if space.is_resolved:
        return space
    resolver = _Resolver(catalogue)
    resolved = resolver.space(space, (), ())
    numbers, clauses = [], []
    for number, clause in resolver.clauses(space, resolved):
        numbers.append(number)
        clauses.append(clause)
    try:
        return Space(resolved.parameters, [*clauses, *resolved.forbidden], space.across)
    except SpaceError as error:
        index = error.path[1] if error.path[:1] == ("forbidden",) and error.path[1:] else None
        if not isinstance(index, int) or index >= len(numbers):
            raise
        # Where the user wrote it, before clauses about absent plugins were dropped.
        place = ("forbidden", numbers[index], *error.path[2:])
        raise SpaceError(place, error.value, error.expected, error.nearest, error.problem) from None


def _paths(space: Space, path: Path) -> list[str]:
    found = []
    for name, entry in space.parameters.items():
        here = (*path, name)
        if isinstance(entry, Space):
            found += _paths(entry, here)
            continue
        found.append(dotted(here))
        if isinstance(entry, Choice):
            for option in entry.options.values():
                found += _paths(option, here)
    return found


def _without(condition: Any, absent: set[str]) -> Any:
    if isinstance(condition, list):
        left = [value for value in condition if value not in absent]
        return left or MISSING
    return MISSING if isinstance(condition, str) and condition in absent else condition


# --- overrides ------------------------------------------------------------------------------


def override(space: Space, changes: Mapping[str, Any], place: Path) -> Space:
    """A plugin's space with the user's changes. `place` leads to the changes in the file."""
    parameters = dict(space.parameters)
    for name, change in changes.items():
        if name not in parameters:
            raise unknown((*place, str(name)), name, parameters, "parameter")
        try:
            parameters[name] = _overridden(parameters[name], change)
        except SpaceError as error:
            raise error.under(*place, name) from None
    try:
        return Space(parameters, _still_possible(space.forbidden, Space(parameters)))
    except SpaceError as error:
        raise error.under(*place) from None


def _still_possible(clauses: Iterable[rules.Clause], space: Space) -> list[dict[str, Any]]:
    """A plugin's own clauses without the values that its overridden space no longer has."""
    compiler = Compiler()
    compiler.compile(space)

    def possible(path: str, condition: Any) -> bool:
        try:
            rules.check_term(path, condition, compiler.at)
        except SpaceError:
            return False
        return True

    kept = []
    for clause in clauses:
        left = {
            path: [value for value in condition if possible(path, [value])]
            if isinstance(condition, list)
            else condition
            for path, condition in clause.items()
        }
        if all(condition != [] and possible(path, condition) for path, condition in left.items()):
            kept.append(left)
    return kept


def _overridden(entry: Entry, change: Any) -> Entry:
    if isinstance(entry, Space):
        if not isinstance(change, Mapping):
            raise SpaceError("", change, "a mapping of parameters to changes")
        return override(entry, change, ())
    if isinstance(entry, Choice):
        return _overridden_choice(entry, change)
    if isinstance(entry, Plugins):
        raise SpaceError("", change, "no override of a plugin choice inside a plugin")
    if is_scalar(change):
        return _fixed(entry, change)
    arguments = _ARGUMENTS.get(type(entry), ())
    if not isinstance(change, Mapping) or not arguments:
        words = f"or a mapping with {listed(arguments)}" if arguments else ""
        raise SpaceError("", change, f"a fixed value {words}".strip())
    for key in change:
        if key not in arguments:
            raise unknown((str(key),), key, arguments, "key")
    return _changed(entry, dict(change))


def _fixed(entry: Parameter, value: Any) -> Constant:
    if isinstance(entry, Float | Integer):
        # The range is what is searched; a user may well fix a value beyond it.
        number = as_number(value)
        whole = isinstance(entry, Integer)
        if not is_number(number) or (whole and number != int(number)):
            raise SpaceError("", value, "an integer" if whole else "a number")
        return Constant(int(number) if whole else float(number))
    if (canonical := entry.canonical(value)) is MISSING:
        raise SpaceError("", value, entry.expected)
    return Constant(canonical)


def _changed(entry: Any, change: dict[str, Any]) -> Parameter:
    """The parameter with other arguments. A default or prior that it had and that the new range
    does not hold gives way: of a number to the nearest end, else to the derived default."""
    for key in ("low", "high", "step", "default"):
        if key in change and isinstance(entry, Float | Integer):
            change[key] = as_number(change[key])
    if "prior" in change:
        change["prior"] = as_prior(change["prior"])
    own_default, own_prior = entry.default, entry.prior
    bare = Categorical if isinstance(entry, Categorical) else None
    cleared = replace(entry, default=MISSING if bare else None, prior=None)
    changed = replace(cleared, **change)
    again: dict[str, Any] = {}
    if "default" not in change and own_default is not None and own_default is not MISSING:
        again["default"] = _moved_into(changed, own_default)
    if "prior" not in change and own_prior is not None:
        center = _moved_into(changed, own_prior.center)
        again["prior"] = None if center is MISSING else Prior(center, own_prior.confidence)
    if again.get("default") is MISSING and not bare:
        again["default"] = None
    result: Parameter = replace(changed, **again)
    return result


def _moved_into(parameter: Any, value: Any) -> Any:
    if parameter.canonical(value) is not MISSING:
        return value
    if isinstance(parameter, Float | Integer) and is_number(value):
        inside = min(max(value, parameter.low), parameter.high)
        return parameter.decode(parameter.encode(inside))
    return MISSING


def _overridden_choice(choice: Choice, change: Any) -> Choice:
    if isinstance(change, str):
        if change not in choice.options:
            raise unknown((), change, choice.options, "option")
        return replace(choice, options={change: choice.options[change]}, default=change, prior=None)
    if not isinstance(change, Mapping):
        raise SpaceError("", shown(change), "an option, or a mapping with default, options, prior")
    known = ("default", "options", "prior")
    options = dict(choice.options)
    for key in change:
        if key not in known:
            raise unknown((str(key),), key, known, "key")
    changes = change.get("options", {})
    if not isinstance(changes, Mapping):
        raise SpaceError("options", changes, "a mapping of options to changes")
    for name, inner in changes.items():
        if name not in options:
            raise unknown(("options", str(name)), name, options, "option")
        if not isinstance(inner, Mapping):
            raise SpaceError(("options", name), inner, "a mapping of parameters to changes")
        options[name] = override(options[name], inner, ("options", name))
    return replace(
        choice,
        options=options,
        default=change.get("default", choice.default),
        prior=as_prior(change["prior"]) if "prior" in change else choice.prior,
    )

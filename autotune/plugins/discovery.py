"""Finds plugins by entry points: from metadata alone until one is used, each on its own.

What is installed is read without importing anything. A plugin is imported when somebody asks
for it; whatever goes wrong then (it raises, it speaks another `api_version`, it is no plugin of
its kind) is kept as its `Failure` and hurts only those who name it.

Where two distributions offer the same name, ours keeps the bare name and strangers are used as
``distribution:name``. The environment variable ``AUTOTUNE_DISABLE_PLUGINS=dist,dist`` switches
whole distributions off.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from importlib import metadata
from typing import Any

from autotune.plugins.base import API_VERSION, ModelInfo, Plugin, PluginError
from autotune.plugins.execution import Executor
from autotune.plugins.search import Forecaster, Policy, Proposer
from autotune.plugins.training import TTA, Adapter, Optimizer, Schedule
from autotune.space import Space
from autotune.space.errors import nearest

OURS = "autotune-torch"
DISABLE = "AUTOTUNE_DISABLE_PLUGINS"

BASES: Mapping[str, type[Plugin]] = {
    base.kind: base
    for base in (Optimizer, Schedule, Adapter, TTA, Proposer, Forecaster, Policy, Executor)
}
"""The base class of every kind."""

GROUPS: Mapping[str, str] = {
    "autotune.optimizers": "optimizer",
    "autotune.schedules": "schedule",
    "autotune.adapters": "adapter",
    "autotune.tta": "tta",
    "autotune.proposers": "proposer",
    "autotune.forecasters": "forecaster",
    "autotune.policies": "policy",
    "autotune.executors": "executor",
}
"""The kind that each entry-point group holds."""

RENAMED: Mapping[tuple[str, str], str] = {("policy", "successive_halving"): "asha"}
"""What plugins of ours that older studies name are called now, by kind and name."""

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class PluginRecord:
    """What metadata say about one plugin.

    Args:
        kind: e.g. ``optimizer``.
        name: what users write: the bare name, or ``distribution:name`` where it is taken.
        bare: the entry point's name.
        distribution: the installed distribution that brings it, and its `version`.
        value: where the class is, ``module:attribute``.
        rivals: other distributions that offer the same kind and name.
        disabled: switched off by ``AUTOTUNE_DISABLE_PLUGINS``.
    """

    kind: str
    name: str
    bare: str
    distribution: str
    version: str
    value: str
    rivals: tuple[str, ...] = ()
    disabled: bool = False

    @property
    def qualified(self) -> str:
        """The name that is right whatever else is installed."""
        return f"{self.distribution}:{self.bare}"


@dataclass(frozen=True)
class Failure:
    """Why a plugin cannot be used: one line for people, and the traceback if it raised."""

    cause: str
    traceback: str = ""


def records(kind: str | None = None) -> list[PluginRecord]:
    """All installed plugins (of `kind`), by kind and name, from metadata alone."""
    if kind is not None and kind not in BASES:
        raise PluginError(f"there is no plugin kind {kind!r}; the kinds are {_listed(BASES)}")
    found = _records(_installation(), os.environ.get(DISABLE, ""))
    return [record for record in found if kind is None or record.kind == kind]


def load(record: PluginRecord) -> type[Plugin] | Failure:
    """Import a plugin and hold it against its kind's contract; never raises. Done once."""
    if record.disabled:
        return Failure(f"switched off by {DISABLE}")
    return _load(record)


def get(kind: str, name: str) -> type[Plugin]:
    """The plugin class that `name` (bare or ``distribution:name``) means.

    Raises:
        PluginError: there is none, several fit, or it is broken; says what to do.
    """
    record = find(kind, name)
    loaded = load(record)
    if isinstance(loaded, Failure):
        error = PluginError(_complaint(record, loaded))
        if loaded.traceback:
            error.add_note(loaded.traceback)
        raise error
    return loaded


def find(kind: str, name: str) -> PluginRecord:
    """The record that `name` means, without importing it. Raises as `get`."""
    known = records(kind)
    for record in known:
        if name == record.name:
            return record
    distribution, _, bare = name.rpartition(":")
    for record in known:
        if bare == record.bare and _normalised(distribution) == _normalised(record.distribution):
            return record
    namesakes = [record for record in known if record.bare == name]
    if namesakes:
        raise PluginError(
            f"{kind} {name!r} is offered by several distributions; "
            f"write one of {_listed(record.name for record in namesakes)}"
        )
    if not any(_is_ours(record) for record in records()):
        raise PluginError(
            f"there is no {kind} {name!r}: the distribution {OURS} is not installed in this "
            f"Python ({sys.executable}); install it with pip"
        )
    meant = nearest(name, [record.name for record in known])
    hint = f" (did you mean {meant!r}?)" if meant else ""
    if (kind, name) in RENAMED:
        hint = f" (it is called {RENAMED[kind, name]!r} now)"
    raise PluginError(
        f"there is no {kind} {name!r}{hint}; installed: "
        f"{_listed(record.name for record in known) or 'none'}"
    )


def versions(chosen: Iterable[tuple[str, str]]) -> list[tuple[str, str, str, str]]:
    """(kind, name, distribution, version) of each chosen (kind, name), sorted, once each."""
    found = {(kind, name): find(kind, name) for kind, name in chosen}
    return sorted(
        (kind, name, record.distribution, record.version) for (kind, name), record in found.items()
    )


def verify(expected: Iterable[Sequence[str]]) -> None:
    """Raise PluginError unless this process finds the same working plugins as the driver.

    Args:
        expected: what `versions` gave on the driver.
    """
    differences = []
    for kind, name, distribution, version in expected:
        try:
            get(kind, name)
        except PluginError as error:
            differences.append(str(error))
            continue
        record = find(kind, name)
        if (record.distribution, record.version) != (distribution, version):
            differences.append(
                f"{kind} {name!r} comes from {record.distribution} {record.version} here, "
                f"but from {distribution} {version} on the driver"
            )
    if differences:
        raise PluginError(
            "this worker's plugins differ from the driver's: "
            + "; ".join(differences)
            + f" (worker's Python: {sys.executable})"
        )


class Catalogue:
    """The plugins that a space may choose from, for one model.

    Args:
        model_info: facts about the user's model; None (not known) asks no plugin whether it
            supports it.
    """

    def __init__(self, model_info: ModelInfo | None = None) -> None:
        self.model_info = model_info

    def options(self, kind: str) -> dict[str, Space]:
        """The space of every usable plugin of a kind, by name: neither broken, disabled nor
        unable to work on the model. Those that are `preferred` stand first, ours before
        others', since the first is a choice's default. Imports the kind's plugins."""
        usable = [record for record in records(kind) if self._hindrance(record) is None]
        usable.sort(key=lambda record: (not _preferred(record), not _is_ours(record)))
        return {record.name: self._space(record) for record in usable}

    def names(self, kind: str) -> list[str]:
        """Names of all installed plugins of a kind, usable or not."""
        return [record.name for record in records(kind)]

    def why_not(self, kind: str, name: str) -> str | None:
        """Why a plugin is no option, for people; None if it is one."""
        try:
            return self._hindrance(find(kind, name))
        except PluginError as error:
            return str(error)

    def get(self, kind: str, name: str) -> type[Plugin]:
        """As the module's `get`."""
        return get(kind, name)

    def versions(self, chosen: Iterable[tuple[str, str]]) -> list[tuple[str, str, str, str]]:
        """As the module's `versions`."""
        return versions(chosen)

    @staticmethod
    def _space(record: PluginRecord) -> Space:
        loaded = load(record)
        assert not isinstance(loaded, Failure), "asked only of usable plugins"
        return loaded.space()

    def _hindrance(self, record: PluginRecord) -> str | None:
        loaded = load(record)
        if isinstance(loaded, Failure):
            return _complaint(record, loaded)
        if self.model_info is None:
            return None
        try:
            return loaded.supports(self.model_info)
        except Exception as error:
            return f"its supports() raised {_described(error)}"


# --- metadata -------------------------------------------------------------------------------


def _installation() -> tuple[tuple[str, int], ...]:
    """Changes when something is installed or removed, so that a notebook sees new plugins."""
    places = []
    for folder in sys.path:
        try:
            places.append((folder, os.stat(folder or ".").st_mtime_ns))
        except OSError:
            continue
    return tuple(places)


@lru_cache(maxsize=4)
def _records(_installed: tuple[tuple[str, int], ...], disable: str) -> tuple[PluginRecord, ...]:
    off = {_normalised(name) for name in disable.split(",") if name.strip()}
    found = [replace(r, disabled=_normalised(r.distribution) in off) for r in _entries()]
    offers: dict[tuple[str, str], list[PluginRecord]] = {}
    for record in found:
        if not record.disabled:
            offers.setdefault((record.kind, record.bare), []).append(record)
    return tuple(
        sorted(
            (_named(record, offers.get((record.kind, record.bare), [])) for record in found),
            key=lambda record: (list(BASES).index(record.kind), record.name),
        )
    )


def _named(record: PluginRecord, offers: Sequence[PluginRecord]) -> PluginRecord:
    """The record under the name it is used by, knowing who else offers it."""
    rivals = tuple(offer.distribution for offer in offers if offer != record)
    bare_is_taken = bool(rivals) and (record.disabled or not _is_ours(record))
    return replace(record, rivals=rivals, name=record.qualified if bare_is_taken else record.bare)


def _entries() -> Iterator[PluginRecord]:
    """Every plugin's entry point. Of a distribution found twice on the path the first counts,
    as it does for imports."""
    seen = set()
    for candidate in metadata.distributions():
        if "autotune." not in (candidate.read_text("entry_points.txt") or ""):
            continue
        try:
            distribution = metadata.distribution(candidate.name)
            name, version = distribution.name, distribution.version or "unknown"
            entries = list(distribution.entry_points)
        except Exception as error:
            warnings.warn(
                f"plugins of {candidate} are left out, its metadata cannot be read: "
                f"{_described(error)}",
                stacklevel=2,
            )
            continue
        if _normalised(name) in seen:
            continue
        seen.add(_normalised(name))
        for entry in entries:
            kind = GROUPS.get(entry.group)
            if kind is not None:
                yield PluginRecord(kind, entry.name, entry.name, name, version, entry.value)


# --- import ---------------------------------------------------------------------------------


@cache
def _load(record: PluginRecord) -> type[Plugin] | Failure:
    entry = metadata.EntryPoint(record.bare, record.value, "")
    # SystemExit too: a plugin that calls sys.exit() when imported must not end the study.
    try:
        found = entry.load()
        cause = fault(found, record.kind, record.bare)
    except (Exception, SystemExit) as error:
        return Failure(f"importing {record.value} raised {_described(error)}", _trace(error))
    if cause is not None:
        return Failure(f"{record.value} {cause}")
    try:
        found.space().default()
    except Exception as error:
        return Failure(f"its space() raised {_described(error)}", _trace(error))
    checked: type[Plugin] = found
    return checked


def fault(found: Any, kind: str, name: str) -> str | None:
    """What keeps an object from being the plugin `name` of `kind`, or None."""
    base = BASES[kind]
    if not (inspect.isclass(found) and issubclass(found, base)):
        return f"is not a subclass of autotune.plugins' {base.__name__}, the base of every {kind}"
    if found.api_version != API_VERSION:
        return (
            f"speaks plugin api_version {found.api_version!r}, this autotune speaks "
            f"{API_VERSION}; install a release of it made for this autotune"
        )
    for attribute in ("name", "summary", "reference"):
        value = getattr(found, attribute, None)
        # What follows no paper may leave the reference empty.
        if not isinstance(value, str) or not (value.strip() or attribute == "reference"):
            return f"has no {attribute} (a class attribute, a non-empty string)"
    if found.kind != kind:
        return f"says its kind is {found.kind!r} but is registered as {kind}"
    if not _NAME.fullmatch(name):
        return f"is registered as {name!r}; a name is a letter, then letters, digits, _ and -"
    if found.name != name:
        return f"is registered as {name!r} but its name is {found.name!r}"
    if inspect.isabstract(found):
        missing = _listed(sorted(getattr(found, "__abstractmethods__", ())))
        return f"does not implement {missing}"
    return None


# --- words ----------------------------------------------------------------------------------


def _complaint(record: PluginRecord, failure: Failure) -> str:
    text = (
        f"{record.kind} {record.name!r} of the distribution {record.distribution} "
        f"{record.version} cannot be used: {failure.cause}"
    )
    if record.disabled or _is_ours(record):
        return text
    return f"{text}. Mend it, or remove it: pip uninstall {record.distribution}"


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _trace(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)).rstrip()


def _preferred(record: PluginRecord) -> bool:
    loaded = load(record)
    return not isinstance(loaded, Failure) and loaded.preferred


def _is_ours(record: PluginRecord) -> bool:
    return _normalised(record.distribution) == OURS


def _normalised(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution.strip()).lower()


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)

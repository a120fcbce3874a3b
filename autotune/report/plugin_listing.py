"""What ``autotune plugins list``, ``show`` and ``check`` print."""

from __future__ import annotations

import difflib
import json
import textwrap
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from autotune.plugins import Plugin, PluginError, discovery
from autotune.plugins.discovery import Failure, PluginRecord
from autotune.report.words import number, plural

WIDTH = 100
"""Columns of running text."""


def list_plugins(kind: str | None = None, *, as_json: bool = False) -> str:
    """All installed plugins (of a kind), broken ones with the cause.

    Args:
        kind: e.g. ``optimizer``.
        as_json: one JSON list of objects with the keys ``kind``, ``name``, ``status`` (``ok``,
            ``broken`` or ``disabled``), ``summary``, ``reference``, ``distribution``,
            ``version``, ``class``, ``rivals`` (other distributions with that name), ``cause``
            and ``traceback`` (both null unless broken or disabled).

    Raises:
        PluginError: there is no such kind.
    """
    records = discovery.records(kind)
    if as_json:
        return json.dumps([_plain(record) for record in records], indent=2)
    width = max((len(record.name) for record in records), default=0) + 2
    lines: list[str] = []
    for shown in discovery.BASES:
        of_kind = [record for record in records if record.kind == shown]
        if of_kind:
            lines += ["", shown] if lines else [shown]
            for record in of_kind:
                lines += _wrapped(_in_a_line(record), f"  {record.name:<{width}}")
    return "\n".join(lines) if lines else "no plugins are installed"


def show_plugin(name: str) -> str:
    """All about the plugins of a name: summary, reference, space, origin; of a broken one the
    traceback.

    Args:
        name: ``name``, ``kind:name`` or ``distribution:name``.

    Raises:
        PluginError: there is none.
    """
    return "\n\n".join("\n".join(_described(record)) for record in find(name))


def check_plugins(name: str | None, say: Callable[[str], None]) -> bool:
    """Hold a plugin, or all that are installed, against their contracts.

    Args:
        name: as for `show_plugin`; None for all.
        say: prints one line.

    Returns:
        Whether nothing is wrong.

    Raises:
        PluginError: no plugin has that name.
    """
    from autotune.plugins import conformance

    records = discovery.records() if name is None else find(name)
    records = [record for record in records if not record.disabled or name is not None]
    loaded = [(record, discovery.load(record)) for record in records]
    sound = [(record, plugin) for record, plugin in loaded if not isinstance(plugin, Failure)]
    say(f"checking {plural(len(sound), 'plugin')}, a few seconds each")
    reports = conformance.check_all([plugin for _, plugin in sound])
    fine = len(sound) == len(loaded)
    for record, plugin in loaded:
        if isinstance(plugin, Failure):
            say(f"BROKEN  {record.kind} {record.name}: {plugin.cause}")
    for (record, _), report in zip(sound, reports, strict=True):
        fine = fine and report.ok
        verdict = "ok    " if report.ok else "FAILED"
        say(f"{verdict}  {record.kind} {record.name}: {plural(len(report.passed), 'check')} passed")
        for title, reason in report.skipped.items():
            say(f"        not checked, {title}: {reason}")
        for title, wrong in report.failures.items():
            say(f"        {title}: {wrong}")
    return fine


def find(name: str) -> list[PluginRecord]:
    """The records that ``name``, ``kind:name`` or ``distribution:name`` means, of every kind.

    Raises:
        PluginError: there is none; with the nearest name.
    """
    records = discovery.records()
    kind, _, rest = name.partition(":")
    if kind in discovery.BASES and rest:
        return [discovery.find(kind, rest)]
    found = [r for r in records if name in (r.name, r.bare, r.qualified)]
    if not found:
        nearest = difflib.get_close_matches(name, [record.name for record in records], n=1)
        hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
        raise PluginError(f"there is no plugin {name!r}{hint}; see: autotune plugins list")
    return found


# --- one plugin -----------------------------------------------------------------------------


def _plain(record: PluginRecord) -> dict[str, Any]:
    plugin = discovery.load(record)
    failure = plugin if isinstance(plugin, Failure) else None
    return {
        "kind": record.kind,
        "name": record.name,
        "status": _status(record, plugin),
        "summary": None if isinstance(plugin, Failure) else plugin.summary,
        "reference": None if isinstance(plugin, Failure) else plugin.reference,
        "distribution": record.distribution,
        "version": record.version,
        "class": record.value,
        "rivals": list(record.rivals),
        "cause": failure.cause if failure else None,
        "traceback": (failure.traceback or None) if failure else None,
    }


def _status(record: PluginRecord, plugin: type[Plugin] | Failure) -> str:
    if record.disabled:
        return "disabled"
    return "broken" if isinstance(plugin, Failure) else "ok"


def _in_a_line(record: PluginRecord) -> str:
    plugin = discovery.load(record)
    if isinstance(plugin, Failure):
        text = f"{_status(record, plugin).upper()}: {plugin.cause}"
        if plugin.traceback:
            text += f" (traceback: autotune plugins show {record.kind}:{record.name})"
    else:
        text = plugin.summary
    if record.distribution != discovery.OURS:
        text += f" [{record.distribution} {record.version}]"
    if record.rivals:
        text += f" [name also offered by {', '.join(record.rivals)}]"
    return text


def _described(record: PluginRecord) -> Iterator[str]:
    plugin = discovery.load(record)
    yield f"{record.kind} {record.name}"
    if isinstance(plugin, Failure):
        yield from _wrapped(f"{_status(record, plugin).upper()}: {plugin.cause}", "  ")
    else:
        yield from _wrapped(plugin.summary, "  ")
        if plugin.reference:
            yield from _wrapped(plugin.reference, "  Reference: ")
    yield f"  From: {record.distribution} {record.version}, {record.value}"
    if record.rivals:
        yield f"  The name is also offered by: {', '.join(record.rivals)}"
    if isinstance(plugin, Failure):
        if plugin.traceback:
            yield from textwrap.indent(plugin.traceback, "  ").splitlines()
        return
    needs = getattr(plugin, "needs", None)
    if needs:
        yield f"  Needs of the training loop: {', '.join(sorted(needs))}"
    entries = plugin.space().to_plain()["parameters"]
    yield "  Space:" if entries else "  Space: no hyperparameters"
    yield from _entries(entries, "    ")


def _entries(entries: Mapping[str, Any], indent: str) -> Iterator[str]:
    """Parameters in the form of study files, in words."""
    width = max((len(name) for name in entries), default=0) + 2
    for name, entry in entries.items():
        if isinstance(entry, Mapping) and "type" not in entry and "plugins" not in entry:
            yield f"{indent}{name}:"
            yield from _entries(entry, indent + "  ")
            continue
        yield from _wrapped(_in_words(entry), f"{indent}{name:<{width}}")
        if isinstance(entry, Mapping) and entry.get("type") == "choice":
            for option, inner in entry["options"].items():
                if inner:
                    yield f"{indent}  if {option}:"
                    yield from _entries(inner, indent + "    ")


def _in_words(entry: Any) -> str:
    if not isinstance(entry, Mapping):
        return f"always {json.dumps(entry)}"
    if "plugins" in entry:
        return f"any {entry['plugins']}"
    kind = entry["type"]
    if kind == "constant":
        return f"always {json.dumps(entry['value'])}"
    if kind in ("float", "integer"):
        text = f"{kind} from {number(entry['low'])} to {number(entry['high'])}"
        if entry.get("log"):
            text += ", log scale"
        if entry.get("step") is not None:
            text += f", in steps of {number(entry['step'])}"
    else:
        values = next(entry[key] for key in ("options", "choices", "values") if key in entry)
        ordered = " (in this order)" if kind == "ordinal" else ""
        text = f"one of {', '.join(str(value) for value in values)}{ordered}"
    if entry.get("default") is not None:
        text += f"; default {_value(entry['default'])}"
    if entry.get("prior"):
        prior = entry["prior"]
        text += f"; prior around {_value(prior['center'])}, {prior['confidence']} confidence"
    return text


def _value(value: Any) -> str:
    return number(value) if isinstance(value, int | float) else str(value)


def _wrapped(text: str, start: str) -> list[str]:
    """Lines of `text` after `start`, under which the further ones are aligned."""
    return textwrap.wrap(
        text,
        max(WIDTH, len(start) + 40),
        initial_indent=start,
        subsequent_indent=" " * len(start),
        break_long_words=False,
        break_on_hyphens=False,
    )

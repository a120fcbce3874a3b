"""YAML text to plain values with the line of every key, and back; no text can do harm by it.

Read by the rules of YAML 1.2's core schema: ``1e-3`` is a number and ``off`` a string, unlike in
YAML 1.1. Mapping keys are always strings. Tags, duplicate keys, several documents, aliases that
contain themselves, deep nesting and aliases that multiply to a huge document are refused. PyYAML
scans and parses; what its events mean is decided here, so nothing is ever constructed by a tag.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from autotune.space.errors import Path

_LONGEST = 500_000
_DEEPEST = 40
_MOST = 50_000

_NULL = ("", "~", "null", "Null", "NULL")
_BOOL = {
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INTEGER = re.compile(r"[-+]?[0-9]+\Z")
_BASED = re.compile(r"0(?:o[0-7]+|x[0-9a-fA-F]+)\Z")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z")
_SPECIAL = re.compile(r"(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z")


class YamlError(Exception):
    """The text is no YAML that we accept; `line` counts from 1."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(line, message)
        self.line = line
        self.message = message

    def __str__(self) -> str:
        return f"line {self.line}: {self.message}"


@dataclass(frozen=True)
class Document:
    """What was read: plain values, and the line (from 1) of every path of keys."""

    value: Any
    lines: Mapping[Path, int]

    def line(self, path: Path) -> int:
        """The line where `path` stands, or the innermost part of it that is there."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.lines:
                return self.lines[path[:length]]
        return self.lines.get((), 1)


@dataclass
class _Node:
    line: int
    kind: str
    text: str = ""
    plain: bool = False
    items: list[_Node] = field(default_factory=list)
    done: bool = False


def parse(text: str) -> Document:
    """The only document of a text. Raises `YamlError`."""
    if len(text) > _LONGEST:
        raise YamlError(1, f"is {len(text)} characters long, expected at most {_LONGEST}")
    try:
        node = _compose(yaml.parse(text, Loader=yaml.SafeLoader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        words = " ".join(str(error.problem or error.context).split())
        if error.context and error.problem:
            words += f" {' '.join(str(error.context).split())}"
        raise YamlError(mark.line + 1 if mark else 1, f"is not valid YAML: {words}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        code = error.character if isinstance(error.character, int) else ord(error.character)
        raise YamlError(line, f"holds the character U+{code:04X}, which YAML forbids") from None
    except (ValueError, OverflowError) as error:
        # PyYAML lets these through, e.g. from an escape beyond Unicode.
        raise YamlError(1, f"is not valid YAML: {error}") from None
    reader = _Reader()
    return Document(reader.value(node, ()), reader.lines)


# --- events to nodes ------------------------------------------------------------------------


def _compose(events: Iterator[Any]) -> _Node:
    root: _Node | None = None
    anchors: dict[str, _Node] = {}
    stack: list[_Node] = []
    for event in events:
        line = event.start_mark.line + 1
        if isinstance(event, yaml.DocumentStartEvent) and root is not None:
            raise YamlError(line, "begins a second document, expected one")
        if isinstance(event, yaml.CollectionEndEvent):
            stack.pop().done = True
            continue
        if not isinstance(event, yaml.NodeEvent):
            continue
        node = _node(event, line, anchors)
        if stack:
            stack[-1].items.append(node)
        else:
            root = node
        if isinstance(event, yaml.CollectionStartEvent):
            stack.append(node)
            if len(stack) > _DEEPEST:
                raise YamlError(line, f"is nested deeper than {_DEEPEST} levels")
    return root or _Node(1, "scalar", plain=True)


def _node(event: Any, line: int, anchors: dict[str, _Node]) -> _Node:
    if isinstance(event, yaml.AliasEvent):
        target = anchors.get(str(event.anchor))
        if target is None:
            raise YamlError(line, f"alias *{event.anchor} has no anchor before it")
        if target.kind != "scalar" and not target.done:
            raise YamlError(line, f"alias *{event.anchor} contains itself")
        return target
    if event.tag is not None:
        raise YamlError(line, f"tag {event.tag!r} is not allowed, expected a plain value")
    if isinstance(event, yaml.ScalarEvent):
        if not event.value.isascii() and any("\ud800" <= c <= "\udfff" for c in event.value):
            raise YamlError(line, "holds half of a surrogate pair, expected a whole character")
        node = _Node(line, "scalar", event.value, plain=event.style is None)
    else:
        node = _Node(line, "list" if isinstance(event, yaml.SequenceStartEvent) else "mapping")
    if event.anchor is not None:
        anchors[event.anchor] = node
    return node


# --- nodes to values ------------------------------------------------------------------------


class _Reader:
    def __init__(self) -> None:
        self.lines: dict[Path, int] = {}
        self.count = 0

    def value(self, node: _Node, path: Path) -> Any:
        self.count += 1
        if self.count > _MOST:
            raise YamlError(node.line, f"its aliases multiply to more than {_MOST} values")
        self.lines.setdefault(path, node.line)
        if node.kind == "scalar":
            return _scalar(node)
        if len(path) > _DEEPEST:
            raise YamlError(node.line, f"is nested deeper than {_DEEPEST} levels")
        if node.kind == "list":
            return [self.value(item, (*path, index)) for index, item in enumerate(node.items)]
        mapping = {}
        for key, (line, item) in self._pairs(node).items():
            self.lines[(*path, key)] = line
            mapping[key] = self.value(item, (*path, key))
        return mapping

    def _pairs(self, node: _Node, depth: int = 0) -> dict[str, tuple[int, _Node]]:
        """Key to its line and value, ``<<`` merged in: own keys win, then earlier merges."""
        if depth > _DEEPEST:
            raise YamlError(node.line, f"is nested deeper than {_DEEPEST} levels")
        own: dict[str, tuple[int, _Node]] = {}
        merged: dict[str, tuple[int, _Node]] = {}
        for key, item in zip(node.items[::2], node.items[1::2], strict=True):
            self.count += 1
            if self.count > _MOST:
                raise YamlError(node.line, f"its aliases multiply to more than {_MOST} values")
            if key.kind != "scalar":
                raise YamlError(key.line, "a key is a collection, expected a name")
            if key.plain and key.text == "<<":
                for source in item.items if item.kind == "list" else [item]:
                    if source.kind != "mapping":
                        raise YamlError(key.line, "'<<' merges a value that is no mapping")
                    for name, pair in self._pairs(source, depth + 1).items():
                        merged.setdefault(name, pair)
            elif key.text in own:
                first = own[key.text][0]
                raise YamlError(
                    key.line,
                    f"key {key.text!r} is here twice, first on line {first}; expected it once",
                )
            else:
                own[key.text] = (key.line, item)
        return {**merged, **own}


def _scalar(node: _Node) -> Any:
    text = node.text
    if not node.plain:
        return text
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if _SPECIAL.match(text):
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    if len(text) <= 400:
        if _INTEGER.match(text):
            return int(text)
        if _BASED.match(text):
            return int(text, 0)
        if _FLOAT.match(text):
            return float(text)
    return text


# --- out ------------------------------------------------------------------------------------


def dump(value: Any) -> str:
    """Plain values as YAML that `parse` reads back exactly, and YAML 1.1 readers too."""
    return yaml.dump(
        value,
        Dumper=_Dumper,
        sort_keys=False,
        default_flow_style=None,
        allow_unicode=True,
        width=100,
    )


class _Dumper(yaml.SafeDumper):
    """Quotes every string that YAML 1.1 or 1.2 would take for something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _string(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    ambiguous = _scalar(_Node(1, "scalar", text, plain=True)) != text
    if not text.isprintable():
        # Only double quotes have escapes; elsewhere some line breaks read back as spaces.
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"')
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="'" if ambiguous else None)


def _number(dumper: yaml.SafeDumper, number: float) -> yaml.ScalarNode:
    text = repr(float(number))
    if not math.isfinite(number):
        text = {"inf": ".inf", "-inf": "-.inf"}.get(text, ".nan")
    elif "e" in text and "." not in text:
        # YAML 1.1 wants a dot before it believes an exponent.
        text = text.replace("e", ".0e")
    return dumper.represent_scalar("tag:yaml.org,2002:float", text)


_Dumper.add_representer(str, _string)
_Dumper.add_representer(float, _number)

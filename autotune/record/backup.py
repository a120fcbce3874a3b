"""The copy that a damaged record is restored from: a text file that is only ever appended to.

A line is ``checksum seq kind json`` for an event and ``checksum - key json`` for a named fact, in
the order in which they were recorded. Adding one costs the same however long the record is, a
damaged place costs the lines it lies in, and one can be read with `less` when all else fails.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from autotune.record.errors import RecordError
from autotune.record.events import Row, checksum

FILE = "record.backup"
_FACT = b"-"
_TAIL = 1 << 16
DROPPED = "null"
"""The text of a fact that was taken away."""


class Fact(NamedTuple):
    """A named fact as it lies on disk."""

    key: str
    text: str
    checksum: int

    @classmethod
    def of(cls, key: str, text: str) -> Fact:
        """With its checksum."""
        return cls(key, text, checksum(key, text))

    @property
    def whole(self) -> bool:
        """Whether it is what was written."""
        return self.checksum == checksum(self.key, self.text)


def _line(entry: Row | Fact) -> bytes:
    if isinstance(entry, Fact):
        return f"{entry.checksum:08x} - {entry.key} {entry.text}\n".encode()
    return f"{entry.checksum:08x} {entry.seq} {entry.kind} {entry.text}\n".encode()


def _parsed(line: bytes) -> Row | Fact | None:
    """What a line says; None if it is not what was written."""
    try:
        told, seq, name, rest = line.split(b" ", 3)
        if not rest.endswith(b"\n"):
            return None
        text = rest[:-1].decode()
        entry: Row | Fact
        if seq == _FACT:
            entry = Fact(name.decode(), text, int(told, 16))
        else:
            entry = Row(int(seq), name.decode(), text, int(told, 16))
    except ValueError:
        return None
    return entry if entry.whole else None


def _entries(path: Path) -> Iterator[tuple[Row | Fact | None, int]]:
    """Each line's entry, None for a damaged one, with the place where the line ends."""
    end = 0
    with open(path, "rb") as lines:
        for line in lines:
            end += len(line)
            yield _parsed(line), end


def rows(path: Path) -> Iterator[Row]:
    """The events whose lines are whole, in order."""
    return (entry for entry, _ in _entries(path) if isinstance(entry, Row))


@dataclass(frozen=True)
class Content:
    """What a backup holds.

    Args:
        count: events from the first on without a gap.
        beyond: one more than the number of the last event in it, however many are damaged.
        facts: the last text by name.
        dropped: names of facts that were taken away, and not put there again.
        end: bytes up to the end of the last whole line.
        sound: every line up to there is whole and in its place.
    """

    count: int
    beyond: int
    facts: Mapping[str, str]
    dropped: frozenset[str]
    end: int
    sound: bool


def content(path: Path) -> Content:
    """Look through a backup; an absent one is empty."""
    count = beyond = whole_end = 0
    facts: dict[str, str] = {}
    damaged = misplaced = False
    after_damage = False
    if path.exists():
        for entry, end in _entries(path):
            if entry is None:
                after_damage = True
                continue
            damaged, whole_end = damaged or after_damage, end
            if isinstance(entry, Fact):
                facts[entry.key] = entry.text
                continue
            misplaced = misplaced or entry.seq != beyond
            beyond = max(beyond, entry.seq + 1)
            count += entry.seq == count
    dropped = frozenset(key for key, text in facts.items() if text == DROPPED)
    kept = {key: text for key, text in facts.items() if key not in dropped}
    return Content(count, beyond, kept, dropped, whole_end, not (damaged or misplaced))


def begun(path: Path) -> bool:
    """Whether it is the backup of a study that has begun: the header comes before all events."""
    if path.exists():
        for entry, _ in _entries(path):
            if isinstance(entry, Row):
                return True
            if entry is not None and entry.key == "header":
                return True
    return False


def length(path: Path) -> int:
    """How many events the record had when the newest line was written, by the file's end alone;
    0 if it does not tell."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
            lines = file.read().splitlines(keepends=True)
    except OSError:
        return 0
    found = (_parsed(line) for line in reversed(lines))
    return next((entry.seq + 1 for entry in found if isinstance(entry, Row)), 0)


class Backup:
    """A backup, open for appending."""

    def __init__(self, folder: Path, end: int = 0) -> None:
        """Go on after byte `end`; what lies beyond, a torn line, is cut off."""
        self.path = folder / FILE
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        os.ftruncate(self._descriptor, end)
        self._end = self._verified = end

    @classmethod
    def anew(cls, folder: Path, events: Iterable[Row], facts: Iterable[Fact]) -> Backup:
        """In place of a damaged one; kills leave the one or the other."""
        partial = folder / f"{FILE}.partial"
        with open(partial, "wb") as file:
            file.writelines(map(_line, facts))
            file.writelines(map(_line, events))
            file.flush()
            os.fsync(file.fileno())
        size = partial.stat().st_size
        os.replace(partial, folder / FILE)
        return cls(folder, size)

    def add(self, entry: Row | Fact) -> None:
        """Append one entry. It survives a kill; a power failure only after `verify`."""
        line = _line(entry)
        if os.write(self._descriptor, line) != len(line):
            raise OSError(f"{self.path} could not be written to the end of a line")
        self._end += len(line)

    def verify(self) -> None:
        """Put what is new on the disk, and read it back.

        Raises:
            RecordError: it is not what was written.
        """
        os.fsync(self._descriptor)
        with open(self.path, "rb") as lines:
            lines.seek(self._verified)
            for line in lines:
                if _parsed(line) is None:
                    raise RecordError(f"{self.path} does not hold what was written to it")
                self._verified += len(line)
        if self._verified != self._end:
            raise RecordError(
                f"{self.path} is {self._verified} bytes long, {self._end} were written"
            )

    def close(self) -> None:
        """Idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

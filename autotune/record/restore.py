"""Putting a damaged record right: from its backup, and from what of the file can still be read.

Every entry on either side carries its checksum, so one that reads right is right.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

from autotune.plugins.search import Decided, Event
from autotune.record import backup, database
from autotune.record.backup import Content, Fact
from autotune.record.errors import Damaged, RecordError
from autotune.record.events import Row

_GAP = 1000
"""So far beyond the last event found, further ones are looked for."""


class _Remains:
    """What of a damaged file and its write-ahead log can be read, entry by entry."""

    def __init__(self, path: Path) -> None:
        self._connection: sqlite3.Connection | None = None
        with suppress(sqlite3.Error, RecordError):
            self._connection = database.connect(path, write=False)

    def _fetch(self, statement: str, *values: int) -> list[tuple[object, ...]]:
        found: list[tuple[object, ...]] = []
        if self._connection is not None:
            with suppress(sqlite3.Error, UnicodeDecodeError):
                for row in self._connection.execute(statement, values):
                    found.append(row)
        return found

    def event(self, seq: int) -> Row | None:
        rows = self._fetch("SELECT seq, kind, json, checksum FROM events WHERE seq = ?", seq)
        return next((row for row in map(Row._make, rows) if row.seq == seq and row.whole), None)

    def length(self) -> int:
        """One more than the number of the last event that can be found."""
        last = "SELECT seq, kind, json, checksum FROM events ORDER BY seq DESC LIMIT 1"
        return next((row.seq + 1 for row in map(Row._make, self._fetch(last)) if row.whole), 0)

    def facts(self) -> dict[str, Fact]:
        found = map(Fact._make, self._fetch("SELECT key, json, checksum FROM meta"))
        return {fact.key: fact for fact in found if fact.whole}

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()


@dataclass
class _Restored:
    """What came of it: events from the first on, how many there are known to have been, the
    trials of those lost that can still be read, and whether the damaged file's end could be."""

    count: int = 0
    until: float = 0.0
    known: int = 0
    trials: set[int] = field(default_factory=set)
    end_read: bool = True


def restore(folder: Path, kept: Content, cause: Exception) -> str:
    """Put a whole file in place of the damaged one, which is kept under another name. Returns
    what happened and what was lost, in words.

    Args:
        kept: what the backup holds.

    Raises:
        Damaged: not even what the study is can be read.
    """
    path, partial = folder / database.FILE, folder / "record.restored"
    for leftover in folder.glob(partial.name + "*"):
        leftover.unlink()
    with closing(_Remains(path)) as remains:
        read = {k: fact for k, fact in remains.facts().items() if k not in kept.dropped}
        facts = read | {k: Fact.of(k, text) for k, text in kept.facts.items()}
        if "header" not in facts:
            raise Damaged(
                f"{path} is damaged ({cause}) and has no backup {backup.FILE} yet, so the study "
                f"cannot go on; start it anew under another name"
            ) from cause
        restored = _Restored(end_read=remains.length() > 0)
        with closing(database.create(partial)) as connection:
            connection.execute("BEGIN")
            for fact in facts.values():
                database.note(connection, fact)
            for row in _prefix(folder / backup.FILE, remains):
                at = row.event().at
                database.insert(connection, row, at)
                restored.count, restored.until = row.seq + 1, max(restored.until, at)
            connection.execute("COMMIT")
            connection.execute("PRAGMA journal_mode = DELETE")
        for row in _beyond(folder / backup.FILE, remains, restored.count):
            restored.known = max(restored.known, row.seq + 1)
            restored.trials.update(_trial(row.event()))
    number = 1 + len(list(folder.glob("record.damaged-*.sqlite")))
    aside = f"record.damaged-{number}.sqlite"
    for suffix in ("-journal", "-wal", "-shm", ""):
        with suppress(FileNotFoundError):
            os.replace(folder / (database.FILE + suffix), folder / (aside + suffix))
    os.replace(partial, path)
    return _told(path, cause, restored, aside)


def _prefix(path: Path, remains: _Remains) -> Iterator[Row]:
    """Events from the first on, up to the first that neither side has."""
    expected = 0
    for row in backup.rows(path) if path.exists() else ():
        while expected < row.seq and (found := remains.event(expected)) is not None:
            yield found
            expected += 1
        if expected < row.seq:
            return
        if row.seq == expected:
            yield row
            expected += 1
    while (found := remains.event(expected)) is not None:
        yield found
        expected += 1


def _beyond(path: Path, remains: _Remains, count: int) -> Iterator[Row]:
    """What either side still has of the events after a gap, which cannot be gone on from."""
    if path.exists():
        yield from (row for row in backup.rows(path) if row.seq >= count)
    end = max(count, remains.length()) + _GAP
    while count < end:
        if (found := remains.event(count)) is not None:
            end = max(end, count + _GAP)
            yield found
        count += 1


def _trial(event: Event) -> Iterator[int]:
    subject = event.decision if isinstance(event, Decided) else event
    if (trial := getattr(subject, "trial", None)) is not None:
        yield trial


def _told(path: Path, cause: Exception, restored: _Restored, aside: str) -> str:
    lost = max(0, restored.known - restored.count)
    start = (
        f"{path} was damaged ({cause}). It is restored from its verified backup and from what "
        f"could still be read: {restored.count} events, up to second {restored.until:.0f} of the "
        f"study; "
    )
    if lost:
        trials = ", ".join(map(str, sorted(restored.trials)))
        named = f" (of trials {trials}, as far as they can be read)" if trials else ""
        start += (
            f"{lost} later event{'s are' if lost > 1 else ' is'} lost{named}, and what they tell "
            f"of will be done again."
        )
    else:
        start += "nothing that is known to have been recorded is lost."
    if not restored.end_read:
        start += (
            " The end of the damaged file cannot be read: if the power failed, what was recorded "
            "in the seconds before may be missing too."
        )
    return f"{start} The damaged file is kept as {aside}."

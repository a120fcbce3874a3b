"""The SQLite file of a record: opened so that a kill loses nothing, read so that damage shows.

WAL mode, synced at every commit. Rows are only ever added; each carries a checksum.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from autotune.plugins.search import Event
from autotune.record import backup
from autotune.record.backup import Fact
from autotune.record.errors import Damaged, RecordError
from autotune.record.events import Row
from autotune.record.place import resume_command

FILE = "record.sqlite"
FORMAT = 1
"""Layout of the file. A record of another format is refused, never guessed at."""

_SCHEMA = """
CREATE TABLE events (
    seq INTEGER PRIMARY KEY, at REAL NOT NULL, kind TEXT NOT NULL,
    json TEXT NOT NULL, checksum INTEGER NOT NULL);
CREATE TABLE meta (key TEXT PRIMARY KEY, json TEXT NOT NULL, checksum INTEGER NOT NULL);
CREATE TRIGGER events_are_final BEFORE UPDATE ON events
    BEGIN SELECT RAISE(ABORT, 'events are never changed'); END;
CREATE TRIGGER events_are_kept BEFORE DELETE ON events
    BEGIN SELECT RAISE(ABORT, 'events are never deleted'); END;
"""

_JOURNAL = "-journal"
_BESIDE = ("-wal", _JOURNAL)
"""What SQLite puts beside a file that is being written, and takes away at the end."""

_NOT_DAMAGE = {
    *(sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PERM, sqlite3.SQLITE_FULL),
    *(sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_CANTOPEN),
}
_NOT_DAMAGE_EITHER = {
    *(sqlite3.SQLITE_IOERR_SHMOPEN, sqlite3.SQLITE_IOERR_SHMSIZE, sqlite3.SQLITE_IOERR_SHMMAP),
    *(sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_IOERR_LOCK),
}


def is_damage(error: Exception) -> bool:
    """Whether an error is due to what the file holds, not to the disk, rights or a lock."""
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        return isinstance(error, Damaged | sqlite3.DatabaseError | UnicodeDecodeError)
    return code & 0xFF not in _NOT_DAMAGE and code not in _NOT_DAMAGE_EITHER


def connect(path: Path, write: bool) -> sqlite3.Connection:
    """Open an existing file. Raises `sqlite3.Error`, `RecordError`."""
    # A folder that may not be written to cannot hold the shared-memory file that WAL needs.
    mode = "rw" if write else ("ro" if os.access(path.parent, os.W_OK) else "ro&immutable=1")
    left = [name for suffix in _BESIDE if path.with_name(name := path.name + suffix).exists()]
    if left and "immutable" in mode:
        raise RecordError(
            f"{path.parent} may not be written to and its last driver was killed, so that "
            f"{path.name} is whole only with {left[0]}: copy the folder to a place you may write to"
        )
    if not write and path.name + _JOURNAL in left:
        _roll_back(path)
    connection = _opened(path, mode)
    if write:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
        except sqlite3.Error:
            connection.close()
            raise
    return connection


def _opened(path: Path, mode: str) -> sqlite3.Connection:
    try:
        return sqlite3.connect(
            f"{path.resolve().as_uri()}?mode={mode}", uri=True, isolation_level=None, timeout=30.0
        )
    except sqlite3.Error as error:
        raise RecordError(f"{path} cannot be opened: {error}") from error


def _roll_back(path: Path) -> None:
    """Undo what a kill cut short while the file was being made, or went over to WAL mode or back:
    until then, it cannot be read, and SQLite does so only for who may write."""
    with suppress(sqlite3.Error), closing(_opened(path, "rw")) as connection:
        connection.execute("SELECT 1 FROM sqlite_master").fetchone()


def create(path: Path) -> sqlite3.Connection:
    """A new file, open for writing, its tables on the disk and not only in the log ahead of it:
    wherever that log is torn later, the entries before it can be read."""
    path.touch()
    connection = connect(path, write=True)
    connection.executescript(_SCHEMA)
    settle(connection)
    return connection


def settle(connection: sqlite3.Connection) -> None:
    """Move what was written so far from the write-ahead log into the file itself."""
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def insert(connection: sqlite3.Connection, row: Row, at: float) -> None:
    """Add an event."""
    connection.execute(
        "INSERT INTO events VALUES (?, ?, ?, ?, ?)", (row.seq, at, row.kind, row.text, row.checksum)
    )


def note(connection: sqlite3.Connection, fact: Fact) -> None:
    """Put a named fact in place of an earlier one of that name."""
    connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?, ?)", fact)


def drop(connection: sqlite3.Connection, key: str) -> None:
    """Take a named fact away."""
    connection.execute("DELETE FROM meta WHERE key = ?", (key,))


# --- reading --------------------------------------------------------------------------------


def rows(connection: sqlite3.Connection, first: int = 0) -> Iterator[Row]:
    """The events from number `first` on, each verified. Raises `Damaged`."""
    expected = first
    found = connection.execute(
        "SELECT seq, kind, json, checksum FROM events WHERE seq >= ? ORDER BY seq", (first,)
    )
    for row in map(Row._make, found):
        if row.seq != expected or not row.whole:
            raise Damaged(f"event {expected} is missing or has changed since it was written")
        yield row
        expected += 1


def facts(connection: sqlite3.Connection) -> dict[str, Fact]:
    """The named facts, verified. Raises `Damaged`, and `RecordError` for another format."""
    if (verdict := connection.execute("PRAGMA quick_check").fetchone()[0]) != "ok":
        raise Damaged(f"SQLite's check says: {verdict}")
    found = {}
    for fact in map(Fact._make, connection.execute("SELECT key, json, checksum FROM meta")):
        if not fact.whole:
            raise Damaged(f"the entry {fact.key!r} has changed since it was written")
        found[fact.key] = fact
    written = json.loads(found["format"].text) if "format" in found else FORMAT
    if written != FORMAT:
        raise RecordError(
            f"the record has format {written}, this version of autotune reads {FORMAT}; "
            f"use the version that wrote it"
        )
    return found


@contextmanager
def snapshot(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that sees one state, also beside a running driver; what goes wrong while
    reading is `Damaged`, or a `RecordError` if the file is not to blame."""
    if not path.is_file():
        raise Damaged("the file is missing")
    with closing(connect(path, write=False)) as connection:
        try:
            connection.execute("BEGIN")
            yield connection
        except (sqlite3.Error, UnicodeDecodeError) as error:
            if not is_damage(error):
                raise RecordError(f"{path} cannot be read: {error}") from error
            raise Damaged(str(error)) from error


def exists(folder: Path) -> bool:
    """Whether the folder holds a record that was begun (its header is written)."""
    path = folder / FILE
    if backup.begun(folder / backup.FILE):
        return True  # however damaged the file may be, which opening it will say
    if not path.is_file():
        return False
    connection = connect(path, write=False)
    try:
        return bool(connection.execute("SELECT 1 FROM meta WHERE key = 'header'").fetchone())
    except sqlite3.DatabaseError as error:
        # Killed before the tables were made; whatever else it may be, opening it will say.
        return "no such table" not in str(error)
    finally:
        connection.close()


def peek(folder: Path, key: str) -> Any:
    """One meta entry, without looking at anything else; None if it cannot be read."""
    try:
        with closing(connect(folder / FILE, write=False)) as connection:
            row = connection.execute("SELECT json FROM meta WHERE key = ?", (key,)).fetchone()
        return json.loads(row[0]) if row else None
    except (sqlite3.Error, ValueError, RecordError):
        return None


@contextmanager
def reading(folder: Path) -> Iterator[tuple[Iterator[Event], dict[str, Any]]]:
    """The events, read as they are asked for, and the meta entries of a study, also while a
    driver runs. Changes nothing, but for undoing what a kill cut short.

    Raises:
        RecordError: no record there, or damaged, then or while its events are read.
    """
    if not exists(folder):
        raise RecordError(f"{folder} holds no study (no {FILE}, or killed before it began)")
    path = folder / FILE
    # Before the file is opened: a driver that runs meanwhile writes there first.
    length = backup.length(folder / backup.FILE)

    def events(connection: sqlite3.Connection) -> Iterator[Event]:
        count = 0
        for row in rows(connection):
            yield row.event()
            count += 1
        complain_if_short(count, length)

    try:
        with snapshot(path) as connection:
            meta = {key: json.loads(fact.text) for key, fact in facts(connection).items()}
            yield events(connection), meta
    except Damaged as error:
        raise Damaged(
            f"{path} is damaged ({error}); `{resume_command(folder)}` restores it "
            f"from its verified backup and goes on from there"
        ) from error


def read(folder: Path) -> tuple[list[Event], dict[str, Any]]:
    """All at once of what `reading` gives."""
    with reading(folder) as (events, meta):
        return list(events), meta


def complain_if_short(count: int, length: int) -> None:
    """Raises `Damaged` if events are missing at the end, as a damaged write-ahead log, which
    SQLite takes for a shorter one, leaves it."""
    if length > count:
        raise Damaged(f"the last {length - count} of {length} events are missing")

"""The record as its one driver has it open: appended to, restored, backed up."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from autotune.plugins.search import Event
from autotune.record import backup, database
from autotune.record.backup import Backup, Content, Fact
from autotune.record.database import FILE, FORMAT
from autotune.record.errors import Damaged, RecordError
from autotune.record.events import Row, dump, event_to_row
from autotune.record.place import DriverLock, refuse_network, resume_command
from autotune.record.restore import restore


class Record:
    """The log of one study, open for writing; holds the driver's lock until `close`.

    Attributes:
        count: how many events there are.
        meta: further facts by name, as last written.
        restored: None, or what was lost when a damaged file was restored.
    """

    def __init__(self, folder: Path) -> None:
        """Open a study's record, or begin one. Raises `RecordError`."""
        refuse_network(folder)
        self.folder = folder
        self.count = 0
        self.meta: dict[str, Any] = {}
        self.restored: str | None = None
        self._lock = DriverLock(folder)
        self._connection: sqlite3.Connection | None = None
        self._backup: Backup | None = None
        self._uncommitted: list[Row | Fact] = []
        try:
            if database.exists(folder):
                self._open()
            else:
                self._begin()
        except BaseException as error:
            self.close()
            if isinstance(error, sqlite3.Error | OSError):
                raise RecordError(f"no record can be kept in {folder}: {error}") from error
            raise

    def _begin(self) -> None:
        for name in (FILE, backup.FILE):
            for leftover in self.folder.glob(name + "*"):
                leftover.unlink()
        self._connection = database.create(self.folder / FILE)
        self._backup = Backup(self.folder)
        self.set_meta("format", FORMAT)

    def _open(self) -> None:
        path = self.folder / FILE
        kept = backup.content(self.folder / backup.FILE)
        try:
            # Looked at before it is opened for writing, which would change a damaged file.
            facts = self._look(path)
            database.complain_if_short(self.count, kept.beyond)
            self._connection = database.connect(path, write=True)
        except (Damaged, sqlite3.Error) as error:
            if not database.is_damage(error):
                raise
            self.restored = restore(self.folder, kept, error)
            facts = self._look(path)
            self._connection = database.connect(path, write=True)
        self.meta = {key: json.loads(fact.text) for key, fact in facts.items()}
        self._backup = self._continued(kept, facts)
        if self.restored is not None:
            self.set_meta("restored", [*self.meta.get("restored", []), self.restored])

    def _look(self, path: Path) -> dict[str, Fact]:
        """Count and verify the events, and read the facts. Raises `Damaged`."""
        with database.snapshot(path) as reader:
            facts = database.facts(reader)
            self.count = sum(1 for _ in database.rows(reader))
        return facts

    def _continued(self, kept: Content, facts: dict[str, Fact]) -> Backup:
        """The backup, brought up to what the file holds."""
        assert self._connection is not None
        if not kept.sound or kept.beyond > self.count:
            gone = (kept.facts.keys() | kept.dropped) - facts.keys()
            dropped = [Fact.of(key, backup.DROPPED) for key in sorted(gone)]
            return Backup.anew(
                self.folder, database.rows(self._connection), [*facts.values(), *dropped]
            )
        continued = Backup(self.folder, kept.end)
        for fact in facts.values():
            if kept.facts.get(fact.key) != fact.text:
                continued.add(fact)
        for key in kept.facts.keys() - facts.keys():
            continued.add(Fact.of(key, backup.DROPPED))
        for row in database.rows(self._connection, kept.count):
            continued.add(row)
        return continued

    def events(self) -> Iterator[Event]:
        """All events so far, in order, read from the disk as they are asked for."""
        assert self._connection is not None, "the record is closed"
        return (row.event() for row in database.rows(self._connection))

    def append(self, event: Event) -> Event:
        """Put an event after the others and return it as it will be read back. It is on disk,
        with all that is before it, once `commit` has returned: a flush costs more than all else,
        and one does for many events."""
        row = event_to_row(self.count, event)
        self._put(row, float(event.at))
        self.count += 1
        return row.event()

    def set_meta(self, key: str, value: Any) -> None:
        """Put a named fact on disk, in place of an earlier one of that name, and all events."""
        fact = Fact.of(key, dump(value))
        self._put(fact)
        self.commit()
        self.meta[key] = json.loads(fact.text)

    def drop_meta(self, key: str) -> None:
        """Take a named fact away, if there is one of that name."""
        self._put(Fact.of(key, backup.DROPPED))
        self.meta.pop(key, None)

    def _put(self, entry: Row | Fact, at: float = 0.0) -> None:
        assert self._connection is not None, "the record is closed"
        with self._all_or_nothing(self._connection):
            if not self._connection.in_transaction:
                self._connection.execute("BEGIN")
            if isinstance(entry, Row):
                database.insert(self._connection, entry, at)
            elif entry.text == backup.DROPPED:
                database.drop(self._connection, entry.key)
            else:
                database.note(self._connection, entry)
        self._uncommitted.append(entry)

    def commit(self) -> None:
        """Have on disk what was put there: in the file first, then in the backup, of which an
        entry was recorded, whatever has become of the file."""
        if not self._uncommitted:
            return
        assert self._connection is not None, "the record is closed"
        assert self._backup is not None, "the record is closed"
        with self._all_or_nothing(self._connection):
            self._connection.execute("COMMIT")
        committed, self._uncommitted = self._uncommitted, []
        try:
            for entry in committed:
                self._backup.add(entry)
        except OSError as error:
            raise self._unwritable(f"the backup {self._backup.path} cannot", error) from error

    @contextmanager
    def _all_or_nothing(self, connection: sqlite3.Connection) -> Iterator[None]:
        """Take back what is not committed if the file cannot be written."""
        try:
            yield
        except sqlite3.Error as error:
            if connection.in_transaction:  # unless SQLite has ended it itself
                connection.execute("ROLLBACK")
            self.count -= sum(isinstance(entry, Row) for entry in self._uncommitted)
            self._uncommitted = []
            raise self._unwritable(f"the record {self.folder / FILE} cannot", error) from error

    def _unwritable(self, what: str, error: Exception) -> RecordError:
        return RecordError(
            f"{what} be written ({error}); nothing recorded so far is lost: mend the cause (free "
            f"disk space?) and go on with `{resume_command(self.folder)}`"
        )

    def settle(self) -> None:
        """Move what was written so far out of the write-ahead log: done once the header is
        written, so that a study is one wherever the log is torn later."""
        assert self._connection is not None, "the record is closed"
        try:
            database.settle(self._connection)
        except sqlite3.Error as error:
            raise self._unwritable(f"the record {self.folder / FILE} cannot", error) from error

    def back_up(self) -> None:
        """Put on disk, and verify, what is new in the backup."""
        assert self._backup is not None, "the record is closed"
        self.commit()
        try:
            self._backup.verify()
        except OSError as error:
            raise self._unwritable(f"the backup {self._backup.path} cannot", error) from error

    def withdraw(self) -> None:
        """Take the header back: the study never began, and its name is free again."""
        assert not self.count, "a study with events has begun"
        (self.folder / backup.FILE).unlink(missing_ok=True)
        self.drop_meta("header")

    def close(self) -> None:
        """Close the file and let go of the lock; idempotent."""
        if self._connection is not None:
            with suppress(RecordError):  # which was raised when it mattered
                self.commit()
            with suppress(sqlite3.Error):  # somebody reads it
                self._connection.execute("PRAGMA journal_mode = DELETE")
            self._connection.close()
            self._connection = None
        if self._backup is not None:
            self._backup.close()
        self._lock.release()

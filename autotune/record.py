"""The durable log of a study: every decision before it is carried out, every observation as it
arrives. A study is what folding this log gives, so nothing else need survive a kill.

One SQLite file in WAL mode, synced at every commit, with one writer at a time (the driver, which
holds a file lock). Rows are only ever added; each carries a checksum, so that a flipped byte is
noticed and the file replaced by its last verified copy.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import time
import zlib
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

from autotune.plugins.search import (
    Budget,
    Decided,
    Doubt,
    Evaluate,
    Evaluated,
    Event,
    Evicted,
    Extended,
    Failed,
    Finalists,
    Frozen,
    Lost,
    Measure,
    Observed,
    Origin,
    Restarted,
    Start,
    Stop,
    Thaw,
)

FILE = "record.sqlite"
BACKUP = "record.backup.sqlite"
LOCK = "driver.lock"
FORMAT = 1
"""Layout of the file. A record of another format is refused, never guessed at."""

_EVENTS: dict[str, type] = {
    t.__name__.lower(): t
    for t in (Decided, Observed, Frozen, Evicted, Evaluated, Failed, Lost, Restarted, Extended)
}
_DECISIONS: dict[str, type] = {
    t.__name__.lower(): t for t in (Start, Thaw, Finalists, Doubt, Evaluate, Measure, Stop)
}

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

# SQLite's locks and shared memory do not hold on these (https://www.sqlite.org/wal.html, point 2).
_NETWORK = {
    *("nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ceph", "lustre", "glusterfs", "beegfs"),
    *("gpfs", "orangefs", "ncpfs", "9p", "davfs", "fuse.sshfs", "fuse.glusterfs", "fuse.ceph"),
    *("fuse.s3fs", "fuse.gcsfuse", "fuse.davfs2", "fuse.rclone", "fuse.goofys", "fuse.juicefs"),
}


class RecordError(Exception):
    """The record cannot be opened, read or written; the message says why and what to do."""


class Busy(RecordError):
    """Another driver runs the study."""


class Damaged(RecordError):
    """The file's content is not what was written."""


# --- events as JSON -------------------------------------------------------------------------


def _plain_number(value: Any) -> Any:
    # Metrics come from users' code, where numpy and torch scalars are common.
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{value!r} of type {type(value).__name__} cannot be recorded")


def _shallow(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in fields(value)}


def event_to_plain(event: Event) -> dict[str, Any]:
    """An event as JSON-ready values, with its ``kind``; exact, NaN and infinities included."""
    plain: dict[str, Any] = {"kind": type(event).__name__.lower(), **_shallow(event)}
    if isinstance(event, Decided):
        decision = event.decision
        plain["decision"] = {"kind": type(decision).__name__.lower(), **_shallow(decision)}
        if isinstance(decision, Start) and decision.origin is not None:
            plain["decision"]["origin"] = _shallow(decision.origin)
    elif isinstance(event, Extended):
        plain["budget"] = _shallow(event.budget)
    return plain


def event_from_plain(plain: Mapping[str, Any]) -> Event:
    """Inverse of `event_to_plain`. Raises `RecordError` for a kind that this version lacks."""
    values = dict(plain)
    kind = values.pop("kind", None)
    try:
        if kind == "decided":
            decision = dict(values["decision"])
            if decision["kind"] == "finalists":
                decision["trials"] = tuple(decision["trials"])  # which JSON made a list
            if decision.get("origin") is not None:
                decision["origin"] = Origin(**decision["origin"])
            values["decision"] = _DECISIONS[decision.pop("kind")](**decision)
        elif kind == "extended":
            values["budget"] = Budget(**values["budget"])
        event: Event = _EVENTS[str(kind)](**values)
    except (KeyError, TypeError) as error:
        raise RecordError(
            f"the record holds an event that this version of autotune cannot read "
            f"(kind {kind!r}: {error}); use the version that wrote it"
        ) from error
    return event


def _dump(value: Any) -> str:
    return json.dumps(value, default=_plain_number, separators=(",", ":"))


def _checksum(*parts: object) -> int:
    return zlib.crc32("\x1f".join(map(str, parts)).encode())


# --- where it lies --------------------------------------------------------------------------


def file_system(path: Path, mounts: str | None = None) -> str | None:
    """The type of the file system that holds `path`, e.g. ``ext4``; None where the system does
    not tell. `mounts` is the text of Linux' ``/proc/self/mountinfo``."""
    if mounts is None:
        try:
            mounts = Path("/proc/self/mountinfo").read_text()
        except OSError:
            return None
    resolved = Path(os.path.realpath(path))
    longest, found = -1, None
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        mount = Path(before.split()[4].encode().decode("unicode_escape"))
        if (mount == resolved or mount in resolved.parents) and len(mount.parts) >= longest:
            longest, found = len(mount.parts), after.split()[0]
    return found


def refuse_network(folder: Path) -> None:
    """Raises `RecordError` if `folder` lies on a network file system."""
    kind = file_system(folder)
    if kind in _NETWORK:
        raise RecordError(
            f"{folder} lies on a network file system ({kind}), where SQLite's locks do not hold "
            f"and a kill may destroy the record; put the studies on a local disk "
            f"(--folder PATH, or folder=PATH in Python)"
        )


class DriverLock:
    """Held by the one driver of a study, and let go by the system when the driver dies."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        if not self._locked():
            holder = os.read(self._descriptor, 64).decode(errors="replace").strip()
            os.close(self._descriptor)
            raise Busy(
                f"study {folder.name!r} is being run by another driver"
                f"{f' (process {holder})' if holder else ''}; wait for it, or stop it first "
                f"({folder})"
            )
        try:
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, str(os.getpid()).encode(), 0)
        except OSError as error:
            self.release()
            raise RecordError(f"no record can be kept in {folder}: {error}") from error

    def _locked(self) -> bool:
        # More than once: `driver` holds the lock for a moment to see whether it is free, and so
        # does a worker of a killed driver that was just being started.
        for wait in (0.0, 0.02, 0.1, 0.4):
            time.sleep(wait)
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue
            return True
        return False

    def release(self) -> None:
        """Let go; idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def driver(folder: Path) -> int | None:
    """The process id of the driver that runs a study now, None if none does."""
    try:
        with open(folder / LOCK) as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return int(lock.read() or 0)
    except OSError:
        pass
    return None


# --- the file -------------------------------------------------------------------------------


def _connect(path: Path, write: bool) -> sqlite3.Connection:
    # A folder that may not be written to cannot hold the shared-memory file that WAL needs.
    mode = "rw" if write else ("ro" if os.access(path.parent, os.W_OK) else "ro&immutable=1")
    if "immutable" in mode and path.with_name(FILE + "-wal").exists():
        raise RecordError(
            f"{path.parent} may not be written to and its last driver was killed, so that the "
            f"newest events lie in {FILE}-wal: copy the folder to a place you may write to"
        )
    try:
        connection = sqlite3.connect(
            f"{path.resolve().as_uri()}?mode={mode}", uri=True, isolation_level=None, timeout=30.0
        )
    except sqlite3.Error as error:
        raise RecordError(f"{path} cannot be opened: {error}") from error
    if write:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
        except sqlite3.Error:
            connection.close()
            raise
    return connection


def _read(connection: sqlite3.Connection) -> tuple[list[Event], dict[str, Any]]:
    """Everything in the file, verified. Raises `Damaged`."""
    try:
        # One read transaction, so that a reader beside a running driver sees one state.
        connection.execute("BEGIN")
        try:
            if (verdict := connection.execute("PRAGMA quick_check").fetchone()[0]) != "ok":
                raise Damaged(f"SQLite's check says: {verdict}")
            meta_rows = connection.execute("SELECT key, json, checksum FROM meta").fetchall()
            rows = connection.execute(
                "SELECT seq, kind, json, checksum FROM events ORDER BY seq"
            ).fetchall()
        finally:
            connection.execute("COMMIT")
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        if isinstance(error, sqlite3.OperationalError) and "locked" in str(error):
            raise RecordError(f"the record is locked: {error}") from error
        raise Damaged(str(error)) from error
    meta = {}
    for key, text, checksum in meta_rows:
        if checksum != _checksum(key, text):
            raise Damaged(f"the entry {key!r} has changed since it was written")
        meta[key] = json.loads(text)
    events = []
    for expected, (seq, kind, text, checksum) in enumerate(rows):
        if seq != expected or checksum != _checksum(seq, kind, text):
            raise Damaged(f"event {expected} is missing or has changed since it was written")
        events.append(event_from_plain({"kind": kind, **json.loads(text)}))
    if meta.get("format", FORMAT) != FORMAT:
        raise RecordError(
            f"the record has format {meta['format']}, this version of autotune reads {FORMAT}; "
            f"use the version that wrote it"
        )
    return events, meta


def exists(folder: Path) -> bool:
    """Whether the folder holds a record that was begun (its header is written)."""
    if not (folder / FILE).is_file():
        return False
    if (folder / BACKUP).exists():
        return True  # however damaged the file may be, which opening it will say
    connection = _connect(folder / FILE, write=False)
    try:
        return bool(connection.execute("SELECT 1 FROM meta WHERE key = 'header'").fetchone())
    except sqlite3.OperationalError:
        return False  # killed before the tables were made
    except sqlite3.DatabaseError:
        return True
    finally:
        connection.close()


def peek(folder: Path, key: str) -> Any:
    """One meta entry, without looking at anything else; None if it cannot be read."""
    try:
        with closing(_connect(folder / FILE, write=False)) as connection:
            row = connection.execute("SELECT json FROM meta WHERE key = ?", (key,)).fetchone()
        return json.loads(row[0]) if row else None
    except (sqlite3.Error, ValueError, RecordError):
        return None


def read(folder: Path) -> tuple[list[Event], dict[str, Any]]:
    """The events and the meta entries of a study, also while a driver runs. Changes nothing.

    Raises:
        RecordError: no record there, or damaged.
    """
    if not exists(folder):
        raise RecordError(f"{folder} holds no study (no {FILE}, or killed before it began)")
    connection = _connect(folder / FILE, write=False)
    try:
        return _read(connection)
    except Damaged as error:
        raise Damaged(
            f"{folder / FILE} is damaged ({error}); `autotune resume --study {folder.name}` "
            f"puts its last verified copy in place and goes on from there"
        ) from error
    finally:
        connection.close()


class Record:
    """The log of one study, open for writing; holds the driver's lock until `close`.

    Attributes:
        events: all events so far, in order.
        meta: further facts by name, as last written.
        restored: None, or what was lost when a damaged file was replaced by its copy.
    """

    def __init__(self, folder: Path) -> None:
        """Open a study's record, or begin one. Raises `RecordError`."""
        refuse_network(folder)
        self.folder = folder
        self.events: list[Event] = []
        self.meta: dict[str, Any] = {}
        self.restored: str | None = None
        self._lock = DriverLock(folder)
        self._connection: sqlite3.Connection | None = None
        try:
            self._open()
        except BaseException as error:
            self.close()
            if isinstance(error, sqlite3.Error | OSError):
                raise RecordError(f"no record can be kept in {folder}: {error}") from error
            raise
        self._backed_up = len(self.events)

    def _open(self) -> None:
        path = self.folder / FILE
        if not exists(self.folder):
            for leftover in self.folder.glob(FILE + "*"):
                leftover.unlink()
            path.touch()
            self._connection = _connect(path, write=True)
            self._connection.executescript(_SCHEMA)
            self.set_meta("format", FORMAT)
            return
        try:
            # Looked at before it is opened for writing, which would change a damaged file.
            with closing(_connect(path, write=False)) as reader:
                self.events, self.meta = _read(reader)
            self._connection = _connect(path, write=True)
        except (Damaged, sqlite3.DatabaseError) as error:
            self._restore(error)

    def _restore(self, cause: Exception) -> None:
        path, backup = self.folder / FILE, self.folder / BACKUP
        if not backup.exists():
            raise Damaged(
                f"{path} is damaged ({cause}) and has no copy {BACKUP} yet, so the study cannot "
                f"go on; start it anew under another name"
            ) from cause
        number = 1 + len(list(self.folder.glob("record.damaged-*.sqlite")))
        os.replace(path, self.folder / f"record.damaged-{number}.sqlite")
        for suffix in ("-wal", "-shm"):
            if (beside := self.folder / (FILE + suffix)).exists():
                os.replace(beside, self.folder / f"record.damaged-{number}.sqlite{suffix}")
        path.write_bytes(backup.read_bytes())
        self._connection = _connect(path, write=True)
        self.events, self.meta = _read(self._connection)
        until = max((event.at for event in self.events), default=0.0)
        self.restored = (
            f"{path} was damaged ({cause}). Its last verified copy is in place: {len(self.events)} "
            f"events, up to second {until:.0f} of the study; what was recorded later is lost and "
            f"will be done again. The damaged file is kept as record.damaged-{number}.sqlite."
        )
        self.set_meta("restored", [*self.meta.get("restored", []), self.restored])

    def append(self, event: Event) -> Event:
        """Put an event on disk and return it as it will be read back."""
        plain = event_to_plain(event)
        kind, seq = plain.pop("kind"), len(self.events)
        text = _dump(plain)
        self._execute(
            "INSERT INTO events VALUES (?, ?, ?, ?, ?)",
            (seq, float(event.at), kind, text, _checksum(seq, kind, text)),
        )
        recorded = event_from_plain({"kind": kind, **json.loads(text)})
        self.events.append(recorded)
        return recorded

    def set_meta(self, key: str, value: Any) -> None:
        """Put a named fact on disk, in place of an earlier one of that name."""
        text = _dump(value)
        self._execute(
            "INSERT OR REPLACE INTO meta VALUES (?, ?, ?)", (key, text, _checksum(key, text))
        )
        self.meta[key] = json.loads(text)

    def drop_meta(self, key: str) -> None:
        """Take a named fact away, if there is one of that name."""
        self._execute("DELETE FROM meta WHERE key = ?", (key,))
        self.meta.pop(key, None)

    def _execute(self, statement: str, values: tuple[Any, ...]) -> None:
        assert self._connection is not None, "the record is closed"
        try:
            self._connection.execute(statement, values)
        except sqlite3.Error as error:
            raise RecordError(
                f"the record {self.folder / FILE} cannot be written ({error}); nothing recorded "
                f"so far is lost: mend the cause (free disk space?) and go on with "
                f"`autotune resume --study {self.folder.name}`"
            ) from error

    def back_up(self) -> None:
        """Renew the verified copy that a damaged record is restored from, if anything is new."""
        if len(self.events) == self._backed_up and (self.folder / BACKUP).exists():
            return
        assert self._connection is not None, "the record is closed"
        temporary = self.folder / (BACKUP + ".partial")
        temporary.unlink(missing_ok=True)
        try:
            with closing(sqlite3.connect(temporary, isolation_level=None)) as copy:
                self._connection.backup(copy)
                copy.execute("PRAGMA journal_mode = DELETE")
                _read(copy)
            with open(temporary, "rb") as handle:
                os.fsync(handle.fileno())
            os.replace(temporary, self.folder / BACKUP)
        except (sqlite3.Error, OSError) as error:
            raise RecordError(
                f"no copy of the record can be made in {self.folder} ({error}); nothing recorded "
                f"is lost: mend the cause (free disk space?) and go on with "
                f"`autotune resume --study {self.folder.name}`"
            ) from error
        self._backed_up = len(self.events)

    def withdraw(self) -> None:
        """Take the header back: the study never began, and its name is free again."""
        assert not self.events, "a study with events has begun"
        (self.folder / BACKUP).unlink(missing_ok=True)
        self.drop_meta("header")

    def close(self) -> None:
        """Close the file and let go of the lock; idempotent."""
        if self._connection is not None:
            with suppress(sqlite3.Error):  # somebody reads it
                self._connection.execute("PRAGMA journal_mode = DELETE")
            self._connection.close()
            self._connection = None
        self._lock.release()

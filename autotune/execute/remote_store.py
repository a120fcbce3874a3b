"""Checkpoints in storage that is reached by a URL: object stores, and whatever else fsspec knows.

Such storage has no atomic rename. A checkpoint is written under its final name, which carries
its content's digest, and counts once it is recorded: what a killed writer left is not recorded,
and what is torn or altered is noticed when it is loaded.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from autotune.execute.store import (
    CheckpointDamaged,
    CheckpointStore,
    Stored,
    StoreError,
    StoreUnwritable,
    digest_of,
    pack,
    parse_name,
    unpack,
)

_URL = re.compile(r"[a-z][a-z0-9+.-]*://.+")
_PAUSES = (0.5, 2.0, 8.0)
"""Seconds before an access that failed is tried again: networks do fail now and then."""

T = TypeVar("T")


class StoreUnreachable(StoreUnwritable):
    """The storage does not answer. No checkpoint is to blame."""


def open_store(folder: Path, url: str | None) -> StudyStore:
    """The checkpoints of a study: at `url`, or (None) in the study's `folder`.

    Raises:
        StoreError: it is no URL of storage, or none that can be reached from here, and what to
            do.
    """
    if url is None:
        return CheckpointStore(folder / "checkpoints")
    if url.startswith("file://"):
        path = url.removeprefix("file://")
        if not path.startswith("/") or not path.strip("/"):
            raise StoreError(
                f"{url!r} names no folder; expected an absolute path and no host, with three "
                f"slashes: file:///shared/folder"
            )
        return CheckpointStore(Path(path))
    return RemoteStore(url)


class RemoteStore:
    """The checkpoints of one study, flat in the folder at `url`. Several processes may write at
    once; nobody else writes there.

    Raises:
        StoreError: it is no URL, or the package that reaches it is missing.
    """

    def __init__(self, url: str) -> None:
        if not _URL.fullmatch(url):
            raise StoreError(
                f"{url!r} is no URL of storage; expected one such as s3://bucket/folder or "
                "file:///shared/folder"
            )
        from fsspec.core import url_to_fs

        try:
            self._files, self._folder = url_to_fs(url.rstrip("/"), use_listings_cache=False)
        except (ImportError, ValueError) as error:  # which say what to install
            raise StoreError(f"{url} cannot be reached: {error}") from error
        except Exception as error:
            raise StoreError(f"{url} cannot be reached: {type(error).__name__}: {error}") from error
        self.url = url.rstrip("/")

    @property
    def place(self) -> str:
        """Where that is, for people."""
        return self.url

    def prepare(self) -> None:
        """Make the folder where the storage has such."""
        self._tried(
            lambda: self._files.makedirs(self._folder, exist_ok=True),
            lambda error: StoreUnreachable(f"cannot make {self.url}: {error}"),
        )

    def probe(self) -> None:
        """Raise `StoreUnreachable` if nothing can be written there."""
        path = f"{self._folder}/.probe"
        self._tried(
            lambda: self._files.pipe_file(path, b"probe"),
            lambda error: StoreUnreachable(f"cannot write to {self.url}: {error}"),
        )
        with suppress(Exception):
            self._files.rm_file(path)

    def where(self, name: str) -> str:
        """The URL of a checkpoint. Refuses what is not a checkpoint's name."""
        parse_name(name)
        return f"{self.url}/{name}"

    def save(
        self, trial: int, step: int, content: Mapping[str, Any], room: int | None = None
    ) -> Stored:
        """Write a checkpoint; as `CheckpointStore.save`."""
        stored, data = pack(trial, step, content, room)
        self._write(stored.name, data)
        return stored

    def put(self, name: str, data: bytes) -> str:
        """Write a checkpoint that a worker packed elsewhere. Raises as `save` does."""
        unpack(name, data)
        self._write(name, data)
        return name

    def get(self, name: str) -> bytes:
        """The bytes of a checkpoint. Raises `CheckpointDamaged` if it is missing."""
        path = self._path(name)

        def failure(error: Exception) -> StoreError:
            missing = isinstance(error, FileNotFoundError)
            kind = CheckpointDamaged if missing else StoreUnreachable
            return kind(f"checkpoint {self.where(name)} cannot be read: {error}")

        data: bytes = self._tried(lambda: self._files.cat_file(path), failure)
        return data

    def load(self, name: str) -> dict[str, Any]:
        """A checkpoint's content, tensors on the CPU. Raises `CheckpointDamaged`."""
        return unpack(name, self.get(name))

    def intact(self, name: str) -> bool:
        """As `CheckpointStore.intact`; storage that cannot be reached has damaged nothing."""
        try:
            data = self._files.cat_file(self._path(name))
        except FileNotFoundError:
            return False
        except Exception:  # of whatever library reaches the storage
            return True
        return digest_of(data) == parse_name(name)[2]

    def delete(self, name: str) -> bool:
        """As `CheckpointStore.delete`."""
        path = self._path(name)
        try:
            self._files.rm_file(path)
        except Exception:  # of whatever library reaches the storage; some mind that it is gone
            with suppress(Exception):
                return not self._files.exists(path)
            return False
        return True

    def sweep(self, trial: int, keep: Container[str]) -> Sequence[Stored]:
        """As `CheckpointStore.sweep`."""
        others = (s for s in self.list() if s.trial == trial and s.name not in keep)
        return [stored for stored in others if not self.delete(stored.name)]

    def list(self) -> list[Stored]:
        """All checkpoints, by trial and step."""
        self._files.invalidate_cache()
        found = []
        for entry in self._tried(
            self._entries,
            lambda error: StoreUnreachable(f"cannot list {self.url}: {error}"),
        ):
            name = entry["name"].rsplit("/", 1)[-1]
            with suppress(CheckpointDamaged):
                trial, step, _ = parse_name(name)
                found.append(Stored(name, trial, step, int(entry["size"] or 0)))
        return sorted(found, key=lambda stored: (stored.trial, stored.step, stored.name))

    def _entries(self) -> Sequence[Mapping[str, Any]]:
        try:
            return tuple(self._files.ls(self._folder, detail=True))
        except FileNotFoundError:  # object stores have no empty folders
            return ()

    def _path(self, name: str) -> str:
        parse_name(name)
        return f"{self._folder}/{name}"

    def _write(self, name: str, data: bytes) -> None:
        path = self._path(name)
        self._tried(
            lambda: self._files.pipe_file(path, data),
            lambda error: StoreUnreachable(f"cannot write {self.where(name)}: {error}"),
        )

    def _tried(self, access: Callable[[], T], failure: Callable[[Exception], StoreError]) -> T:
        for pause in (*_PAUSES, None):
            try:
                return access()
            except FileNotFoundError as error:
                raise failure(error) from error
            except Exception as error:  # of whatever library reaches the storage
                if pause is None or isinstance(error, PermissionError):
                    raise failure(error) from error
                time.sleep(pause)
        raise AssertionError("the last attempt returns or raises")


StudyStore: TypeAlias = CheckpointStore | RemoteStore
"""All the checkpoints of a study, on storage that outlives whoever writes them."""

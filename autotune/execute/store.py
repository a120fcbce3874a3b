"""Checkpoints on disk: whole or absent, checked when read, never unpickled.

A checkpoint is written under a temporary name, renamed, and flushed to the disk. ext4, XFS and
Btrfs flush a file's new name with it; flushing the folder too would take as long again. The name
carries a digest of the content, so that a file is noticed, when it is loaded, that was altered, or
torn by a power cut before its flush. It can hold tensors and plain values, no code
(`autotune.execute.checkpoint_file`).
"""

from __future__ import annotations

import errno
import io
import os
import re
import secrets
import shutil
from collections.abc import Container, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import xxhash

from autotune.execute.checkpoint_file import Bytes, Unstorable, decode, encode

_NAME = re.compile(r"trial-(\d{5,})-step-(\d{6,})-([0-9a-f]{32})\.safetensors")
_TEMPORARY = ".unfinished-"
_PIECE = 1 << 24
"""Bytes digested at once."""

_FULL = (errno.ENOSPC, errno.EDQUOT)


class StoreError(Exception):
    """A checkpoint cannot be written or read; the message says which and why."""


class StoreUnwritable(StoreError):
    """A checkpoint cannot be written, whatever it holds. Nothing was left behind."""


class StoreFull(StoreUnwritable):
    """There is no room for a checkpoint on the disk."""


class OverRoom(StoreError):
    """A checkpoint takes more bytes (`size`) than it was given room for. Nothing was left
    behind."""

    def __init__(self, size: int, room: int) -> None:
        super().__init__(f"a checkpoint takes {size} bytes, {room} are left to it")
        self.size = size


class CheckpointDamaged(StoreError):
    """A checkpoint is missing, torn or altered."""


@dataclass(frozen=True)
class Stored:
    """One checkpoint in a store; `size` in bytes."""

    name: str
    trial: int
    step: int
    size: int


class Store(Protocol):
    """Where a job runner keeps checkpoints."""

    def save(
        self, trial: int, step: int, content: Mapping[str, Any], room: int | None = None
    ) -> Stored:
        """Keep `content`. Raises `OverRoom` where that takes more than `room` bytes."""

    def load(self, name: str) -> dict[str, Any]:
        """The content saved under `name`."""


def checkpoint_name(trial: int, step: int, digest: str) -> str:
    """The file name of a checkpoint; `digest` is 32 hexadecimal digits."""
    return f"trial-{trial:05d}-step-{step:06d}-{digest}.safetensors"


def parse_name(name: str) -> tuple[int, int, str]:
    """(trial, step, digest) of a checkpoint's name. Raises `CheckpointDamaged` for any other."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise CheckpointDamaged(f"{name!r} is not the name of a checkpoint")
    return int(match[1]), int(match[2]), match[3]


def pack(
    trial: int, step: int, content: Mapping[str, Any], room: int | None = None
) -> tuple[Stored, bytes]:
    """A checkpoint and its bytes, for a worker that cannot see the study's folder. Raises
    `OverRoom` and `StoreError` as `CheckpointStore.save` does."""
    data = b"".join(_pieces(content, room))
    name = checkpoint_name(trial, step, digest_of(data))
    return Stored(name, trial, step, len(data)), data


def unpack(name: str, data: bytes) -> dict[str, Any]:
    """The content of `pack`. Raises `CheckpointDamaged` if the bytes are not those."""
    digest = parse_name(name)[2]
    if digest_of(data) != digest:
        raise CheckpointDamaged(f"checkpoint {name} was altered: its content has another digest")
    return _read(name, io.BytesIO(data))


class CheckpointStore:
    """The checkpoints of one study, flat in one folder.

    Several processes may write at once; each file is written by one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    @property
    def place(self) -> str:
        """Where that is, for people."""
        return str(self.folder)

    def prepare(self) -> None:
        """Make the folder, and remove what killed writers left unfinished. Only for the one
        who knows that nobody else is writing: the driver, before its workers start."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.glob(f"{_TEMPORARY}*"):
            path.unlink(missing_ok=True)

    def path(self, name: str) -> Path:
        """Where a checkpoint lies. Refuses what is not a checkpoint's name."""
        parse_name(name)
        return self.folder / name

    def save(
        self, trial: int, step: int, content: Mapping[str, Any], room: int | None = None
    ) -> Stored:
        """Write a checkpoint; it is durable when this returns.

        Args:
            content: tensors, plain values, and dicts and lists of these.
            room: bytes that it may take; never more than that is on disk.

        Raises:
            OverRoom: it takes more than `room`.
            StoreFull: there is no room on the disk.
            StoreUnwritable: the folder cannot be written to.
            StoreError: the content cannot be loaded again without running code.
        """
        return self._place(trial, step, _pieces(content, room))

    def put(self, name: str, data: bytes) -> str:
        """Write a checkpoint that a worker packed elsewhere. Raises as `save` does."""
        unpack(name, data)
        trial, step, _ = parse_name(name)
        return self._place(trial, step, [data]).name

    def get(self, name: str) -> bytes:
        """The bytes of a checkpoint, for a worker that cannot see this folder."""
        try:
            return self.path(name).read_bytes()
        except OSError as error:
            raise CheckpointDamaged(f"checkpoint {name} cannot be read: {error}") from error

    def load(self, name: str) -> dict[str, Any]:
        """A checkpoint's content, tensors on the CPU. Raises `CheckpointDamaged`."""
        path, digest = self.path(name), xxhash.xxh3_128()
        try:
            with path.open("rb") as stream:
                try:
                    content = _read(name, stream, digest)
                    sound = digest.hexdigest() == parse_name(name)[2]
                except CheckpointDamaged:
                    if self.intact(name):  # or why it cannot be loaded says little
                        raise
                    sound = False
        except OSError as error:
            raise CheckpointDamaged(f"checkpoint {path} cannot be read: {error}") from error
        if not sound:
            raise CheckpointDamaged(
                f"checkpoint {path} is damaged: its content does not match the digest in its name"
            )
        return content

    def intact(self, name: str) -> bool:
        """Whether a checkpoint is there and its content is what was written."""
        try:
            with self.path(name).open("rb") as stream:
                return _digest(stream) == parse_name(name)[2]
        except OSError:
            return False

    def delete(self, name: str) -> bool:
        """Remove a checkpoint. Whether it is gone, which it may have been before; it is not where
        nothing can be removed now."""
        return _gone(self.path(name))

    def sweep(self, trial: int, keep: Container[str]) -> Sequence[Stored]:
        """Remove what a writer of this trial that was ended left behind. Only for the one who
        knows that it has ended: the driver, whose workers train a trial one at a time. The
        checkpoints that could not be removed."""
        for path in self.folder.glob(f"{_TEMPORARY}{trial:05d}-*"):
            _gone(path)
        paths = self.folder.glob(f"trial-{trial:05d}-*.safetensors")
        left = [path for path in paths if path.name not in keep and not _gone(path)]
        return [
            Stored(path.name, *parse_name(path.name)[:2], path.stat().st_size)
            for path in left
            if _NAME.fullmatch(path.name)
        ]

    def list(self) -> list[Stored]:
        """All checkpoints, by trial and step."""
        found = []
        for path in self.folder.glob("trial-*.safetensors"):
            match = _NAME.fullmatch(path.name)
            if match:
                with suppress(FileNotFoundError):
                    found.append(
                        Stored(path.name, int(match[1]), int(match[2]), path.stat().st_size)
                    )
        return sorted(found, key=lambda stored: (stored.trial, stored.step, stored.name))

    def _place(self, trial: int, step: int, pieces: Sequence[Bytes]) -> Stored:
        """Write under a temporary name, rename, and flush."""
        temporary = self.folder / f"{_TEMPORARY}{trial:05d}-{secrets.token_hex(8)}"
        left: Path | None = temporary
        try:
            name = checkpoint_name(trial, step, digest_of(*pieces))
            with temporary.open("xb") as stream:
                stream.writelines(pieces)
                stream.flush()
                final = self.folder / name
                if final.exists():  # the same content, which stays until this is flushed
                    os.fsync(stream.fileno())
                    temporary.rename(final)
                else:
                    temporary.rename(final)
                    left = final
                    os.fsync(stream.fileno())
                left = None
            return Stored(name, trial, step, sum(map(len, pieces)))
        except OSError as error:
            if error.errno in _FULL:
                raise StoreFull(self._full_message(error)) from error
            raise StoreUnwritable(f"cannot write a checkpoint to {self.folder}: {error}") from error
        finally:
            if left is not None:
                _gone(left)

    def _full_message(self, error: OSError) -> str:
        reason = "over its quota" if error.errno == errno.EDQUOT else "full"
        try:
            usage = shutil.disk_usage(self.folder)
            room = f" ({usage.free / 2**20:.1f} of {usage.total / 2**20:.1f} MiB free)"
        except OSError:
            room = ""
        return f"the disk under {self.folder} is {reason}{room}; make room and resume the study"


def _gone(path: Path) -> bool:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return False
    return True


def checkpoint_bytes(study: Path) -> int:
    """What a study's checkpoints take on disk now, unfinished ones included."""
    sizes = {}
    for path in (study / "checkpoints").glob("*"):
        with suppress(FileNotFoundError):
            status = path.stat()
            sizes[status.st_ino] = status.st_size  # seen under both names while it is renamed
    return sum(sizes.values())


def _digest(stream: IO[bytes]) -> str:
    digest = xxhash.xxh3_128()
    while piece := stream.read(_PIECE):
        digest.update(piece)
    return digest.hexdigest()


def digest_of(*pieces: Bytes) -> str:
    """The 32 hexadecimal digits that stand in a checkpoint's name, of the bytes of its file. They
    tell of damage, not of forgery: a cryptographic digest takes longer than loading the file."""
    digest = xxhash.xxh3_128()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def _pieces(content: Mapping[str, Any], room: int | None) -> list[Bytes]:
    """The bytes of a checkpoint. Raises `OverRoom` and, for what cannot be kept, `StoreError`."""
    try:
        pieces = encode(content)
    except Unstorable as error:
        raise StoreError(str(error)) from error
    size = sum(map(len, pieces))
    if room is not None and size > room:
        raise OverRoom(size, room)
    return pieces


def _read(name: str, stream: IO[bytes], digest: Any = None) -> dict[str, Any]:
    try:
        content = decode(stream, digest)
    except OSError:
        raise
    except Exception as error:
        raise CheckpointDamaged(f"checkpoint {name} cannot be loaded: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointDamaged(f"checkpoint {name} holds a {type(content).__name__}, not a dict")
    return content

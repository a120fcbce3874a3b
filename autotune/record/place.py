"""Where a record may lie, and who may write it: a local disk, and one driver at a time."""

from __future__ import annotations

import fcntl
import os
import shlex
import time
from pathlib import Path

from autotune.record.errors import Busy, RecordError

LOCK = "driver.lock"
FOLDER = Path("autotune_studies")
"""That holds the studies, unless another is named."""

# SQLite's locks and shared memory do not hold on these (https://www.sqlite.org/wal.html, point 2).
_NETWORK = {
    *("nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ceph", "lustre", "glusterfs", "beegfs"),
    *("gpfs", "orangefs", "ncpfs", "9p", "davfs", "fuse.sshfs", "fuse.glusterfs", "fuse.ceph"),
    *("fuse.s3fs", "fuse.gcsfuse", "fuse.davfs2", "fuse.rclone", "fuse.goofys", "fuse.juicefs"),
}


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


def resume_command(folder: Path) -> str:
    """What to type to go on with the study in `folder`."""
    where = "" if folder.parent == FOLDER else f" --folder {shlex.quote(str(folder.parent))}"
    return f"autotune resume --study {folder.name}{where}"


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

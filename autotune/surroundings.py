"""What befalls a driver from outside: signals, and a disk that cannot be written to."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from autotune.execute.remote_store import RemoteStore, StudyStore
from autotune.execute.store import StoreError
from autotune.header import StudyError

_PROBE_BYTES = 1 << 20


@contextmanager
def told_of_signals(tell: Callable[[int], bool]) -> Iterator[None]:
    """Call `tell` with the number of each SIGINT and SIGTERM; if it returns False, because one
    was told of before, the process leaves at once, as a kill would."""
    # Only the main thread may set handlers; elsewhere whoever runs us sees to signals.
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if not tell(number):
            raise KeyboardInterrupt

    before = {n: signal.signal(n, handle) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_if_unwritable(study: Path, folder: Path, message: str) -> None:
    """Raises `StudyError` if nothing more can be written to `folder`: no configuration is to
    blame, and whatever else is tried would fail too. What is in flight is trained again on
    resuming."""
    probe = folder / ".unfinished-probe"
    try:
        with open(probe, "wb") as handle:
            handle.write(bytes(_PROBE_BYTES))
            handle.flush()
            os.fsync(handle.fileno())
    except OSError as error:
        raise StudyError(
            f"no checkpoint can be written any more: {message} ({error}); once that is mended, go "
            f"on with the study in {study}: what was in flight is trained again"
        ) from error
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)


def stop_if_unreachable(store: StudyStore, folder: Path) -> None:
    """Raises `StudyError` if the storage that checkpoints are kept in does not answer, for the
    same reason. `folder` is the study's."""
    if not isinstance(store, RemoteStore):
        return
    try:
        store.probe()
    except StoreError as error:
        raise StudyError(
            f"no checkpoint can be kept: {error}; once it can be reached, go on with the study in "
            f"{folder}: what was in flight is trained again"
        ) from error

"""Checkpoints and pretrained weights of workers that see neither the study's folder nor a shared
store: they come to the driver with the reports, and go to workers with the jobs."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from autotune.execute.remote_store import StudyStore
from autotune.plugins.execution import Job

PRETRAINED = "pretrained"
"""Folder of pretrained weights within a run's folder; see `RunContext.folder`."""


class Handover:
    """The driver's side.

    Args:
        folder: the study's.
        store: where checkpoints are kept for good; None: where workers write themselves.
    """

    def __init__(self, folder: Path, store: StudyStore | None) -> None:
        self._folder = folder
        self._store = store

    def files_for(self, job: Job, warm: bool, has: set[str]) -> dict[str, bytes]:
        """What a worker needs for a job, by name: the checkpoint, unless it holds it warm, and
        the study's pretrained weights that it has not got. `has` is updated.

        Raises:
            StoreError: the checkpoint cannot be read.
        """
        files: dict[str, bytes] = {}
        if self._store is not None and job.checkpoint is not None and not warm:
            files[job.checkpoint] = self._store.get(job.checkpoint)
        for path in (self._folder / PRETRAINED).rglob("*.safetensors"):
            name = str(path.relative_to(self._folder))
            if name not in has:
                files[name] = path.read_bytes()
                has.add(name)
        return files

    def keep(self, files: Mapping[str, bytes], has: set[str]) -> str | None:
        """Put what a worker made into the study's folder: only then is its job done. The name
        of pretrained weights of which the study has others, in which case the worker is of no
        use any more: checkpoints are kept as differences to them, so there can be only one.

        Raises:
            StoreError: a checkpoint cannot be written.
        """
        for name, data in files.items():
            if "/" not in name:
                assert self._store is not None
                self._store.put(name, data)
            elif not self._keep_pretrained(name, data):
                return name
            else:
                has.add(name)
        return None

    def _keep_pretrained(self, name: str, data: bytes) -> bool:
        path = self._folder / name
        if path.exists():
            return path.read_bytes() == data
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
        with temporary.open("xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.rename(path)
        return True

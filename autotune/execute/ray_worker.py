"""The actor side of the Ray executor. Imports no ray: the class is made an actor by the driver."""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch.distributed import TCPStore

from autotune.execute.handover import PRETRAINED
from autotune.execute.messages import Grants, from_plain, to_plain
from autotune.execute.opening import Opening, Parcel
from autotune.execute.store import CheckpointDamaged, Stored, pack, unpack
from autotune.plugins.execution import Done


class _HandedStore:
    """Checkpoints of a worker that does not see the study's folder: they come with the jobs
    and leave with the reports."""

    def __init__(self) -> None:
        self.given: dict[str, bytes] = {}
        self.made: dict[str, bytes] = {}

    def save(
        self, trial: int, step: int, content: Mapping[str, Any], room: int | None = None
    ) -> Stored:
        """Pack for the driver."""
        stored, data = pack(trial, step, content, room)
        self.made[stored.name] = data
        return stored

    def load(self, name: str) -> dict[str, Any]:
        """Unpack what the driver sent along. Raises `CheckpointDamaged`."""
        if name not in self.given:
            raise CheckpointDamaged(f"checkpoint {name} was not sent to its worker")
        return unpack(name, self.given[name])


class RayWorker:
    """Runs jobs in an actor. Everything that crosses its border is plain values and bytes."""

    def __init__(self) -> None:
        self._interrupted: set[int] = set()
        self._grants = Grants()
        self._handed: _HandedStore | None = None
        self._folder: Path | None = None
        self._known: set[str] = set()
        self._meeting: TCPStore | None = None

    def meet(self, size: int) -> tuple[str, int]:
        """Offer a place where the actors of a team find each other; its address."""
        import ray

        host = ray.util.get_node_ip_address()
        self._meeting = TCPStore(host, 0, size, is_master=True, wait_for_workers=False)
        return host, self._meeting.port

    def open(
        self,
        orders: dict[str, Any],
        task: Parcel,
        path: list[str],
        marker: tuple[str, str] | None,
        rank: int,
        size: int,
        meeting: tuple[str, int] | None,
    ) -> dict[str, Any]:
        """Import the task.

        Args:
            orders: the fields of an `Opening`.
            task: by value, or empty where it is to be imported; its data stays in the object
                store.
            path: the driver's import path; what exists here is made importable.
            marker: a file in the study's folder and its content, by which a worker knows that
                it sees that folder; None: take it as unseen.
            rank, size: of the actor in its team.
            meeting: what `meet` of rank 0 said; None without a team.
        """
        sys.path += [place for place in path if place not in sys.path and os.path.isdir(place)]
        import ray

        try:
            opening = Opening(**orders)
            if marker is not None and _reads(*marker):
                member = f"-{rank}" if rank else ""
                log = Path(opening.folder) / "logs" / f"worker-{opening.worker}{member}.log"
                with log.open("ab") as output:
                    os.dup2(output.fileno(), 1)
                    os.dup2(output.fileno(), 2)
            else:
                if opening.checkpoint_url is None:
                    self._handed = _HandedStore()
                self._folder = Path(tempfile.mkdtemp(prefix="autotune-"))
            place = None
            if meeting is not None:
                place = self._meeting or TCPStore(*meeting, size, is_master=False)
            self._runner = opening.runner(
                task,
                self._interrupted.__contains__,
                self._grants.wait,
                self._handed,
                self._folder,
                None if place is None else (rank, size, place),
            )
        except (Exception, SystemExit) as error:
            traceback.print_exc()
            return {
                "type": "refused",
                "error": type(error).__name__,
                "message": str(error),
                "node": socket.gethostname(),
            }
        return {
            "type": "ready",
            "shared": self._folder is None,
            "process": os.getpid(),
            "node": socket.gethostname(),
            "place": ray.get_runtime_context().get_node_id() if ray.is_initialized() else "",
        }

    def run(
        self, message: dict[str, Any], files: Mapping[str, bytes]
    ) -> Iterator[tuple[dict[str, Any], dict[str, bytes]]]:
        """Reports of a job as they happen, each with files for the driver.

        Args:
            message: the job.
            files: its checkpoint and pretrained weights, by name, where the folder is not
                shared.
        """
        job = from_plain(message)
        if self._handed is not None:
            self._handed.given = {n: data for n, data in files.items() if "/" not in n}
        self._receive({n: data for n, data in files.items() if "/" in n})
        for report in self._runner.run(job):
            made: dict[str, bytes] = {}
            if self._folder is not None and isinstance(report, Done):
                made = self._new_files()
                if self._handed is not None:
                    made, self._handed.made = {**self._handed.made, **made}, {}
            yield to_plain(report), made
        self._interrupted.discard(job.identifier)

    def follow(self, message: dict[str, Any], files: Mapping[str, bytes]) -> dict[str, Any]:
        """Train as another of the team, which reports for both; how it ended here."""
        *_, (end, _) = self.run(message, files)
        return end

    def interrupt(self, identifier: int) -> None:
        """Have a job freeze after the unit it is in. Runs beside `run`."""
        self._interrupted.add(identifier)

    def grant(self, identifier: int, room: int) -> None:
        """Let a job's checkpoint take so many bytes. Runs beside `run`."""
        self._grants.give(identifier, room)

    def _receive(self, files: Mapping[str, bytes]) -> None:
        if self._folder is None:  # another of the team does not see the study's
            return
        for name, data in files.items():
            path = self._folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            self._known.add(name)

    def _new_files(self) -> dict[str, bytes]:
        """Pretrained weights made here that the driver has not seen."""
        assert self._folder is not None
        found = {
            str(path.relative_to(self._folder)): path
            for path in (self._folder / PRETRAINED).rglob("*")
            if path.is_file() and path.suffix == ".safetensors"
        }
        new = {name: path.read_bytes() for name, path in found.items() if name not in self._known}
        self._known.update(new)
        return new


def end_process(process: int, seconds: float) -> None:
    """Wait until a process of this machine has ended; end it by force if it has not within so many
    seconds."""
    by_force = time.monotonic() + seconds
    with suppress(ProcessLookupError):
        while not _is_dead(process):
            os.kill(process, signal.SIGKILL if time.monotonic() > by_force else 0)
            time.sleep(0.01)


def _is_dead(process: int) -> bool:
    """Whether a process has ended but is still listed; not known everywhere."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return False


def _reads(path: str, content: str) -> bool:
    try:
        return Path(path).read_text() == content
    except OSError:
        return False

"""What a worker is told when it starts, wherever it runs, and what it makes of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from autotune.execute.remote_store import open_store
from autotune.execute.store import Store
from autotune.execute.task_address import load_task
from autotune.execute.task_transfer import Block, dump, dump_with_code, load
from autotune.execute.worker import JobRunner, resolve_device
from autotune.plugins import PluginError
from autotune.plugins.execution import ExecutionContext, Executor
from autotune.train import Task, TaskError
from autotune.train.team import join

Parcel = tuple[bytes, list[Block]]
"""A task by value: pickled, and the blocks of its data that are kept apart."""


@dataclass(frozen=True)
class Opening:
    """All of a worker's orders but the task itself; plain values.

    Args:
        worker: its number, from 0.
        address: of the task; None: the task comes by value. One with an address may do so too,
            to spare workers its data.
        folder: of the study, absolute.
        plugins: the (kind, name, distribution, version) it must have alike.
        device: as in `ExecutionContext`.
        objective: as in `ExecutionContext`.
        threads: of torch.
        checkpoint_url: as in `ExecutionContext`.
    """

    worker: int
    address: str | None
    folder: str
    plugins: list[list[str]]
    device: str
    objective: str | None
    threads: int
    checkpoint_url: str | None

    def runner(
        self,
        task: Parcel,
        interrupted: Callable[[int], bool],
        granted: Callable[[int], int],
        store: Store | None = None,
        folder: Path | None = None,
        team: tuple[int, int, Any] | None = None,
    ) -> JobRunner:
        """The worker's job runner.

        Args:
            task: by value; empty bytes where it is to be imported.
            interrupted, granted: as in `JobRunner`.
            store: for checkpoints (None: the study's).
            folder: for pretrained weights (None: the study's).
            team: rank, size and meeting place of workers that train each trial together.

        Raises:
            TaskError: the task cannot be imported here, or there is no such device.
            PluginError: a plugin is missing or of another version.
        """
        torch.set_num_threads(self.threads)
        if self.plugins:
            from autotune.plugins.discovery import verify

            verify([(kind, name, dist, version) for kind, name, dist, version in self.plugins])
        opened = self._task(task)
        home = Path(self.folder)
        rank, size = (0, 1) if team is None else team[:2]
        device = resolve_device(self.device, self.worker * size + rank)
        return JobRunner(
            opened,
            store or open_store(home, self.checkpoint_url),
            device,
            folder or home,
            self.objective,
            interrupted,
            granted,
            team=None if team is None else join(rank, size, device, team[2]),
        )

    def _task(self, sent: Parcel) -> Task:
        if self.address is None:
            return load(*sent)
        if sent[0]:
            with suppress(Exception):  # such as a module that lies beside the task's, not here
                return load(*sent)
        return load_task(self.address)


def check_options(executor: type[Executor], context: ExecutionContext) -> None:
    """Raise `PluginError` for an option that the executor does not have, or that is not what
    every executor's option of that name is."""
    for option, value in context.options.items():
        if option not in executor.option_names:
            known = ", ".join(executor.option_names) or "none"
            raise PluginError(f"executor {executor.name} has no option {option!r}; it has {known}")
        if expected := _unfit(option, value):
            raise PluginError(
                f"executor {executor.name}: {option} is {value!r}; expected {expected}"
            )


def _unfit(option: str, value: Any) -> str | None:
    """What is expected of an option in the place of this value; None if it may be that. An
    option of another name is its executor's to judge."""
    number = type(value) in (int, float)
    if option.endswith("_seconds"):
        return None if number and value > 0 else "seconds above 0"
    if option == "threads":
        return None if type(value) is int and value > 0 else "a whole number above 0"
    if option in ("num_cpus", "num_gpus"):
        return None if number and 0 <= value < math.inf else "a number from 0 on"
    if option == "address":
        return None if value is None or isinstance(value, str) else "text such as 'HOST:PORT'"
    if option == "shared_folder":
        return None if isinstance(value, bool) else "true or false"
    return None


def opening(context: ExecutionContext, worker: int, address: str | None, threads: int) -> Opening:
    """The orders of one worker."""
    return Opening(
        worker=worker,
        address=address,
        folder=str(Path(context.folder).absolute()),
        plugins=[list(version) for version in context.plugins],
        device=context.device,
        objective=context.objective,
        threads=threads,
        checkpoint_url=context.checkpoint_url,
    )


def address_or_parcel(
    task: Any, apart: bool = False, loaded: Any = None
) -> tuple[str | None, Parcel]:
    """The address of a task, if it is given by that, and the task by value, if it is not or if
    workers that share memory are spared its data so.

    It goes over a pipe to workers that this process started, or through Ray's object store, and
    never to disk.

    Args:
        apart: keep the blocks of its data out of the pickled bytes.
        loaded: the task itself, where it is given by its address.

    Raises:
        TaskError: it is no task, or holds something that cannot be sent.
    """
    blocks: list[Block] = []
    if isinstance(task, str):
        sent = dump_with_code(task, loaded, blocks) if apart else None
        return task, (sent or b"", blocks)
    return None, (dump(task, blocks if apart else None), blocks)


def refusal(error: str, message: str, worker: str) -> Exception:
    """What the driver raises when a worker could not start.

    Args:
        error: name of the class of what was raised there; message: its text.
        worker: how people call it, with where its output is.
    """
    if error == "TaskError":
        return TaskError(f"{message} (on {worker})")
    if error == "PluginError":
        return PluginError(f"{message} (on {worker})")
    return PluginError(f"{worker} cannot start: {error}: {message}")

"""How a task reaches a worker: by its importable address, else by value."""

from __future__ import annotations

from typing import Any

from autotune.execute.task_address import as_task
from autotune.train.task import TaskError


def address_or_bytes(task: Any) -> tuple[str | None, bytes]:
    """(address, nothing) of a task given by its address, else (None, its pickled bytes).

    The bytes go over a pipe to workers that this process started, and never to disk.

    Raises:
        TaskError: it is no task, or holds something that cannot be sent.
    """
    if isinstance(task, str):
        return task, b""
    import cloudpickle

    try:
        return None, cloudpickle.dumps(as_task(task))
    except TaskError:
        raise
    except Exception as error:
        raise TaskError(
            f"the task cannot be sent to workers: {type(error).__name__}: {error}. Make what "
            "cannot be pickled (open files, locks, connections) inside the model or data factory"
        ) from error

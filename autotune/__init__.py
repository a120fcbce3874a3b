"""autotune: freeze-thaw AutoML for PyTorch.

`tune` finds the best way to train or adapt a model; `resume` goes on with a study that was
interrupted; `load` reads one. Everything is imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autotune.api import load, resume, tune
    from autotune.header import StudyError
    from autotune.plugins.search import Budget, Objective
    from autotune.result import Point, Result, StudyView
    from autotune.space import Space
    from autotune.train import Data, Run, RunContext, Task, TorchTask, Trainable, task

__all__ = [
    "Budget",
    "Data",
    "Objective",
    "Point",
    "Result",
    "Run",
    "RunContext",
    "Space",
    "StudyError",
    "StudyView",
    "Task",
    "TorchTask",
    "Trainable",
    "load",
    "resume",
    "task",
    "tune",
]

_WHERE = {
    **dict.fromkeys(("load", "resume", "tune"), "autotune.api"),
    "StudyError": "autotune.header",
    **dict.fromkeys(("Budget", "Objective"), "autotune.plugins.search"),
    **dict.fromkeys(("Point", "Result", "StudyView"), "autotune.result"),
    "Space": "autotune.space",
    **dict.fromkeys(
        ("Data", "Run", "RunContext", "Task", "TorchTask", "Trainable", "task"), "autotune.train"
    ),
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    found = getattr(import_module(_WHERE[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return __all__

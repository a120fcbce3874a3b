"""Training: the tasks that can be tuned, and the loop that applies plugins to a model."""

from autotune.train.data import Data
from autotune.train.state import StateError
from autotune.train.task import NotFinite, Part, Run, RunContext, Task, TaskError, task
from autotune.train.torch_task import TorchTask
from autotune.train.trainable import Trainable, as_task

__all__ = [
    "Data",
    "NotFinite",
    "Part",
    "Run",
    "RunContext",
    "StateError",
    "Task",
    "TaskError",
    "TorchTask",
    "Trainable",
    "as_task",
    "task",
]

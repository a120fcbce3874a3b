"""`Trainable`: a user's own training loop, frozen and thawed by the engine."""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from autotune.space import Configuration
from autotune.train.evaluation import as_number
from autotune.train.generators import Generators, derive_seed, isolated
from autotune.train.state import from_plain, to_plain
from autotune.train.task import NotFinite, Part, Run, RunContext, Task, TaskError


class Trainable(ABC):
    """Your own loop: set up, step, state, load.

    The class itself is what is tuned (``autotune.tune(MyLoop, space, ...)``); it is made
    without arguments. Between calls the global random generators of Python, NumPy and torch
    are kept and frozen by the engine; every other generator belongs into `state`.
    """

    unit: ClassVar[Literal["epoch", "step"]] = "epoch"

    @abstractmethod
    def setup(self, configuration: Configuration, context: RunContext) -> None:
        """Prepare to train a configuration from the start, on ``context.device``."""

    @abstractmethod
    def step(self) -> Mapping[str, float]:
        """Train one unit and return its metrics, say ``{"validation_loss": 0.3}``."""

    @abstractmethod
    def state(self) -> Mapping[str, Any]:
        """Everything needed to go on: tensors, NumPy arrays, numbers, strings, None, and dicts
        and lists of these."""

    @abstractmethod
    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`, after `setup` with the same configuration."""

    def static(self) -> Mapping[str, float]:
        """Metrics measured once, such as the number of parameters."""
        return {}

    def evaluate(self, evaluation: Configuration, part: Part) -> Mapping[str, float]:
        """Metrics on one part of a shifted stream under an evaluation configuration. Must
        leave the training as it was."""
        return {}

    def latency(self, evaluation: Configuration) -> tuple[float, float]:
        """Median milliseconds of a prediction and half the interquartile range."""
        raise TaskError(
            f"latency_ms is an objective, but {type(self).__name__} does not define latency()"
        )

    def test(self, evaluation: Configuration) -> Mapping[str, float]:
        """Metrics on a test split."""
        return {}

    def model(self) -> nn.Module | None:
        """The trained model in eval mode, if there is one."""
        return None

    @classmethod
    def fingerprint(cls) -> str:
        """A short digest of the data, compared on resuming."""
        return ""


class TrainableTask(Task):
    """The task that a `Trainable` class stands for."""

    def __init__(self, trainable: type[Trainable]) -> None:
        if trainable.unit not in ("epoch", "step"):
            raise TaskError(
                f"{trainable.__name__}.unit is {trainable.unit!r}; expected 'epoch' or 'step'"
            )
        self.trainable = trainable
        self.unit = trainable.unit

    def open(self, configuration: Configuration, context: RunContext) -> TrainableRun:
        """A run at step 0."""
        return TrainableRun(self.trainable, configuration, context)

    def fingerprint(self) -> str:
        """What the class says."""
        return self.trainable.fingerprint()


class TrainableRun(Run):
    """One trial of a user's own loop."""

    def __init__(
        self, trainable: type[Trainable], configuration: Configuration, context: RunContext
    ) -> None:
        self._step = 0
        self._seed = context.seed
        self._device = torch.device(context.device)
        self._generators = Generators(context.seed, self._device)
        with self._generators.active():
            self._loop = trainable()
            self._loop.setup(configuration, context)

    @property
    def step(self) -> int:
        """Units completed."""
        return self._step

    def train(self) -> Mapping[str, float]:
        """One `Trainable.step`.

        Raises:
            NotFinite: a metric whose name ends in ``loss`` is NaN or infinite.
        """
        with self._generators.active():
            metrics = self._metrics(self._loop.step(), "step")
        self._step += 1
        for name, value in metrics.items():
            if name.endswith("loss") and not math.isfinite(value):
                raise NotFinite(f"{name} is {value} after unit {self._step}")
        return metrics

    def freeze(self) -> dict[str, Any]:
        """The loop's state and its generators."""
        with self._generators.active():
            state = to_plain(self._loop.state(), "state")
        return {
            "step": self._step,
            "state": state,
            "generators": to_plain(self._generators.state_dict(), "generators"),
        }

    def thaw(self, state: Mapping[str, Any]) -> None:
        """Go on from `freeze`."""
        with self._generators.active():
            self._loop.load(from_plain(state["state"]))
        self._generators.load_state_dict(from_plain(state["generators"]))
        self._step = state["step"]

    def static(self) -> Mapping[str, float]:
        """`Trainable.static`."""
        return self._metrics(self._apart("static"), "static")

    def evaluate(self, evaluation: Configuration, part: Part) -> Mapping[str, float]:
        """`Trainable.evaluate`."""
        return self._metrics(self._apart("evaluate", evaluation, part), "evaluate")

    def latency(self, evaluation: Configuration) -> tuple[float, float]:
        """`Trainable.latency`."""
        median, spread = self._apart("latency", evaluation)
        return float(median), float(spread)

    def test(self, evaluation: Configuration) -> Mapping[str, float]:
        """`Trainable.test`."""
        return self._metrics(self._apart("test", evaluation), "test")

    def model(self) -> nn.Module | None:
        """`Trainable.model`."""
        return self._apart("model")

    def _apart(self, method: str, *arguments: Any) -> Any:
        """Call a method that is not part of training: with generators of its own."""
        with isolated(derive_seed(method, self._seed), self._device):
            return getattr(self._loop, method)(*arguments)

    def _metrics(self, metrics: Any, method: str) -> dict[str, float]:
        where = f"{type(self._loop).__name__}.{method}()"
        if not isinstance(metrics, Mapping):
            raise TaskError(
                f"{where} returned {type(metrics).__name__}; expected a mapping of metric "
                "names to numbers"
            )
        return {
            str(name): as_number(value, f"{where}: the metric {name!r}")
            for name, value in metrics.items()
        }


def _marked(thing: Any) -> bool:
    # In the function's own dictionary: objects that have every attribute are not marked.
    return inspect.isfunction(thing) and thing.__dict__.get("__autotune_task__") is True


def as_task(thing: Any) -> Task:
    """The task that `thing` stands for: a `Task`, a `Trainable` class, or a function marked
    with `task` that returns either.

    Raises:
        TaskError: it is none of these.
    """
    if isinstance(thing, Task):
        return thing
    if isinstance(thing, type) and issubclass(thing, Trainable):
        return TrainableTask(thing)
    if _marked(thing):
        made = thing()
        if _marked(made):
            raise TaskError(f"{thing!r} returned another function; expected a task")
        return as_task(made)
    hint = ""
    if isinstance(thing, Trainable):
        hint = "; give the class, not an object of it"
    elif callable(thing):
        hint = "; mark the function with @autotune.task if it returns a task"
    raise TaskError(
        f"{thing!r} is no task: expected a TorchTask, a Trainable class, or a function marked "
        f"@autotune.task{hint}"
    )

"""What a tuner needs of the thing it tunes: a `Task` that opens runs, and the `Run` itself.

`TorchTask` (a user's model, our loop) and `Trainable` (a user's own loop) are the two tasks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from torch import nn

from autotune.plugins import ModelInfo
from autotune.space import Configuration

if TYPE_CHECKING:
    from autotune.train.team import Team

Part = Literal["select", "report"]


class NotFinite(Exception):
    """The training loss or the primary metric is NaN or infinite."""


class TaskError(Exception):
    """The user's task is at fault; the message says where and what was expected."""


@dataclass(frozen=True)
class RunContext:
    """What a run is opened with.

    Args:
        seed: fixes initial weights, sample order and augmentation.
        horizon: in units (epochs or steps, as the task counts).
        device: a torch device string.
        folder: the study's folder; pretrained weights are made once and kept under its
            ``pretrained/`` for all runs (None: kept nowhere).
        team: the processes that train this run together, each on its part of every batch;
            None: this one alone.
    """

    seed: int
    horizon: int
    device: str = "cpu"
    folder: Path | None = None
    team: Team | None = None


class Run(ABC):
    """One trial being trained on one worker."""

    @property
    @abstractmethod
    def step(self) -> int:
        """Units completed."""

    @abstractmethod
    def train(self) -> Mapping[str, float]:
        """Train one more unit and return the curve metrics after it. Raises `NotFinite`."""

    @abstractmethod
    def freeze(self) -> dict[str, Any]:
        """The whole state: tensors, plain values, and dicts and lists of these."""

    @abstractmethod
    def thaw(self, state: Mapping[str, Any]) -> None:
        """Continue from `freeze`, in a run just opened with the same configuration and context;
        bit for bit on the same CPU type, versions, threads. `state` is left as it is."""

    def branch(self, state: Mapping[str, Any]) -> None:
        """Continue from `freeze` of another run, in a run just opened with the same
        configuration and context but for the schedule and the horizon, which are its own from
        here on: a cooldown branched off a checkpoint. The run may then be frozen and thawed
        like any other, without the one it comes from. `state` is left as it is.

        The engine, which branches trial B off trial A at step s, opens a run with A's seed, A's
        configuration with B's schedule in it, and B's horizon; calls `branch` with the state
        in A's checkpoint of step s; and from B's first checkpoint on calls `thaw`.

        Raises:
            TaskError: this kind of run cannot be branched.
        """
        raise TaskError(f"a {type(self).__name__} cannot be branched off another run's checkpoint")

    def refine(self, state: Mapping[str, Any]) -> None:
        """Take the schedule that the gradient norms in another run's `freeze` suggest, in a run
        just opened, before its first unit. Frozen and thawed like any other from then on.

        Raises:
            TaskError: this kind of run has no schedule that could be refined.
        """
        raise TaskError(f"a {type(self).__name__} has no schedule that could be refined")

    def static(self) -> Mapping[str, float]:
        """Metrics measured once (trainable_parameters, parameters, ...)."""
        return {}

    def evaluate(self, evaluation: Configuration, part: Part) -> Mapping[str, float]:
        """Metrics on one part of the shifted stream under an evaluation configuration.
        Leaves the run as it was."""
        return {}

    def latency(self, evaluation: Configuration) -> tuple[float, float]:
        """Median milliseconds of a prediction and half the interquartile range, after
        warm-up."""
        raise NotImplementedError

    def test(self, evaluation: Configuration) -> Mapping[str, float]:
        """Metrics on the test split (and the test part of shifted streams)."""
        return {}

    def model(self) -> nn.Module | None:
        """The trained model in eval mode, adapters folded in where they can be."""
        return None


class Task(ABC):
    """What is tuned. `unit` says what a run's step counts."""

    unit: Literal["epoch", "step"] = "epoch"

    @abstractmethod
    def open(self, configuration: Configuration, context: RunContext) -> Run:
        """A run of a training configuration, at step 0."""

    def model_info(self, configuration: Configuration) -> ModelInfo | None:
        """Facts about the model for `Plugin.supports`; None if there is no model to see."""
        return None

    def fingerprint(self) -> str:
        """A short digest of the data, compared on resuming."""
        return ""


T = TypeVar("T")


def task(function: Callable[[], T]) -> Callable[[], T]:
    """Mark a function without arguments, which returns a `Task`, as one that a study file may
    name."""
    function.__autotune_task__ = True  # type: ignore[attr-defined]
    return function

"""What cannot be asked of a study: each is refused in words, before anything is begun."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autotune.execute.remote_store import open_store
from autotune.execute.store import StoreError
from autotune.header import StudyError
from autotune.plugins import ModelInfo
from autotune.plugins.constraints import Constraint
from autotune.plugins.search import (
    Budget,
    Objective,
    is_shifted,
    known_objectives,
    misspelt_metric,
)
from autotune.space.errors import nearest
from autotune.train.torch_task import TorchTask


def check_objectives(objectives: Sequence[Objective], constraints: Sequence[Constraint]) -> None:
    """Raises `StudyError` unless one objective is a curve, none stands twice, and no constraint is
    of a misspelt metric."""
    if not any(objective.kind == "curve" for objective in objectives):
        raise StudyError(
            "objectives: at least one must be a curve (change with training), such as "
            "validation_loss; it drives the search"
        )
    names = [objective.name for objective in objectives]
    if double := sorted({name for name in names if names.count(name) > 1}):
        raise StudyError(f"objectives: {double[0]!r} stands twice")
    for constraint in constraints:
        if (close := misspelt_metric(constraint.name, objectives)) is not None:
            raise StudyError(
                f"constraints: {str(constraint)!r}: unknown metric {constraint.name!r}; did you "
                f"mean {close!r}?"
            )


def known_objective(name: str) -> Objective:
    """One of the objectives that need no description. Raises `StudyError`."""
    known = known_objectives()
    if name not in known:
        raise StudyError(
            f"objectives: {name!r} is not one that autotune knows ({', '.join(known)}); describe "
            f"your own by name, direction and kind: Objective({name!r}, 'minimize', 'curve')"
        )
    return known[name]


def check_stream(objectives: Sequence[Objective], info: ModelInfo | None, key: str) -> None:
    """Raises `StudyError` for an objective that the task does not measure as it is asked for:
    alone, at evaluations, or on a shifted stream.

    Args:
        info: of the task's model; None for a task that is no TorchTask.
        key: where the objectives stand, for the message.
    """
    for objective in objectives:
        if objective.alone and objective.name != "latency_ms":
            raise StudyError(
                f"{key}: {objective.name!r} is measured alone, but only 'latency_ms' can be"
            )
        if info is None or objective.kind != "evaluation" or objective.alone:
            continue
        if not objective.name.startswith("shifted_"):
            raise StudyError(
                f"{key}: {objective.name!r} is of kind evaluation, but what a TorchTask "
                f"measures then is shifted_loss, shifted_accuracy and its own metrics with "
                f"shifted_ before their names"
            )
    if info is None or info.shifted:
        return
    for objective in objectives:
        if is_shifted(objective.name):
            raise StudyError(
                f"{key}: {objective.name!r} is measured on a shifted stream, but the task has none "
                f"(Data(shifted=...))"
            )


def check_measured(constraints: Sequence[Constraint], task: TorchTask) -> None:
    """Raises `StudyError` for a constraint of what the task does not measure."""
    measured = ["training_loss", "parameters", *task.metrics, *known_objectives()]
    measured += [f"shifted_{name}" for name in ("loss", "accuracy", *task.metrics)]
    if task.training_metrics:
        measured += [f"training_{name}" for name in ("accuracy", *task.metrics)]
    for constraint in constraints:
        name = constraint.name  # of one stream of several: shifted_loss.NAME
        if (name.partition(".")[0] if is_shifted(name) else name) not in measured:
            close = nearest(constraint.name, measured)
            raise StudyError(
                f"constraints: {str(constraint)!r}: the task does not measure "
                f"{constraint.name!r}; it measures {', '.join(dict.fromkeys(measured))}"
                + (f" (did you mean {close!r}?)" if close else "")
            )


def check_budget(budget: Budget) -> None:
    """Raises `StudyError` unless every limit is above 0 and one of training is given."""
    limits = {
        "epochs or steps": budget.units,
        "trials": budget.trials,
        "evaluations": budget.evaluations,
    }
    for name, value in limits.items():
        if value is not None and (not isinstance(value, int) or value < 1):
            raise StudyError(f"budget: {name} is {value!r}; expected a whole number above 0")
    if budget.seconds is not None and not 0 < budget.seconds < math.inf:
        raise StudyError(f"budget: {budget.seconds!r} seconds; expected more than 0")
    if budget.gpu_seconds is not None and not 0 < budget.gpu_seconds < math.inf:
        raise StudyError(f"budget: {budget.gpu_seconds!r} GPU-seconds; expected more than 0")
    if budget.units is budget.trials is budget.seconds is budget.gpu_seconds is None:
        raise StudyError(
            "budget: expected at least one of epochs (or steps), trials, minutes and gpu_seconds"
        )


def check_gpus(budget: Budget, device: str, executor: Mapping[str, Any]) -> None:
    """Raises `StudyError` for a budget in GPU-seconds where no worker can hold a GPU."""
    if budget.gpu_seconds is not None and device == "cpu" and not executor.get("num_gpus"):
        raise StudyError(
            f"budget: gpu_seconds counts the time in which workers hold GPUs, but on device cpu "
            f"those of executor {executor['name']} hold none; expected device cuda or, of executor "
            f"ray, num_gpus above 0; or name seconds, which counts the clock"
        )


def check_storage(folder: Path, url: str) -> None:
    """Raises `StudyError` if nothing can be kept at the URL."""
    try:
        open_store(folder, url)
    except StoreError as error:
        raise StudyError(f"checkpoint_url: {error}") from error


def check_count(name: str, value: Any) -> None:
    """Raises `StudyError` unless the value is a whole number above 0."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise StudyError(f"{name}: is {value!r}; expected a whole number above 0")


def check_seed(seed: Any) -> None:
    """Raises `StudyError` unless the seed is a whole number from 0 on."""
    if not isinstance(seed, int) or seed < 0:
        raise StudyError(f"seed: is {seed!r}; expected a whole number from 0 on")


def as_named(key: str, chosen: str | Mapping[str, Any]) -> dict[str, Any]:
    """A plugin's choice, by its name alone or with hyperparameters, as a mapping. Raises
    `StudyError`, which begins with `key`."""
    named = {"name": chosen} if isinstance(chosen, str) else chosen
    if not isinstance(named, Mapping) or not isinstance(named.get("name"), str):
        given = dict(named) if isinstance(named, Mapping) else named
        raise StudyError(
            f"{key}: is {given!r}; expected a name, or a mapping with that and options, such as "
            f"{{'name': ...}}"
        )
    return dict(named)

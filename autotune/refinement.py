"""The second pass over a finished study: its winner, trained again under a refined schedule.

Defazio et al. (2023, arXiv 2310.07831) refine a schedule from the gradient norms of a run that
is over. A search has such a run at its end: the winner's. It must have recorded its norms, which
it does where the space says ``record_gradient_norms: true``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from autotune.header import StudyError
from autotune.plugins import Schedule, discovery
from autotune.result import Point, Result
from autotune.space import Configuration

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Refined:
    """What the second pass gave.

    Args:
        configuration: of training; the winner's with the refined schedule in it.
        metrics: the curve metrics by unit.
        before: the best value of the primary objective on the winner's curve.
        after: the best value on the refined run's curve.
        better: whether the refined run's is better.
        model: as it stands at the horizon, in eval mode, adapters folded in where they can be.
    """

    configuration: Configuration
    metrics: Mapping[int, Mapping[str, float]]
    before: float
    after: float
    better: bool
    model: nn.Module


def refine(
    result: Result,
    norm: Literal["l1", "l2"],
    *,
    task: Any = None,
    filter_width: float = 0.1,
    rounds: int = 1,
) -> Refined:
    """Train the winner's configuration again in this process, on the CPU, from its own seed to
    its own horizon, under the schedule that its recorded gradient norms suggest. Nothing of it
    is recorded; the study stays as it is.

    Args:
        result: of a study whose winner is a `TorchTask`'s run that recorded its norms.
        norm: ``l2`` where the winner's optimizer descends along the gradient (SGD), ``l1``
            where it is Adam or its kin.
        task: needed only if the study's task was handed over as an object, in another session.
        filter_width: share of the run that the median filter over the norms spans.
        rounds: how often to refine, each time from the run before.

    Raises:
        StudyError: the study has no winner, or a task that cannot be refined.
        TaskError: the winner recorded no gradient norms.
    """
    from autotune.execute.store import CheckpointStore
    from autotune.execute.worker import random_state_kept
    from autotune.train.task import RunContext
    from autotune.train.torch_run import TorchRun

    point = _finished(result)
    content = CheckpointStore(result.folder / "checkpoints").load(point.checkpoint)
    chosen = {**point.training, "schedule": _refinable(point.training)}
    context = RunContext(content["seed"], content["horizon"], "cpu", Path(result.folder))
    state = content["state"]
    metrics: dict[int, dict[str, float]] = {}
    with random_state_kept("cpu"):
        opened = _task(result, task)
        for _ in range(rounds):
            run = opened.open(chosen, context)
            if not isinstance(run, TorchRun):
                raise StudyError(
                    f"a run of {type(opened).__name__} has no schedule of ours to refine; "
                    "expected a TorchTask"
                )
            run.refine(state, norm, filter_width)
            metrics = {}
            while run.step < context.horizon:
                values = run.train()
                metrics[run.step] = dict(values)
            state = run.freeze()
        model = run.model()
    objective = result.view.context.objective
    curves = result.trials[point.trial].metrics.values(), metrics.values()
    before, after = (
        min((values[objective.name] for values in curve), key=lambda value: objective.sign * value)
        for curve in curves
    )
    better = objective.sign * after < objective.sign * before
    return Refined(chosen, metrics, before, after, better, model)


def _finished(result: Result) -> Point:
    """The newest checkpoint of the winner's trial: it has recorded the most."""
    if result.best is None:
        raise StudyError(f"study {result.view.name!r} has no winner to refine")
    number = result.best.trial
    return max((p for p in result.points if p.trial == number), key=lambda point: point.step)


def _refinable(training: Configuration) -> dict[str, Any]:
    """The winner's own choice of schedule if it can be refined, else one that can, at its
    defaults."""
    chosen = training.get("schedule")
    if isinstance(chosen, Mapping) and _can_refine(str(chosen["name"])):
        return dict(chosen)
    for record in discovery.records("schedule"):
        if _can_refine(record.name):
            schedule = discovery.get("schedule", record.name)
            return {"name": record.name, **schedule.space().default()}
    raise StudyError("no schedule that is installed can be refined; see: autotune plugins list")


def _can_refine(name: str) -> bool:
    loaded = discovery.get("schedule", name)
    return issubclass(loaded, Schedule) and loaded.refine is not Schedule.refine


def _task(result: Result, given: Any) -> Any:
    from autotune.execute.task_address import as_task, load_task

    view = result.view
    known = next((task for task in (given, view.task, view.header.task) if task is not None), None)
    if known is None:
        raise StudyError(
            f"the task of study {view.name!r} was handed over as an object, which is not kept: "
            "pass it, as in refine(result, norm, task=task)"
        )
    return load_task(known) if isinstance(known, str) else as_task(known)

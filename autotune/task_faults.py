"""What to say when the task, not a configuration, is at fault."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from autotune.decide.holdout import Guard
from autotune.header import StudyError
from autotune.plugins.search import Failed, Objective, constrained_metrics
from autotune.plugins.trials import Trials
from autotune.space.errors import nearest


class NothingWorks(StudyError):
    """Every trial so far has failed by an error of the user's code; carries the first one."""


def nothing_works(failed: Sequence[Failed]) -> str:
    """What to say when every trial has failed; the first error in full."""
    first = failed[0]
    # A TaskError says itself what is wrong; anything else is easier to find by its traceback.
    told = "autotune.train.task.TaskError" in first.traceback
    shown = first.traceback.rstrip() if first.traceback and not told else first.message
    return (
        f"all {len(failed)} trials so far have failed by an error, so the task is more likely "
        f"at fault than the configurations. The first error:\n\n{shown}\n"
    )


def check_reported(
    objectives: Iterable[Objective], kind: str, metrics: Mapping[str, float]
) -> None:
    """Raises `StudyError` if an objective of this kind is not among the metrics that the task
    reported: it would be found missing only when the whole budget is spent."""
    for objective in objectives:
        if objective.kind == kind and objective.name not in metrics:
            known = ", ".join(sorted(metrics)) or "nothing"
            when = "after a unit of training" if kind == "curve" else "once for a trial"
            raise StudyError(
                f"objectives: {objective.name!r} is of kind {kind}, but what the task reports "
                f"{when} is: {known}; name one of these, or have the task report it"
            )


def check_constrained(trials: Trials, number: int) -> None:
    """Raises `StudyError` if a constrained metric was never measured, though a trial has come to
    where it must have been: what is measured once, to the end of its first segment; a curve, which
    a task may report after every few units only, to its horizon."""
    trial = trials[number]
    for constraint in trials.constraints:
        (metric,) = constrained_metrics((), [constraint])
        metric = next((o for o in trials.objectives if o.name == metric.name), metric)
        if metric.kind == "evaluation" or metric.name in {*trial.metrics.names, *trial.static}:
            continue
        if metric.kind == "curve" and trial.last < trial.horizon:
            continue
        if any(metric.name in other.metrics.names for other in trials.all.values()):
            continue
        reported = {*trial.metrics.names, *trial.static}
        close = nearest(metric.name, reported)
        raise StudyError(
            f"constraints: {str(constraint)!r}: the task does not report {metric.name!r}; "
            f"what it reports is {', '.join(sorted(reported))}"
            + (f" (did you mean {close!r}?)" if close else "")
        )


def check_guardable(guard: Guard | None, metrics: Mapping[str, float]) -> None:
    """Raises `StudyError` if the reusable hold-out has nothing to compare an objective with."""
    missing = [] if guard is None else guard.missing(metrics)
    if missing:
        raise StudyError(
            f"holdout: compares the validation split with training samples, but the task does "
            f"not report {', '.join(missing)}; with a TorchTask, say training_metrics=True"
        )

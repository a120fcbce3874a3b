"""The Python interface: `tune`, `resume`, `load`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autotune import record
from autotune.asked import (
    as_budget,
    as_constraints,
    as_final,
    as_holdout,
    as_limits,
    as_objectives,
    as_utility,
)
from autotune.begin import Plan, begin, reopen
from autotune.checks import as_named, check_count
from autotune.extension import extend
from autotune.header import Header, StudyError, unstarted
from autotune.plugins import PluginError
from autotune.plugins.constraints import Constraint
from autotune.plugins.discovery import get
from autotune.plugins.execution import ExecutionContext, Executor, Limits
from autotune.plugins.search import Budget, Final, Forecaster, Holdout, Objective, Utility
from autotune.record import FOLDER, Record, resume_command
from autotune.result import Result, StudyView
from autotune.space import Configuration, Space
from autotune.study import Driver, Interrupted, Listener
from autotune.train.task import TaskError
from autotune.train.torch_task import TorchTask

Earlier = str | Path | StudyView | Result


def tune(
    task: Any,
    space: Space,
    objectives: Sequence[str | Objective | Mapping[str, Any]],
    budget: Budget | Mapping[str, float],
    *,
    horizon: int,
    constraints: str | Sequence[str | Constraint] = (),
    name: str = "study",
    folder: str | Path = FOLDER,
    search: Mapping[str, Any] | None = None,
    executor: str | Mapping[str, Any] = "local",
    workers: int = 2,
    device: str = "cpu",
    seed: int = 0,
    first: Sequence[Mapping[str, Any]] = (),
    final: bool | Final | Mapping[str, float] = True,
    utility: Utility | Mapping[str, float] | None = None,
    warm_start: Earlier | Sequence[Earlier] = (),
    holdout: Holdout | Mapping[str, float] | None = None,
    checkpoint_url: str | None = None,
    limits: Limits | Mapping[str, float] | None = None,
    progress: bool = True,
    listeners: Sequence[Listener] = (),
) -> Result:
    """Tune a task, and return what was found.

    Args:
        task: a `Task` (such as a `TorchTask`), a `Trainable` class, a function marked
            ``@autotune.task``, or the address of one of these: ``package.module:object`` or
            ``path/to/file.py:object``. It may hold closures. A study whose task is given by its
            address can be resumed from the command line.
        space: what may be chosen.
        objectives: names that autotune knows (`known_objectives`), or `Objective`s, or
            mappings of its fields. The first of kind ``curve`` drives training.
        budget: any of ``epochs`` (or ``steps``), ``trials``, ``minutes`` (or ``seconds``),
            ``gpu_seconds`` (what jobs take, times the GPUs that their worker holds) and
            ``evaluations``; the first limit reached ends the search.
        horizon: epochs (or steps) that a trial trains at most.
        constraints: limits that the winner must keep, such as ``["latency_ms <= 5"]``; of an
            objective, of any other metric that autotune knows, or of one that the task reports
            while it trains. What keeps them ranks before what does not; a trial that breaks one by
            what is measured once (``parameters``) is trained no further. `Result.unmet` says so if
            nothing kept them.
        name: of the study and its folder; if it is taken, ``NAME-2``, ``NAME-3`` and so on.
        folder: that holds the studies, on a local disk.
        search: ``{"policy": ..., "proposer": ..., "forecaster": ...}``, any subset; each a
            name or a mapping with ``name`` and hyperparameters. Policy ``auto``, the default,
            picks what suits space, objectives, horizon and budget, and says why.
        executor: a name, or a mapping with ``name`` and the executor's options.
        workers: segments run at once; on one machine they share its cores.
        device: ``cpu``, ``cuda`` or ``auto``.
        seed: of everything random.
        first: configurations to try first; what they leave out takes its default.
        final: of the final phase, in which the best candidates are finished and trained again
            on other seeds, so that the winner is no lucky draw: ``{"candidates": 3, "seeds": 3,
            "share": 0.2, "cooldown": 0.2, "refine": 0}``, any subset
            (`autotune.plugins.search.Final`); fewer candidates and seeds where they cost more
            than this share of the budget, and none where not even two on two seeds are paid
            for. False: none.
        utility: end the search when no further training is expected to be worth its cost: what
            is gained (``improvement`` of the first curve objective, or ``percent`` of its best
            value) and what that is worth to you (``epochs``, ``steps``, ``seconds`` or
            ``minutes`` of training), such as ``{"percent": 1, "epochs": 30}``.
        warm_start: earlier studies over a space that overlaps: names in `folder`, paths,
            `StudyView`s or `Result`s. Their best configurations are tried first, and where they
            prove to be related, their curves help to forecast this study's.
        holdout: guard the validation split against thousands of looks: its values are told
            through Thresholdout, as ``{"threshold": 0.04, "noise": 0.01, "budget": 1000}``, any
            subset (`autotune.plugins.search.Holdout`). The task must report each curve objective
            on training samples too: ``TorchTask(training_metrics=True)``.
        checkpoint_url: of storage that all workers reach, where a folder for the study's
            checkpoints is made: ``s3://bucket/folder`` (with the package that fsspec names for
            it), ``file:///shared/folder``. None: in the study's folder; workers on machines that
            do not see that hand their checkpoints over.
        limits: ``{"segment_minutes": 30, "checkpoint_gb": 10}``, any subset: a segment that
            takes longer is ended, and its trial has failed (default: none; a worker that hangs
            while it trains is replaced in any case); all checkpoints together never take more
            on disk (default: 10), the least likely to be needed going first.
        progress: show progress on standard error.
        listeners: called as ``listener(trials, event)`` with every event once it is recorded.

    Raises:
        StudyError, TaskError, SpaceError, PluginError, RecordError: what is wrong, for people.
        Interrupted: a `KeyboardInterrupt`, after freezing, on SIGINT or SIGTERM.
    """
    spent, unit = as_budget(budget)
    worth, priced = as_utility(utility)
    plan = Plan(
        task=as_address(task),
        space=space,
        objectives=as_objectives(objectives),
        constraints=as_constraints(constraints),
        budget=spent,
        horizon=horizon,
        name=name,
        seed=seed,
        unit=unit,
        final=as_final(final),
        utility=worth,
        priced=priced,
        warm_start=as_earlier(warm_start, folder),
        holdout=as_holdout(holdout),
        checkpoint_url=checkpoint_url,
        limits=as_limits(limits),
        first=tuple(first),
        search=search or {},
        executor=executor,
        workers=workers,
        device=device,
    )
    log, header, opened = begin(plan, Path(folder))
    return run(log, header, opened, progress=progress, listeners=listeners)


def resume(
    study: str | Path,
    task: Any = None,
    *,
    budget: Mapping[str, float | None] | None = None,
    horizon: int | None = None,
    folder: str | Path = FOLDER,
    executor: str | Mapping[str, Any] | None = None,
    workers: int | None = None,
    device: str | None = None,
    limits: Limits | Mapping[str, float] | None = None,
    accept_changes: bool = False,
    progress: bool = True,
    listeners: Sequence[Listener] = (),
) -> Result:
    """Go on with a study that was interrupted or killed, or that has ended and is given more to
    spend; of one that has ended otherwise, its result.

    Args:
        study: its name in `folder`, or the path of its own folder.
        task: needed if the task was handed to `tune` as an object.
        budget: limits in place of those it has, such as ``{"epochs": 600}``; None drops one.
        horizon: units that a trial trains at most from now on, no fewer than before. Trials whose
            configuration knows no horizon go on from their checkpoints; the others stay at theirs.
        executor, workers, device: other than before; what is searched stays the same. Options
            of the same executor that are not given stay as they were.
        limits: other than before, as in `tune`, from now on.
        accept_changes: go on although data, task, plugin versions or the plugins' spaces are
            not as they were recorded.

    Raises:
        As `tune`.
    """
    if workers is not None:
        check_count("workers", workers)
    log, header, opened = reopen(find(study, folder), as_address(task), accept_changes)
    try:
        means = Means(
            other_executor(executor, header.executor),
            workers or header.workers,
            device or header.device,
        )
        if limits is not None:
            header = replace(header, limits=as_limits(limits, header.limits))
        if budget or horizon is not None:
            extend(log, header, budget or {}, horizon)
        if limits is not None:
            log.set_meta("header", header.to_plain())
    except BaseException:
        log.close()
        raise
    return run(log, header, opened, means, progress=progress, listeners=listeners)


def load(study: str | Path, folder: str | Path = FOLDER) -> StudyView:
    """A study as its record tells it, also while it runs; the task is not imported.

    Args:
        study: its name in `folder`, or the path of its own folder.
    """
    return StudyView(find(study, folder))


def as_earlier(
    given: Earlier | Sequence[Earlier], folder: str | Path = FOLDER
) -> tuple[StudyView | Result, ...]:
    """Earlier studies by name, path, or as they are. Raises `StudyError`, `RecordError`."""
    several = (given,) if isinstance(given, str | Path | StudyView | Result) else given
    return tuple(
        one if isinstance(one, StudyView | Result) else StudyView(find(one, folder))
        for one in several
    )


def find(study: str | Path, folder: str | Path = FOLDER) -> Path:
    """The folder of a study. Raises `StudyError` if there is none."""
    for path in (Path(folder) / study, Path(study)):
        if record.exists(path):
            return path
    if (Path(folder) / study / record.FILE).exists():
        raise StudyError(unstarted(Path(folder) / study))
    known = ", ".join(path.name for path in studies(Path(folder)))
    raise StudyError(
        f"there is no study {str(study)!r} in {folder}" + (f"; there are: {known}" if known else "")
    )


def studies(folder: Path) -> list[Path]:
    """The folders of all studies that were begun, the newest first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if record.exists(path)]

    def begun(path: Path) -> tuple[str, str]:
        return (record.peek(path, "header") or {}).get("created", ""), path.name

    return sorted(found, key=begun, reverse=True)


# --- running --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Means:
    """By what means a study is carried out; they do not change what is searched."""

    executor: str | Mapping[str, Any]
    workers: int
    device: str


def other_executor(
    wanted: str | Mapping[str, Any] | None, described: Mapping[str, Any]
) -> dict[str, Any]:
    """The executor that is wanted in the place of the one described: another executor's options
    are not its, the same one's are, unless given anew."""
    if wanted is None:
        return dict(described)
    chosen = as_named("executor", wanted)
    return {**described, **chosen} if chosen["name"] == described["name"] else chosen


def run(
    log: Record,
    header: Header,
    task: Any,
    means: Means | None = None,
    *,
    progress: bool = True,
    listeners: Sequence[Listener] = (),
) -> Result:
    """Drive an open study to its end, and close its record. `means`: None for the header's."""
    from autotune.decide import build_search

    means = means or Means(header.executor, header.workers, header.device)
    driver: Driver | None = None
    try:
        if progress:
            announce(log, header)
        if "finished" not in log.meta:
            executor, execution = _execution(log.folder, header, task, means)
            shown = _progress(log, header) if progress else nullcontext()
            with shown as listener:
                driver = Driver(
                    log,
                    header,
                    build_search(header.context(), header.search, get, log.events),
                    executor,
                    execution,
                    lambda configuration: bound_from(header.resolved, configuration, task),
                    header.limits,
                    [*([listener] if listener else []), *listeners],
                )
                driver.run()
    except (PluginError, TaskError):
        if not log.count:
            log.withdraw()  # the workers never came up
        raise
    except Interrupted as error:
        raise Interrupted(error.number, f"{error}; {how_to_resume(log.folder, header)}") from None
    finally:
        log.close()
    view = driver.view(task) if driver is not None else StudyView(log.folder, task)
    if progress and view.result.unmet is not None:
        print(f"note: {view.result.unmet}", file=sys.stderr)
    return view.result


def _execution(
    folder: Path, header: Header, task: Any, means: Means
) -> tuple[Executor, ExecutionContext]:
    chosen = as_named("executor", means.executor)
    executor = get("executor", chosen["name"])()
    assert isinstance(executor, Executor), "the catalogue checks a plugin's base class"
    return executor, ExecutionContext(
        task=header.task or task,
        folder=folder,
        workers=means.workers,
        plugins=[
            row for row in header.plugins if row[0] in ("optimizer", "schedule", "adapter", "tta")
        ],
        device=means.device,
        seed=header.seed,
        objective=header.context().objective.name,
        options={key: value for key, value in chosen.items() if key != "name"},
        checkpoint_url=header.checkpoint_url,
        loaded=task,
    )


def announce(log: Record, header: Header) -> None:
    """Say on standard error which study begins or goes on, and what it leaves out."""
    lines = [f"study {header.name!r} in {log.folder}"]
    if log.restored:
        lines.append(log.restored)
    if log.count:
        lines[0] += f", going on after {log.count} recorded events"
    if header.policy_reason:
        lines.append(f"policy {header.search['policy']['name']}: {header.policy_reason}")
    for earlier in header.earlier:
        lines.append(f"from study {earlier.name!r}: {earlier.notes[0]}")
        lines += [f"  {note}" for note in earlier.notes[1:]]
    lines += [f"left out: {kind} {name}: {reason}" for kind, name, reason in header.left_out]
    named = dict(header.search["forecaster"])
    forecaster = get("forecaster", named.pop("name"))(named)
    assert isinstance(forecaster, Forecaster)
    lines += [f"note: {remark}" for remark in forecaster.remarks(header.context())]
    print("\n".join(lines), file=sys.stderr)


def how_to_resume(folder: Path, header: Header) -> str:
    """What to type to go on with a study."""
    if header.task is None:
        return f"go on with it from Python: autotune.resume({str(folder)!r}, task=task)"
    return f"go on with it by: {resume_command(folder)}"


def _progress(log: Record, header: Header) -> AbstractContextManager[Listener]:
    from autotune.report import Progress

    return Progress(header.context(log.events()), header.name, header.unit)


def bound_from(space: Space, configuration: Configuration, task: Any = None) -> float | None:
    """From which share of its horizon on a training configuration depends on it: the least of
    what its schedule and its adapter declare, which a `TorchTask` may find elsewhere than among
    the installed plugins."""
    own = isinstance(task, TorchTask)
    shares = []
    for key, value in configuration.items():
        kind = getattr(space.parameters[key], "kind", None)
        if own and key in ("schedule", "adapter") and isinstance(value, Mapping):
            shares.append(task.plugin(key, value).bound_from())
        elif kind in ("schedule", "adapter"):
            options = {name: option for name, option in value.items() if name != "name"}
            shares.append(get(kind, value["name"])(options).bound_from())  # type: ignore[attr-defined]
    return min((share for share in shares if share is not None), default=None)


# --- what users write, as values ------------------------------------------------------------


def as_address(task: Any) -> Any:
    """A task's address with its file's path made absolute; a task object as it is."""
    if not isinstance(task, str):
        return task
    place, colon, name = task.rpartition(":")
    return f"{Path(place).resolve()}:{name}" if colon and place.endswith(".py") else task

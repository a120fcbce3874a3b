"""Beginning a study and taking it up again: everything between what the user says and the loop.

This is where the driver imports the task: to see what its model is made of, so that plugins
which cannot work with it are left out before the search, and to know its data by a fingerprint.
"""

from __future__ import annotations

import platform
import re
import secrets
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch

from autotune import record
from autotune.checks import (
    as_named,
    check_budget,
    check_count,
    check_gpus,
    check_measured,
    check_objectives,
    check_seed,
    check_storage,
    check_stream,
)
from autotune.decide import build_search
from autotune.decide.automatic import chosen_policy
from autotune.declared_costs import declared_costs
from autotune.execute.task_address import as_task, load_task
from autotune.header import SEARCH_DEFAULTS, Header, StudyError, differences, unstarted
from autotune.plugins import ModelInfo, PluginError, Schedule
from autotune.plugins.constraints import Constraint
from autotune.plugins.discovery import Catalogue
from autotune.plugins.execution import Limits
from autotune.plugins.search import (
    AUTO,
    Budget,
    Final,
    Holdout,
    Objective,
    Utility,
    constrained_metrics,
)
from autotune.record import Record
from autotune.result import Result, StudyView
from autotune.space import Choice, Configuration, Plugins, Space, SpaceError
from autotune.train.task import Task, TaskError
from autotune.train.torch_task import TorchTask
from autotune.warm_start import earlier_studies

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Plan:
    """What a user asks for, by Python or by a study file.

    Args:
        task: the task object, or its absolute address.
        space: unresolved or resolved.
        objectives: at least one of kind ``curve``; the first of these drives training.
        budget: at least one of units, trials, seconds and GPU-seconds.
        horizon: units that a trial trains at most.
        name: of the study; where it is taken, ``NAME-2`` and so on.
        unit: what the user calls the budget's units; None if there are none.
        first: configurations to try first; what they leave out takes its default.
        search: by part (policy, proposer, forecaster) a name, or a mapping with ``name`` and
            hyperparameters. Policy ``auto``, the default, is what suits the study
            (`autotune.decide.automatic`).
        executor: likewise.
        workers: segments run at once.
        device: ``cpu``, ``cuda`` or ``auto``.
        source: the study file, if there is one.
        final: of the final phase; None for none.
        utility: what an improvement is worth; None to search on whatever it costs.
        priced: what the user calls the units that it is worth; None if it is none.
        warm_start: earlier studies to begin from.
        holdout: of the reusable hold-out; None for none.
        checkpoint_url: of storage in which the study gets a folder for its checkpoints; None:
            in the study's own folder.
        limits: of segments and checkpoints.
        constraints: limits that the winner must keep.
    """

    task: Any
    space: Space
    objectives: tuple[Objective, ...]
    budget: Budget
    horizon: int
    name: str
    seed: int = 0
    unit: Literal["epoch", "step"] | None = None
    first: tuple[Mapping[str, Any], ...] = ()
    search: Mapping[str, Any] = field(default_factory=dict)
    executor: Any = "local"
    workers: int = 2
    device: str = "cpu"
    source: str | None = None
    final: Final | None = field(default_factory=Final)
    utility: Utility | None = None
    priced: Literal["epoch", "step"] | None = None
    warm_start: tuple[StudyView | Result, ...] = ()
    holdout: Holdout | None = None
    checkpoint_url: str | None = None
    limits: Limits = field(default_factory=Limits)
    constraints: tuple[Constraint, ...] = ()


def begin(plan: Plan, folder: Path, exact_name: bool = False) -> tuple[Record, Header, Task]:
    """Check a plan against its task and write the study's header.

    Args:
        folder: that holds the studies.
        exact_name: refuse a name that is taken, rather than append a number to it.

    Raises:
        StudyError, TaskError, SpaceError, PluginError, RecordError: with a message for people.
    """
    if not _NAME.fullmatch(plan.name):
        raise StudyError(
            f"name: {plan.name!r} cannot name a study's folder; expected letters, digits, "
            f"'.', '_' and '-', up to 100"
        )
    if exact_name and record.exists(folder / plan.name):
        raise StudyError(_taken(folder / plan.name))
    task = _task(plan.task)
    header = _header(plan, task)
    if plan.checkpoint_url is not None:
        check_storage(folder, plan.checkpoint_url)
    log = _claim(folder, plan.name, exact_name)
    try:
        header = replace(header, name=log.folder.name)
        if plan.checkpoint_url is not None:
            # its own, whatever other studies of that name, here or elsewhere, keep there
            place = f"{plan.checkpoint_url.rstrip('/')}/{header.name}-{secrets.token_hex(4)}"
            header = replace(header, checkpoint_url=place)
        (log.folder / "study.yaml").write_text(header.study_file(), encoding="utf-8")
        log.set_meta("header", header.to_plain())
        log.settle()
        log.back_up()
    except BaseException as error:
        log.close()
        if isinstance(error, OSError):
            raise StudyError(f"no study can be kept in {log.folder}: {error}") from error
        raise
    return log, header, task


def reopen(
    folder: Path, task: Any = None, accept_changes: bool = False
) -> tuple[Record, Header, Task]:
    """Open a study to go on with it, after comparing it with what is installed now.

    Args:
        folder: the study's folder.
        task: needed if the study's task was handed over as an object.
        accept_changes: go on although data, task or plugin versions have changed.

    Raises:
        StudyError: something changed that would change what is recorded, each thing named.
        TaskError, PluginError, RecordError: with a message for people.
    """
    if not record.exists(folder):
        raise StudyError(unstarted(folder) if folder.exists() else f"there is no study {folder}")
    log = Record(folder)
    try:
        recorded = Header.from_plain(log.meta["header"])
        if task is None and recorded.task is None:
            raise StudyError(
                f"the task of study {recorded.name!r} ({recorded.task_name}) was handed over as "
                f"an object, which has no importable name; go on from Python: "
                f"autotune.resume({str(folder)!r}, task=task)"
            )
        opened = _task(recorded.task if task is None else task)
        now = _present(recorded, opened, task)
        changed = differences(recorded, now)
        missing = [line for line in changed if line.endswith("now missing")]
        if changed and (not accept_changes or missing):
            raise StudyError(_changed(recorded, changed, bool(missing)))
        if changed:
            log.set_meta("accepted", [*log.meta.get("accepted", []), changed])
            recorded = replace(
                recorded, task=now.task, fingerprint=now.fingerprint, plugins=now.plugins
            )
            log.set_meta("header", recorded.to_plain())
    except BaseException:
        log.close()
        raise
    return log, recorded, opened


# --- from plan to header --------------------------------------------------------------------


def _task(task: Any) -> Task:
    return load_task(task) if isinstance(task, str) else as_task(task)


def _header(plan: Plan, task: Task) -> Header:
    objectives, budget = plan.objectives, plan.budget
    check_objectives(plan.objectives, plan.constraints)
    check_budget(plan.budget)
    check_count("horizon", plan.horizon)
    check_count("workers", plan.workers)
    check_seed(plan.seed)
    for where, unit in (("budget", plan.unit), ("utility", plan.priced)):
        if unit is not None and unit != task.unit:
            raise StudyError(f"{where}: is in {unit}s, but the task counts {task.unit}s")
    if not isinstance(plan.search, Mapping):
        raise StudyError(f"search: is {plan.search!r}; expected a mapping of its parts")
    search = {
        part: as_named(f"search: {part}", plan.search.get(part, name))
        for part, name in SEARCH_DEFAULTS.items()
    }
    if unknown := sorted(set(plan.search) - set(SEARCH_DEFAULTS)):
        raise StudyError(
            f"search: there is no part {unknown[0]!r}; the parts are {', '.join(SEARCH_DEFAULTS)}"
        )
    executor = as_named("executor", plan.executor)
    check_gpus(budget, plan.device, executor)
    catalogue = Catalogue()
    for kind, chosen in (*search.items(), ("executor", executor)):
        if (kind, chosen["name"]) != ("policy", AUTO):
            catalogue.get(kind, chosen["name"])
    default = plan.space.resolve(catalogue).default()
    if isinstance(task, TorchTask) and "optimizer" not in default:
        raise StudyError(
            "space: there is no optimizer in it, which a TorchTask trains with; add "
            "optimizer: {plugins: optimizer} (Plugins('optimizer') in Python)"
        )
    info = _model_info(task, default)
    check_stream(objectives, info, "objectives")
    check_stream(constrained_metrics(objectives, plan.constraints), info, "constraints")
    if isinstance(task, TorchTask):
        check_measured(plan.constraints, task)
    catalogue = Catalogue(info)
    resolved = plan.space.resolve(catalogue)
    search["policy"], reason = _policy(search["policy"], resolved, plan)
    first = tuple(_completed(resolved, values, index) for index, values in enumerate(plan.first))
    derived = _derived(plan.final, resolved, catalogue)
    used = [
        *plugins_of(resolved),
        *(("schedule", schedule["name"]) for schedule in derived.values()),
        *((kind, chosen["name"]) for kind, chosen in search.items()),
    ]
    header = Header(
        name=plan.name,
        created=datetime.now(UTC).isoformat(),
        task=plan.task if isinstance(plan.task, str) else None,
        task_name=_task_name(plan.task, task),
        unit=task.unit,
        space=plan.space,
        resolved=resolved,
        objectives=objectives,
        budget=budget,
        horizon=plan.horizon,
        seed=plan.seed,
        workers=plan.workers,
        device=plan.device,
        first=first,
        search=search,
        policy_reason=reason,
        executor=executor,
        plugins=tuple(catalogue.versions([*used, ("executor", executor["name"])])),
        left_out=tuple(_left_out(plan.space, catalogue)),
        fingerprint=_fingerprint(task),
        versions={
            "autotune": metadata.version("autotune-torch"),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        source=plan.source,
        final=plan.final,
        utility=plan.utility,
        holdout=plan.holdout,
        limits=plan.limits,
        constraints=plan.constraints,
        derived=derived,
        costs=declared_costs(resolved, info, catalogue) if info is not None else {},
    )
    earlier, warm = earlier_studies(plan.warm_start, header)
    header = replace(header, earlier=earlier, warm=warm)
    try:
        build_search(header.context(), search, catalogue.get)
    except SpaceError as error:
        raise StudyError(f"search: {error}") from error
    return header


def _policy(chosen: dict[str, Any], resolved: Space, plan: Plan) -> tuple[dict[str, Any], str]:
    """The policy with its hyperparameters, and if ``auto`` picked it, why."""
    if chosen["name"] != AUTO:
        return chosen, ""
    if further := [key for key in chosen if key != "name"]:
        raise StudyError(
            f"search: policy {AUTO!r} takes no hyperparameters, got {further[0]!r}; name a policy"
        )
    name, reason = chosen_policy(resolved, plan.objectives, plan.horizon, plan.budget, plan.final)
    return {"name": name}, reason


_ABLE = {"cooldown": Schedule.branch, "refinement": Schedule.refine}


def _derived(final: Final | None, space: Space, catalogue: Catalogue) -> dict[str, Configuration]:
    """The choice of schedule with which the final phase cools down and refines: the first of
    the space, else of those installed, that can, at its defaults."""
    choice = space.parameters.get("schedule")
    if final is None or not isinstance(choice, Choice) or choice.kind != "schedule":
        if final is not None and final.refine:
            raise StudyError(
                "final: refine needs a choice of schedule in the space, whose place the refined "
                "one takes; expected schedule: {plugins: schedule}"
            )
        return {}
    if final.refine and "record_gradient_norms" not in space.parameters:
        raise StudyError(
            "final: refine needs the gradient norms of the winner's run; add "
            "record_gradient_norms: true to the space"
        )
    spaces = dict(choice.options)
    for name, installed in catalogue.options("schedule").items():
        spaces.setdefault(name, installed)
    wanted = {"cooldown": final.cooldown > 0, "refinement": final.refine > 0}
    found: dict[str, Configuration] = {}
    for how, method in _ABLE.items():
        able = (
            {"name": name, **option.default()}
            for name, option in spaces.items()
            if getattr(catalogue.get("schedule", name), method.__name__) is not method
        )
        first = next(able, None) if wanted[how] else None
        if first is not None:
            found[how] = first
    if wanted["refinement"] and "refinement" not in found:
        raise StudyError("final: no schedule that is installed can be refined")
    return found


def _completed(space: Space, values: Mapping[str, Any], index: int) -> Configuration:
    try:
        configuration = space.complete(dict(values))
        space.validate(configuration)
        clause = space.forbids(configuration)
    except SpaceError as error:
        raise StudyError(f"first[{index}]: {error}") from error
    if clause is not None:
        raise StudyError(f"first[{index}]: is forbidden by {dict(clause)!r}")
    return configuration


def _model_info(task: Task, configuration: Configuration) -> ModelInfo | None:
    try:
        return task.model_info(configuration)
    except TaskError:
        raise
    except Exception as error:
        raise TaskError(
            f"the task cannot make its model from the default configuration "
            f"{configuration!r}:\n\n{_full(error)}"
        ) from error


def _fingerprint(task: Task) -> str:
    try:
        return task.fingerprint()
    except TaskError:
        raise
    except Exception as error:
        raise TaskError(f"the task's data cannot be looked at:\n\n{_full(error)}") from error


def _full(error: Exception) -> str:
    return "".join(traceback.format_exception(error)).rstrip()


def _left_out(space: Space, catalogue: Catalogue) -> Iterator[tuple[str, str, str]]:
    seen = set()
    for wanted in _wanted(space):
        names = wanted.include if wanted.include is not None else catalogue.names(wanted.kind)
        for name in names:
            if name in wanted.exclude or (wanted.kind, name) in seen:
                continue
            seen.add((wanted.kind, name))
            if (reason := catalogue.why_not(wanted.kind, name)) is not None:
                yield wanted.kind, name, reason


def _wanted(space: Space) -> Iterator[Plugins]:
    for node in space.parameters.values():
        match node:
            case Plugins():
                yield node
            case Choice():
                for option in node.options.values():
                    yield from _wanted(option)
            case Space():
                yield from _wanted(node)


def plugins_of(space: Space) -> Iterator[tuple[str, str]]:
    """(kind, name) of every plugin that a resolved space may choose."""
    for node in space.parameters.values():
        match node:
            case Choice():
                for name, option in node.options.items():
                    if node.kind is not None:
                        yield node.kind, name
                    yield from plugins_of(option)
            case Space():
                yield from plugins_of(node)


def _task_name(given: Any, task: Task) -> str:
    if isinstance(given, str):
        return given
    kind = given if isinstance(given, type) or hasattr(given, "__qualname__") else type(task)
    return f"{kind.__module__}.{kind.__qualname__}"


# --- the folder -----------------------------------------------------------------------------


def _claim(folder: Path, name: str, exact: bool) -> Record:
    """A new study's record, in a folder that no other study has."""
    number = 1
    while True:
        path = folder / (name if number == 1 else f"{name}-{number}")
        if not record.exists(path):
            try:
                path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StudyError(f"no study can be kept in {folder}: {error}") from error
            try:
                log = Record(path)
            except record.Busy:
                if exact:
                    raise
            else:
                if "header" not in log.meta:
                    return log
                log.close()  # another driver was quicker
        if exact:
            raise StudyError(_taken(path))
        number += 1


def _taken(path: Path) -> str:
    return (
        f"there is a study {path.name!r} already ({path}); go on with it by "
        f"`{record.resume_command(path)}`, or choose another name"
    )


# --- comparing ------------------------------------------------------------------------------


class _Recorded(Catalogue):
    """A catalogue of a study's own plugins: what was installed since does not join it."""

    def __init__(self, model_info: ModelInfo | None, plugins: Sequence[Sequence[str]]) -> None:
        super().__init__(model_info)
        self._own = {(row[0], row[1]) for row in plugins}

    def options(self, kind: str) -> dict[str, Space]:
        return {n: s for n, s in super().options(kind).items() if (kind, n) in self._own}


def _present(recorded: Header, task: Task, given: Any) -> Header:
    """The header that the study would have now."""
    present = []
    for kind, name, *_ in recorded.plugins:
        try:
            Catalogue().get(kind, name)
            present += Catalogue().versions([(kind, name)])
        except PluginError:
            continue  # `differences` says that it is missing
    now = replace(
        recorded,
        task=recorded.task if given is None else (given if isinstance(given, str) else None),
        fingerprint=_fingerprint(task),
        plugins=tuple(present),
    )
    if len(present) < len(recorded.plugins):
        return now
    info = _model_info(task, recorded.resolved.default())
    return replace(now, resolved=recorded.space.resolve(_Recorded(info, present)))


def _changed(recorded: Header, changed: Sequence[str], missing: bool) -> str:
    lines = "\n".join(f"  {line}" for line in changed)
    ending = (
        "Install what is missing; without it, the study cannot go on."
        if missing
        else "Put it back as it was; or, if the old and the new observations may be compared all "
        "the same, go on with --accept-changes (accept_changes=True in Python)."
    )
    return f"study {recorded.name!r} is not as it was recorded:\n{lines}\n{ending}"

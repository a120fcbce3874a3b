"""Stage one of reading a study file: keys and values, without a look at plugins."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from autotune.plugins.constraints import Constraint
from autotune.plugins.search import Budget, Objective, known_objectives, misspelt_metric
from autotune.space import Space, SpaceError
from autotune.space.errors import MISSING, dotted, listed, nearest, shown, unknown
from autotune.space.errors import Path as Place
from autotune.space.forbidden import normalise
from autotune.space.plain import read_parameters
from autotune.study_file.models import (
    CHOICES,
    DESCRIBED,
    EXPECTED,
    NAMED,
    SEARCH_PARTS,
    BudgetModel,
    FinalModel,
    HoldoutModel,
    LimitsModel,
    ObjectiveModel,
    PluginModel,
    SearchModel,
    StudyModel,
    UtilityModel,
)

_LIMITS = ("epochs", "steps", "trials", "minutes", "seconds", "gpu_seconds")
_ADDRESS = re.compile(r"(?P<place>[^:]+):(?P<object>[^\W\d]\w*(?:\.[^\W\d]\w*)*)")
_MODULE = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*")
_PYTHON_FILE = ".py"


@dataclass(frozen=True)
class StudyFile:
    """A study as its file describes it, checked.

    Args:
        path: the file.
        task: ``package.module:object`` or ``/absolute/file.py:object``.
        space: with "all plugins of a kind" unresolved.
        unit: what the budget counts in; None if it has neither epochs nor steps.
        first: configurations to try first, incomplete as they were written.
        search: by part its name and hyperparameters.
        executor: its name and options, without workers and device.
        final: as `autotune.asked.as_final` reads it.
        utility: as `autotune.asked.as_utility` reads it.
        warm_start: names or paths of earlier studies.
        holdout: as `autotune.asked.as_holdout` reads it.
        checkpoint_url: of storage for checkpoints.
        limits: as `autotune.asked.as_limits` reads them.
        constraints: limits that the winner must keep.
    """

    path: Path
    name: str
    task: str
    space: Space
    objectives: tuple[Objective, ...]
    budget: Budget
    horizon: int
    seed: int
    unit: Literal["epoch", "step"] | None
    first: tuple[Mapping[str, Any], ...]
    search: Mapping[str, Mapping[str, Any]]
    executor: Mapping[str, Any]
    workers: int
    device: str
    final: bool | Mapping[str, float] = True
    utility: Mapping[str, float] | None = None
    warm_start: tuple[str, ...] = ()
    holdout: Mapping[str, float] | None = None
    checkpoint_url: str | None = None
    limits: Mapping[str, float] = field(default_factory=dict)
    constraints: tuple[Constraint, ...] = ()


def read(value: Any, path: Path, problems: list[SpaceError]) -> StudyFile | None:
    """The file's content without a look at plugins; None if there are problems."""
    if not isinstance(value, dict):
        problems.append(
            SpaceError((), MISSING if value is None else value, EXPECTED[""])
            if value is not None
            else SpaceError((), value, EXPECTED[""], problem="is empty")
        )
        return None
    model: StudyModel | None = None
    try:
        model = StudyModel.model_validate(value)
    except ValidationError as error:
        problems += _without_echoes(
            [_from_pydantic(dict(detail), value) for detail in error.errors()]
        )
    space = _space(value, problems)
    if isinstance(value.get("task"), str):
        problems += _task_problems(value["task"], path)
    if model is not None:
        problems += _objective_problems(model)
        problems += _constraint_problems(model)
        problems += _budget_problems(model.budget)
        problems += _utility_problems(model.utility)
    if model is None or space is None or problems:
        return None
    executor = _named(model.executor)
    return StudyFile(
        path=path,
        name=model.name,
        task=_absolute(model.task, path),
        space=space,
        objectives=tuple(_objective(entry) for entry in model.objectives),
        budget=_budget(model.budget),
        horizon=model.horizon,
        seed=model.seed,
        unit=_unit(model.budget),
        first=tuple(model.first),
        search={part: _named(getattr(model.search, part)) for part in SEARCH_PARTS},
        executor={k: v for k, v in executor.items() if k not in ("workers", "device")},
        workers=executor.get("workers", 2),
        device=executor.get("device", "cpu"),
        final=model.final if isinstance(model.final, bool) else model.final.model_dump(),
        utility=None if model.utility is None else model.utility.model_dump(exclude_none=True),
        holdout=None if model.holdout is None else model.holdout.model_dump(),
        limits={} if model.limits is None else model.limits.model_dump(exclude_none=True),
        warm_start=(
            (model.warm_start,) if isinstance(model.warm_start, str) else tuple(model.warm_start)
        ),
        checkpoint_url=model.checkpoint_url,
        constraints=tuple(map(Constraint.parse, model.constraints)),
    )


def _from_pydantic(detail: dict[str, Any], value: Any) -> SpaceError:
    place = tuple(part for part in detail["loc"] if part not in (NAMED, DESCRIBED))
    pattern = re.sub(r"\[\d+\]", "[]", dotted(place))
    if detail["type"] == "extra_forbidden":
        known = _known_keys(re.sub(r"\[\d+\]", "[]", dotted(place[:-1])))
        return unknown(place, place[-1], known, "key")
    expected = EXPECTED.get(pattern)
    if expected is None:
        expected = "a name"
        if pattern.startswith(("budget.", "final.")):
            expected = "a whole number above 0"
        elif pattern.startswith(("utility.", "holdout.", "limits.")):
            expected = "a number above 0"
    if detail["type"] == "missing":
        return SpaceError(place, MISSING, expected)
    given = value
    for part in place:
        given = given[part]
    close = nearest(given, CHOICES.get(pattern, ())) if isinstance(given, str) else None
    return SpaceError(place, given, expected, close)


def _without_echoes(problems: list[SpaceError]) -> list[SpaceError]:
    """Where a key is unknown, what is missing beside it is most likely that key, misspelt."""
    misspelt = {problem.path[:-1] for problem in problems if problem.problem is not None}
    return [
        problem
        for problem in problems
        if problem.value is not MISSING or problem.path[:-1] not in misspelt
    ]


def _known_keys(pattern: str) -> list[str]:
    models: dict[str, type[BaseModel]] = {
        "": StudyModel,
        "budget": BudgetModel,
        "search": SearchModel,
        "final": FinalModel,
        "utility": UtilityModel,
        "holdout": HoldoutModel,
        "limits": LimitsModel,
        "objectives[]": ObjectiveModel,
    }
    return list(models[pattern].model_fields)


def _space(value: Mapping[str, Any], problems: list[SpaceError]) -> Space | None:
    if not isinstance(value.get("space"), dict):
        return None
    found: list[SpaceError] = []
    entries = read_parameters(value["space"], (), found)
    problems += [problem.under("space") for problem in found]
    clauses = value.get("forbidden", [])
    if isinstance(clauses, list):
        for index, clause in enumerate(clauses):
            try:
                normalise([clause])
            except SpaceError as error:
                problems.append(SpaceError.under(_without_index(error), "forbidden", index))
                found.append(error)
    if found or not isinstance(clauses, list):
        return None
    try:
        return Space(entries, clauses)
    except SpaceError as error:
        outer = error.path[:1] == ("forbidden",)
        problems.append(error if outer else error.under("space"))
        return None


def _without_index(error: SpaceError) -> SpaceError:
    """A mistake in ``forbidden[0]`` of a list of one clause, as one of that clause."""
    return SpaceError(error.path[2:], error.value, error.expected, error.nearest, error.problem)


def _task_problems(address: str, path: Path) -> list[SpaceError]:
    match = _ADDRESS.fullmatch(address)
    if match is None or (
        not match["place"].endswith(_PYTHON_FILE) and not _MODULE.fullmatch(match["place"])
    ):
        return [SpaceError("task", address, EXPECTED["task"])]
    place = match["place"]
    if not place.endswith(_PYTHON_FILE):
        return []
    file = path.parent / place
    try:
        if file.is_file():
            return []
        siblings = [other.name for other in file.parent.iterdir() if other.suffix == _PYTHON_FILE]
    except (OSError, ValueError):
        siblings = []
    close = nearest(file.name, siblings)
    problem = SpaceError(
        "task",
        address,
        "a path relative to this file",
        f"{Path(place).parent / close}:{match['object']}" if close else None,
        problem=f"there is no file {shown(place)}",
    )
    return [problem]


def _absolute(address: str, path: Path) -> str:
    place, _, name = address.rpartition(":")
    return f"{(path.parent / place).resolve()}:{name}" if place.endswith(_PYTHON_FILE) else address


def _objective_problems(model: StudyModel) -> list[SpaceError]:
    problems, seen = [], set()
    known = known_objectives()
    for index, entry in enumerate(model.objectives):
        place: Place = ("objectives", index)
        name = entry if isinstance(entry, str) else entry.name
        if isinstance(entry, str) and entry not in known:
            close = nearest(entry, known)
            problems.append(
                SpaceError(
                    place,
                    entry,
                    f"one of {listed(known)}, or a mapping with name, direction and kind",
                    close,
                    problem=f"unknown objective {shown(entry)}",
                )
            )
        if name in seen:
            problems.append(SpaceError(place, name, "every objective once"))
        seen.add(name)
        bounds = None if isinstance(entry, str) else entry.bounds
        if bounds and not (all(map(math.isfinite, bounds)) and bounds[0] < bounds[1]):
            problems.append(SpaceError((*place, "bounds"), bounds, "[lower, upper]"))
    if not problems and all(_objective(entry).kind != "curve" for entry in model.objectives):
        problems.append(
            SpaceError(
                "objectives",
                list(seen),
                "at least one such as validation_loss",
                problem="none changes with training (kind curve)",
            )
        )
    return problems


def _constraint_problems(model: StudyModel) -> list[SpaceError]:
    problems = []
    known = known_objectives()
    described = [e for e in model.objectives if not isinstance(e, str) or e in known]
    objectives = [_objective(entry) for entry in described]
    for index, text in enumerate(model.constraints):
        place: Place = ("constraints", index)
        try:
            constraint = Constraint.parse(text)
        except ValueError:
            problems.append(SpaceError(place, text, EXPECTED["constraints[]"]))
            continue
        close = misspelt_metric(constraint.name, objectives)
        if close is not None:
            near = str(replace(constraint, name=close))
            problem = f"unknown metric {shown(constraint.name)}"
            problems.append(SpaceError(place, text, "a metric's name", near, problem=problem))
    return problems


def _objective(entry: str | ObjectiveModel) -> Objective:
    if isinstance(entry, str):
        return known_objectives()[entry]
    fields = entry.model_dump()
    bounds = fields.pop("bounds")
    return Objective(**fields, bounds=None if bounds is None else (bounds[0], bounds[1]))


def _budget_problems(budget: BudgetModel) -> list[SpaceError]:
    problems = [
        SpaceError(("budget", other), getattr(budget, other), f"either {one} or {other}, not both")
        for one, other in (("epochs", "steps"), ("minutes", "seconds"))
        if getattr(budget, one) is not None and getattr(budget, other) is not None
    ]
    if all(getattr(budget, limit) is None for limit in _LIMITS):
        problems.append(
            SpaceError(
                "budget",
                MISSING,
                f"at least one of {listed(_LIMITS)}",
                problem="would never end the search",
            )
        )
    return problems


def _utility_problems(utility: UtilityModel | None) -> list[SpaceError]:
    if utility is None:
        return []
    given = utility.model_dump(exclude_none=True)
    gains = [key for key in ("improvement", "percent") if key in given]
    if len(gains) == 1 and len(given) == 2:
        return []
    return [SpaceError("utility", given, EXPECTED["utility"])]


def _budget(budget: BudgetModel) -> Budget:
    seconds = budget.seconds if budget.minutes is None else budget.minutes * 60
    return Budget(
        units=budget.epochs if budget.steps is None else budget.steps,
        trials=budget.trials,
        seconds=None if seconds is None else float(seconds),
        evaluations=budget.evaluations,
        gpu_seconds=budget.gpu_seconds,
    )


def _unit(budget: BudgetModel) -> Literal["epoch", "step"] | None:
    if budget.epochs is not None:
        return "epoch"
    return None if budget.steps is None else "step"


def _named(entry: str | PluginModel) -> dict[str, Any]:
    return {"name": entry} if isinstance(entry, str) else entry.model_dump()

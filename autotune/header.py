"""What a study is before its first event: written once to the record, compared on resuming.

With the header and the events, everything about a study can be told without its task.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from autotune.plugins.constraints import Constraint
from autotune.plugins.discovery import RENAMED
from autotune.plugins.execution import Limits
from autotune.plugins.search import (
    AUTO,
    Budget,
    Earlier,
    EarlierTrial,
    Event,
    Extended,
    Final,
    Holdout,
    Objective,
    SearchContext,
    Utility,
)
from autotune.record import RecordError
from autotune.space import Configuration, Space
from autotune.space.yaml_text import dump

SEARCH_DEFAULTS = {"policy": AUTO, "proposer": "tpe", "forecaster": "pfn"}


class StudyError(Exception):
    """A study cannot be begun, resumed or read; the message says why and what to do."""


@dataclass(frozen=True)
class Header:
    """A study's description.

    Args:
        name: of the study and of its folder.
        created: UTC time in ISO format.
        task: the task's importable address, or None if it was handed over as an object.
        task_name: the task in words, for messages.
        unit: what a step of a trial counts.
        space: as the user gave it, with "all plugins of a kind" unresolved.
        resolved: the same with every plugin choice resolved; what the search works on.
        first: the user's own configurations, completed with defaults.
        search: by part (policy, proposer, forecaster) its name and hyperparameters.
        policy_reason: why ``policy: auto`` picked that policy; empty if the user named it.
        executor: the executor's name and options.
        plugins: (kind, name, distribution, version) of every plugin the study may use.
        left_out: (kind, name, reason) of every plugin that cannot work with the task's model.
        fingerprint: digest of the task's data.
        versions: of autotune, torch and Python when the study began.
        source: the study file, if it came from one.
        final: of the final phase; None without one.
        utility: what an improvement is worth; None if the search does not stop by it.
        earlier: what earlier studies bring, fitted to this one's space.
        holdout: of the reusable hold-out; None without one.
        limits: of segments and checkpoints.
        derived: as `SearchContext.derived`.
        checkpoint_url: of the folder of its checkpoints; None: ``checkpoints/`` in its own.
        costs: what a unit is declared to cost, by choice and option (`declared_costs`).
        constraints: limits that the winner must keep.
        warm: training configurations from there, tried after the default and the user's own.
    """

    name: str
    created: str
    task: str | None
    task_name: str
    unit: Literal["epoch", "step"]
    space: Space
    resolved: Space
    objectives: tuple[Objective, ...]
    budget: Budget
    horizon: int
    seed: int
    workers: int
    device: str
    first: tuple[Configuration, ...]
    search: Mapping[str, Mapping[str, Any]]
    executor: Mapping[str, Any]
    plugins: tuple[tuple[str, str, str, str], ...]
    left_out: tuple[tuple[str, str, str], ...]
    fingerprint: str
    versions: Mapping[str, str]
    source: str | None = None
    final: Final | None = None
    utility: Utility | None = None
    earlier: tuple[Earlier, ...] = ()
    warm: tuple[Configuration, ...] = ()
    holdout: Holdout | None = None
    policy_reason: str = ""
    derived: Mapping[str, Configuration] = field(default_factory=dict)
    checkpoint_url: str | None = None
    costs: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    constraints: tuple[Constraint, ...] = ()
    limits: Limits = field(default_factory=Limits)

    def context(self, events: Iterable[Event] = ()) -> SearchContext:
        """What the deciding parts are told at the start, or by the end of `events`."""
        training, evaluation = self.resolved.split()
        context = SearchContext(
            space=training,
            evaluation_space=evaluation,
            objectives=self.objectives,
            horizon=self.horizon,
            budget=self.budget,
            seed=self.seed,
            workers=self.workers,
            first=(
                *(self.resolved.split_configuration(c)[0] for c in self.first),
                *self.warm,
            ),
            earlier=self.earlier,
            final=self.final,
            utility=self.utility,
            holdout=self.holdout,
            derived=self.derived,
            costs=self.costs,
            constraints=self.constraints,
        )
        for event in events:
            if isinstance(event, Extended):
                context = context.extended(event)
        return context

    def to_plain(self) -> dict[str, Any]:
        """JSON-ready values."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {
            **plain,
            "space": self.space.to_plain(),
            "resolved": self.resolved.to_plain(),
            "objectives": [asdict(objective) for objective in self.objectives],
            "constraints": [asdict(constraint) for constraint in self.constraints],
            "budget": asdict(self.budget),
            "final": None if self.final is None else asdict(self.final),
            "utility": None if self.utility is None else asdict(self.utility),
            "holdout": None if self.holdout is None else asdict(self.holdout),
            "earlier": [asdict(earlier) for earlier in self.earlier],
            "limits": asdict(self.limits),
        }

    def study_file(self) -> str:
        """The study as a file that begins another like it, every default written out. A task
        that was handed over as an object has no address to put there, which a comment says."""
        space = self.space.to_plain()
        limits = {
            f"{self.unit}s": self.budget.units,
            "trials": self.budget.trials,
            "seconds": self.budget.seconds,
            "evaluations": self.budget.evaluations,
            "gpu_seconds": self.budget.gpu_seconds,
        }
        objectives = [
            {k: v for k, v in asdict(objective).items() if v not in (None, "", False)}
            for objective in self.objectives
        ]
        described: dict[str, Any] = {
            "name": self.name,
            **({} if self.task is None else {"task": self.task}),
            "space": space["parameters"],
            **({"forbidden": space["forbidden"]} if space.get("forbidden") else {}),
            "objectives": [_listed(objective) for objective in objectives],
            **({"constraints": list(map(str, self.constraints))} if self.constraints else {}),
            "budget": {key: value for key, value in limits.items() if value is not None},
            "final": False if self.final is None else asdict(self.final),
            **({} if self.utility is None else {"utility": self._worth(self.utility)}),
            "horizon": self.horizon,
            "seed": self.seed,
            **({"first": list(self.first)} if self.first else {}),
            **({} if self.holdout is None else {"holdout": asdict(self.holdout)}),
            **({"warm_start": [one.name for one in self.earlier]} if self.earlier else {}),
            "limits": self._limits(),
            "search": {part: dict(chosen) for part, chosen in self.search.items()},
            "executor": {**self.executor, "workers": self.workers, "device": self.device},
            # of which the study's own folder is the last part
            **({"checkpoint_url": url.rpartition("/")[0]} if (url := self.checkpoint_url) else {}),
        }
        missing = f"# The task, {self.task_name}, was handed over as an object: name one here.\n"
        return (missing if self.task is None else "") + dump(described)

    def _worth(self, utility: Utility) -> dict[str, float]:
        values = {**asdict(utility), f"{self.unit}s": utility.units}
        return {k: v for k, v in values.items() if v is not None and k != "units"}

    def _limits(self) -> dict[str, float]:
        minutes = self.limits.segment_seconds
        gigabytes = self.limits.checkpoint_bytes / 1e9
        return {
            **({} if minutes is None else {"segment_minutes": minutes / 60}),
            "checkpoint_gb": gigabytes,
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Header:
        """Inverse of `to_plain`, also after a passage through JSON.

        Raises:
            RecordError: it is not the header of a study of this version.
        """
        try:
            return cls._from_plain(plain)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RecordError(
                f"the study's header cannot be read ({type(error).__name__}: {error}); was it "
                f"written by another version of autotune?"
            ) from error

    @classmethod
    def _from_plain(cls, plain: Mapping[str, Any]) -> Header:
        objectives = []
        for values in plain["objectives"]:
            bounds = values.get("bounds")
            objectives.append(Objective(**{**values, "bounds": tuple(bounds) if bounds else None}))
        return cls(
            **{
                **plain,
                "space": Space.from_plain(plain["space"]),
                "resolved": Space.from_plain(plain["resolved"]),
                "objectives": tuple(objectives),
                "search": {
                    part: {**chosen, "name": RENAMED.get((part, chosen["name"]), chosen["name"])}
                    for part, chosen in plain["search"].items()
                },
                "constraints": tuple(Constraint(**c) for c in plain.get("constraints", ())),
                "budget": Budget(**plain["budget"]),
                "final": Final(**plain["final"]) if plain.get("final") else None,
                "utility": Utility(**plain["utility"]) if plain.get("utility") else None,
                "holdout": Holdout(**plain["holdout"]) if plain.get("holdout") else None,
                "earlier": tuple(_earlier(values) for values in plain.get("earlier", ())),
                "warm": tuple(plain.get("warm", ())),
                "limits": Limits(**plain.get("limits", {})),
                "first": tuple(plain["first"]),
                "plugins": tuple(
                    (kind, RENAMED.get((kind, name), name), *rest)
                    for kind, name, *rest in plain["plugins"]
                ),
                "left_out": tuple(tuple(row) for row in plain["left_out"]),
            }
        )


def _earlier(plain: Mapping[str, Any]) -> Earlier:
    curve = ("steps", "values", "seconds")
    trials = [
        EarlierTrial(**{**trial, **{name: tuple(trial[name]) for name in curve}})
        for trial in plain["trials"]
    ]
    return Earlier(plain["name"], tuple(trials), tuple(plain["notes"]))


def differences(recorded: Header, now: Header) -> list[str]:
    """How a study differs from what its record says, in words; empty if it may go on as it was.

    Looks at what would change the meaning of recorded observations: task, data, plugins and
    space. Plugins that were installed since do not matter: the study keeps to its own.
    """
    found = []
    if recorded.task != now.task:
        found.append(f"task: was {_said(recorded.task)}, now {_said(now.task)}")
    if recorded.fingerprint != now.fingerprint:
        found.append(
            f"data: the task's fingerprint was {recorded.fingerprint or 'empty'}, "
            f"now {now.fingerprint or 'empty'}"
        )
    installed = {(kind, name): (source, version) for kind, name, source, version in now.plugins}
    for kind, name, source, version in recorded.plugins:
        if (present := installed.get((kind, name))) is None:
            found.append(f"{kind} {name!r}: was of {source} {version}, now missing")
        elif present != (source, version):
            found.append(
                f"{kind} {name!r}: was of {source} {version}, now {present[0]} {present[1]}"
            )
    found += [f"space: {line}" for line in _changes(_plain(recorded), _plain(now))]
    return found


def _listed(objective: dict[str, Any]) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in objective.items()}


def _plain(header: Header) -> Any:
    return header.resolved.to_plain()


def _said(address: str | None) -> str:
    return "given as an object" if address is None else address


def _changes(was: Any, now: Any, path: str = "") -> Iterator[str]:
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        for key in [*was, *(key for key in now if key not in was)]:
            inner = f"{path}.{key}" if path else str(key)
            if key not in now:
                yield f"{inner}: was {was[key]!r}, now missing"
            elif key not in was:
                yield f"{inner}: was missing, now {now[key]!r}"
            else:
                yield from _changes(was[key], now[key], inner)
    elif was != now:
        yield f"{path}: was {was!r}, now {now!r}"


def unstarted(folder: Path) -> str:
    """What to say of a folder whose study never began."""
    return (
        f"nothing was recorded in {folder} (killed while starting up?), so there is nothing to "
        f"go on with: run the study again"
    )

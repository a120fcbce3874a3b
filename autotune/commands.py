"""What the command line does to studies: begin, go on with, and look at one."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autotune.result import Point, Result, StudyView

FOLDER = "autotune_studies"
NOTHING_TRAINED = 1

Command = Callable[[argparse.Namespace], int]


def register(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands to a parser.

    Args:
        add: ``add_parser`` of argparse's sub-parsers.
    """
    run = _command(add, "run", run_study, "tune what a study file describes")
    # Optional for argparse only: after an option that takes several values, the file is taken for
    # one of them (`_file_of` finds it there).
    run.add_argument("file", type=Path, nargs="?", help="the study file (YAML)")
    run.add_argument("--name", help="of the study; refused if there is one of that name")
    run.add_argument("--seed", type=int, help="of everything random")
    run.add_argument(
        "--budget",
        nargs="+",
        action="extend",
        metavar="LIMIT=NUMBER",
        default=[],
        help="in place of the file's limits: epochs=300 minutes=4 gpu_seconds=7200 trials=80 "
        "evaluations=40; minutes=none drops a limit",
    )
    run.add_argument(
        "--final",
        nargs="+",
        action="extend",
        metavar="KEY=NUMBER",
        default=[],
        help="in place of the file's final phase: candidates=3 seeds=3 share=0.2 "
        "cooldown=0.2 refine=1; off for none",
    )
    run.add_argument(
        "--utility",
        nargs="+",
        action="extend",
        metavar="KEY=NUMBER",
        default=[],
        help="end the search when no training is expected to be worth its cost: percent=1 "
        "epochs=30 (or improvement=0.002 minutes=10); none for whatever it costs",
    )
    run.add_argument(
        "--warm-start",
        action="append",
        metavar="STUDY",
        default=[],
        help="an earlier study to begin from, beside the file's own; may be given again",
    )
    _means(run)
    resume = _command(
        add, "resume", resume_study, "go on with a study that did not end, or with a larger budget"
    )
    _study(resume)
    _means(resume)
    resume.add_argument(
        "--budget",
        nargs="+",
        action="extend",
        metavar="LIMIT=NUMBER",
        default=[],
        help="in place of the limits that the study has, after its end too: epochs=600",
    )
    resume.add_argument(
        "--horizon",
        type=int,
        help="train up to so many epochs (or steps) a trial: those whose schedule knows no "
        "horizon go on from their checkpoints, the others stay at the horizon they have",
    )
    resume.add_argument(
        "--accept-changes",
        action="store_true",
        help="although data, task, plugin versions or plugin spaces are not as recorded",
    )
    status = _command(add, "status", show_status, "tell where a study stands")
    status.add_argument("--failed", action="store_true", help="why trials failed, with tracebacks")
    best = _command(add, "best", show_best, "show the best configuration")
    pareto = _command(add, "pareto", show_pareto, "show the Pareto front")
    report = _command(add, "report", write_report, "write the HTML report")
    export = _command(add, "export", export_winner, "write the winner as a plain PyTorch script")
    for parser in (status, best, pareto, report, export):
        _study(parser)
    for parser in (status, best, pareto):
        parser.add_argument("--json", action="store_true", help="for programs")
    for parser, what, default in ((report, "file", "report.html"), (export, "folder", "export")):
        parser.add_argument(
            "--output",
            type=Path,
            metavar="PATH",
            help=f"the {what} to write (default: {default} in the study's folder)",
        )


def _command(
    add: Callable[..., argparse.ArgumentParser], name: str, command: Command, text: str
) -> argparse.ArgumentParser:
    parser = add(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(command=command)
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path(FOLDER),
        metavar="PATH",
        help=f"that holds the studies (default: {FOLDER})",
    )
    return parser


def _study(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--study", help="its name, or its folder's path (default: the newest)")


def _means(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--executor", help="local, ray, or another that is installed")
    parser.add_argument(
        "--ray-address",
        metavar="ADDRESS",
        help="of a running Ray cluster, such as HOST:PORT, or auto for this machine's",
    )
    parser.add_argument("--workers", type=int, help="segments that run at once")
    parser.add_argument(
        "--segment-minutes",
        type=float,
        metavar="NUMBER",
        help="end a segment that takes longer; its trial has failed",
    )
    parser.add_argument(
        "--checkpoint-gb",
        type=float,
        metavar="NUMBER",
        help="what all checkpoints together may take on disk (default: 10)",
    )
    parser.add_argument("--device", choices=("cpu", "cuda", "auto"))
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--progress", action="store_true", default=True, help="(the default)")
    shown.add_argument("--quiet", dest="progress", action="store_false", help="no live progress")


# --- run and resume -------------------------------------------------------------------------


def run_study(arguments: argparse.Namespace) -> int:
    """``autotune run``"""
    from autotune.api import as_earlier, other_executor, run
    from autotune.asked import as_limits, as_numbers, with_limits
    from autotune.begin import begin

    file = _file_of(arguments)
    plan = plan_of(file, arguments.folder)
    further = as_earlier(arguments.warm_start, arguments.folder)
    limits = as_numbers("--budget", arguments.budget)
    budget, unit = with_limits(plan.budget, plan.unit, limits)
    given = {key: getattr(arguments, key) for key in ("name", "seed", "workers", "device")}
    plan = replace(
        plan,
        budget=budget,
        unit=unit,
        executor=other_executor(_executor(arguments), plan.executor),
        limits=as_limits(_limits(arguments), plan.limits),
        warm_start=(*plan.warm_start, *further),
        **_with_ends(arguments),
        **{key: value for key, value in given.items() if value is not None},
    )
    log, header, task = begin(plan, arguments.folder, exact_name=arguments.name is not None)
    return _conclude(run(log, header, task, progress=arguments.progress))


def _executor(arguments: argparse.Namespace) -> str | dict[str, Any] | None:
    """The executor that the command line asks for, if it does."""
    from autotune.header import StudyError

    if arguments.ray_address is None:
        name: str | None = arguments.executor
        return name
    if arguments.executor not in (None, "ray"):
        raise StudyError(f"--ray-address: the executor is {arguments.executor!r}; expected ray")
    return {"name": "ray", "address": arguments.ray_address}


def _limits(arguments: argparse.Namespace) -> dict[str, float] | None:
    """The limits that the command line gives, None if it gives none."""
    given = {key: getattr(arguments, key) for key in ("segment_minutes", "checkpoint_gb")}
    return {key: value for key, value in given.items() if value is not None} or None


def _file_of(arguments: argparse.Namespace) -> Path:
    """The study file; also where it stands behind the values of an option, which takes it for
    one more."""
    from autotune.header import StudyError

    if arguments.file is not None:
        return Path(arguments.file)
    for values in (arguments.budget, arguments.final, arguments.utility):
        if values and values[-1].endswith((".yaml", ".yml")):
            return Path(values.pop())
    raise StudyError("run: which study file? expected autotune run FILE.yaml")


def _with_ends(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the command line says of the final phase and of utility, as fields of a plan."""
    from autotune.asked import as_final, as_numbers, as_utility

    changes: dict[str, Any] = {}
    if arguments.final:
        off = arguments.final == ["off"]
        changes["final"] = as_final(not off and as_numbers("--final", arguments.final))
    if arguments.utility:
        none = arguments.utility == ["none"]
        given = None if none else as_numbers("--utility", arguments.utility)
        changes["utility"], changes["priced"] = as_utility(given)  # type: ignore[arg-type]
    return changes


def plan_of(path: Path, folder: Path = Path(FOLDER)) -> Any:
    """The plan that a study file describes; `folder` holds the studies that it begins from."""
    from autotune import study_file
    from autotune.api import as_earlier
    from autotune.asked import as_final, as_holdout, as_limits, as_utility
    from autotune.begin import Plan

    described = study_file.load(path)
    utility, priced = as_utility(described.utility)
    return Plan(
        task=described.task,
        space=described.space,
        objectives=described.objectives,
        constraints=described.constraints,
        budget=described.budget,
        horizon=described.horizon,
        name=described.name,
        seed=described.seed,
        unit=described.unit,
        first=described.first,
        search=described.search,
        executor=described.executor,
        workers=described.workers,
        device=described.device,
        source=str(path.resolve()),
        final=as_final(described.final),
        utility=utility,
        priced=priced,
        warm_start=as_earlier(described.warm_start, folder),
        holdout=as_holdout(described.holdout),
        checkpoint_url=described.checkpoint_url,
        limits=as_limits(described.limits),
    )


def resume_study(arguments: argparse.Namespace) -> int:
    """``autotune resume``"""
    from autotune.api import resume
    from autotune.asked import as_numbers

    result = resume(
        find_study(arguments),
        budget=as_numbers("--budget", arguments.budget),
        horizon=arguments.horizon,
        executor=_executor(arguments),
        workers=arguments.workers,
        device=arguments.device,
        limits=_limits(arguments),
        accept_changes=arguments.accept_changes,
        progress=arguments.progress,
    )
    return _conclude(result)


def _conclude(result: Result) -> int:
    """Write the report, and say what came out and where everything is."""
    from autotune.report import print_summary
    from autotune.report import write_report as write

    view = result.view
    print_summary(view)
    write(view, result.report)
    where = "" if str(view.folder.parent) == FOLDER else f" --folder {view.folder.parent}"
    print(f"\ncheckpoints  {view.checkpoints}")
    if result.best is not None:
        print(f"the best one {view.checkpoints}/{result.best.checkpoint}")
    print(f"report       {result.report}")
    print(f"next         autotune best|pareto|export --study {view.folder.name}{where}")
    sys.stdout.flush()
    return 0 if result.best is not None else NOTHING_TRAINED


# --- looking --------------------------------------------------------------------------------


def find_study(arguments: argparse.Namespace) -> Path:
    """The study that is meant: the named one, else the newest. Raises `StudyError`."""
    from autotune.api import find, studies
    from autotune.header import StudyError

    if arguments.study is not None:
        return find(arguments.study, arguments.folder)
    found = studies(arguments.folder)
    if not found:
        raise StudyError(
            f"there are no studies in {arguments.folder}; begin one with `autotune run FILE`, or "
            f"say where they are with --folder"
        )
    return found[0]


def _view(arguments: argparse.Namespace) -> StudyView:
    from autotune.result import StudyView

    return StudyView(find_study(arguments))


def show_status(arguments: argparse.Namespace) -> int:
    """``autotune status``"""
    from autotune.report.words import constraint_counts

    view = _view(arguments)
    facts = status_of(view)
    if arguments.failed:
        facts["failures"] = failures_of(view)
    if arguments.json:
        return _print_json(facts)
    budget, spent = facts["budget"], facts["spent"]
    limits = ", ".join(
        f"{spent[key]:.4g} of {limit:.4g} {key}"
        for key, limit in budget.items()
        if limit is not None
    )
    trials = ", ".join(f"{count} {name}" for name, count in facts["trials"].items() if count)
    print(f"study   {view.name} ({view.folder})")
    print(f"state   {facts['state']}")
    print(f"task    {view.header.task_name}")
    print(f"spent   {limits}")
    print(f"trials  {trials or 'none yet'}")
    if (limits := facts["constraints"]) is not None:
        counts = {True: limits["feasible"], False: limits["violating"], None: limits["unknown"]}
        print(f"limits  {', '.join(limits['limits'])}: {constraint_counts(counts)}")
    kept = facts["checkpoints"]
    gone = [f"{kept[key]} {key}" for key in ("evicted", "damaged") if kept[key]]
    print(
        f"disk    checkpoints take {kept['bytes'] / 1e9:.3g} of "
        f"{kept['budget_bytes'] / 1e9:.4g} GB{''.join(', ' + text for text in gone)}"
    )
    if facts["retried"]:
        causes = (f"{count} ({cause})" for cause, count in facts["retried"].items())
        print(f"retried {', '.join(causes).replace('_', ' ')}")
    if facts["best"] is not None:
        name, best = view.context.objective.name, facts["best"]
        print(
            f"best    {name} {best['metrics'][name]:.6g} by trial {best['trial']} at "
            f"{view.header.unit} {best['step']}"
        )
        if view.result.unmet is not None:
            print(f"unmet   {view.result.unmet}")
    policy = facts["policy"]
    print(f"policy  {policy['name']}" + (f" (auto: {policy['why']})" if policy["why"] else ""))
    for kind, name, reason in view.header.left_out:
        print(f"left out: {kind} {name}: {reason}")
    for line in facts["restored"]:
        print(f"restored: {line}")
    for failure in facts.get("failures", ()):
        print(
            f"\ntrial {failure['trial']} failed after {view.header.unit} {failure['step']} ", end=""
        )
        print(f"({failure['cause'].replace('_', ' ')}): {failure['message']}")
        print(failure["traceback"].rstrip() or "  (no traceback)")
    return 0


def failures_of(view: StudyView) -> list[dict[str, Any]]:
    """Every failure of a trial or an evaluation, as JSON-ready values, the first first."""
    from autotune.plugins.search import Failed

    names = ("trial", "step", "cause", "message", "evaluation", "traceback")
    return [
        {name: getattr(event, name) for name in names}
        for event in view.events
        if isinstance(event, Failed)
    ]


def status_of(view: StudyView) -> dict[str, Any]:
    """Where a study stands, as JSON-ready values."""
    from autotune import record
    from autotune.plugins.search import Evicted, Lost

    driver = record.driver(view.folder)
    if view.finished:
        state = f"ended: {view.result.reason}"
    elif driver is not None:
        state = f"running (process {driver})"
    elif view.header.task is None:
        state = (
            f"interrupted; its task was handed over as an object, so go on from Python: "
            f"autotune.resume({str(view.folder)!r}, task=task)"
        )
    else:
        state = f"interrupted; go on with: {record.resume_command(view.folder)}"
    counts = dict.fromkeys(("running", "frozen", "done", "new", "evicted", "failed"), 0)
    for trial in view.trials.all.values():
        counts[trial.status] += 1
    if driver is None:
        counts["frozen"] += counts.pop("running")
    budget, unit = view.context.budget, view.header.unit + "s"
    seconds = max(view.trials.at, float(view.meta.get("clock", 0.0)))
    return {
        "name": view.name,
        "folder": str(view.folder),
        "state": state,
        "finished": view.finished,
        "running": driver is not None,
        "budget": {
            unit: budget.units,
            "trials": budget.trials,
            "seconds": budget.seconds,
            "evaluations": budget.evaluations,
            "gpu_seconds": budget.gpu_seconds,
        },
        "spent": {
            unit: view.trials.units,
            "trials": len(view.trials) - view.trials.further,
            "seconds": seconds,
            "evaluations": view.trials.evaluations,
            "gpu_seconds": view.trials.gpu_seconds,
        },
        "trials": counts,
        "constraints": _constraints_of(view),
        "policy": {
            "name": view.header.search["policy"]["name"],
            "why": view.header.policy_reason,
        },
        "restored": view.meta.get("restored", []),
        "checkpoints": {
            "bytes": kept_bytes(view),
            "budget_bytes": view.header.limits.checkpoint_bytes,
            "evicted": sum(isinstance(e, Evicted) and e.cause == "budget" for e in view.events),
            "damaged": sum(isinstance(e, Evicted) and e.cause == "damaged" for e in view.events),
        },
        "retried": dict(Counter(e.cause for e in view.events if isinstance(e, Lost))),
        "best": None if view.result.best is None else plain_point(view.result.best),
    }


def _constraints_of(view: StudyView) -> dict[str, Any] | None:
    """The constraints, and how many trials keep them; None without any."""
    if not view.context.constraints:
        return None
    found = Counter(view.result.feasibility.values())
    return {
        "limits": list(map(str, view.context.constraints)),
        "feasible": found[True],
        "violating": found[False],
        "unknown": found[None],
        "unmet": view.result.unmet,
    }


def kept_bytes(view: StudyView) -> int:
    """What a study's checkpoints take: on its disk, or of remote storage, as recorded."""
    from autotune.execute.store import checkpoint_bytes
    from autotune.plugins.search import Frozen

    if view.header.checkpoint_url is None:
        return checkpoint_bytes(view.folder)
    sizes = {event.checkpoint: event.size for event in view.events if isinstance(event, Frozen)}
    kept = (name for t in view.trials.all.values() for name in t.checkpoints.values())
    return sum(sizes[name] for name in kept)


def show_best(arguments: argparse.Namespace) -> int:
    """``autotune best``"""
    view = _view(arguments)
    result = view.result
    if result.best is None:
        print("nothing is trained yet, so there is no best configuration", file=sys.stderr)
        return NOTHING_TRAINED
    if arguments.json:
        finalists = [asdict(standing) for standing in result.standings]
        return _print_json(
            {
                **plain_point(result.best),
                "test": result.test,
                "study": view.name,
                "unmet": result.unmet,
                "finalists": finalists,
            }
        )
    from rich.console import Console

    from autotune.report.console import configuration_table, print_renderable, winner_line

    best = result.best
    print(f"trial {best.trial} of study {view.name} at {view.header.unit} {best.step}")
    for name, value in best.metrics.items():
        other = best.reported.get(name, value)
        unseen = f" ({other:.6g} on the part that no choice has seen)" if other != value else ""
        print(f"  {name} {value:.6g}{unseen}")
    for name, value in (result.test or {}).items():
        print(f"  {name} {value:.6g} (test split)")
    if result.unmet is not None:
        print(f"  {result.unmet}")
    elif view.context.constraints:
        print(f"  it keeps {', '.join(map(str, view.context.constraints))}")
    if result.winner is not None:
        print(f"  {winner_line(view)}")
    if result.test is None:
        print("  the test split is looked at when the search has stopped")
    print_renderable(configuration_table(best), Console())
    print(f"checkpoint {view.checkpoints}/{best.checkpoint}")
    return 0


def show_pareto(arguments: argparse.Namespace) -> int:
    """``autotune pareto``"""
    view = _view(arguments)
    front = view.result.pareto
    if arguments.json:
        return _print_json([plain_point(point) for point in front])
    if not front and view.result.unmet is not None:
        print(view.result.unmet, file=sys.stderr)
        return NOTHING_TRAINED
    if not front:
        print(
            "no point has all objectives yet; evaluation and latency are measured when the "
            "search has stopped",
            file=sys.stderr,
        )
        return NOTHING_TRAINED
    from rich.console import Console

    from autotune.report.console import front_table, print_renderable

    print_renderable(front_table(front, view), Console())
    return 0


def plain_point(point: Point) -> dict[str, Any]:
    """A point as JSON-ready values."""
    return {
        "trial": point.trial,
        "step": point.step,
        "configuration": point.configuration,
        "metrics": dict(point.metrics),
        "reported": dict(point.reported),
        "spread": dict(point.spread),
        "feasible": point.feasible,
        "checkpoint": point.checkpoint,
    }


def _print_json(value: Any) -> int:
    """Print strict JSON, in which NaN and infinities are null."""
    print(json.dumps(_strict(value), indent=2, allow_nan=False))
    return 0


def _strict(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _strict(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_report(arguments: argparse.Namespace) -> int:
    """``autotune report``"""
    from autotune.report import write_report as write

    view = _view(arguments)
    print(write(view, arguments.output or view.result.report))
    return 0


def export_winner(arguments: argparse.Namespace) -> int:
    """``autotune export``"""
    from autotune.export import export_script

    view = _view(arguments)
    print(export_script(view, arguments.output or view.folder / "export"))
    if view.result.unmet is not None:
        print(view.result.unmet, file=sys.stderr)
    return 0

"""Every bundled method against an independent reference, step by step in float64.

Plugin and reference go through the same small problems (`references/problems.py`) for fifty steps
from the same weights: once with the default configuration, and once for each other value of each
hyperparameter. Printed is the largest difference between the two, relative to the way that the
reference's tensor has gone, and where each reference comes from. A reference is a library's
implementation or the paper's equations written plainly by someone who has not seen the plugin.

    python benchmarks/fidelity.py                     # everything
    python benchmarks/fidelity.py --kind optimizer lion adamw
    python benchmarks/fidelity.py --smoke             # defaults alone, fewer steps

Exits with 1 if a method is out of its tolerance, fails, or has no reference.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autotune.plugins import Control, GradientNorms, Optimizer, Progress, Signals
from autotune.plugins import Schedule as SchedulePlugin
from autotune.plugins.discovery import OURS, Failure, load, records
from autotune.space import Choice, Float, Integer, Space, SpaceError
from autotune.train.batch_scaling import RULES

sys.path.insert(0, str(Path(__file__).parent))
from references.problems import PROBLEMS, Problem, Weights
from references.record import SEED, Reference, Scaling, Schedule

STEPS = 50
SMOKE_STEPS = 12


@dataclass(frozen=True)
class Row:
    """One method's line: `worst` is the largest relative difference, met at `where`."""

    kind: str
    name: str
    worst: float
    tolerance: float
    runs: int
    where: str
    source: str
    differences: str = ""
    reason: str = ""
    skipped: str = ""
    problem: str = ""

    @property
    def passes(self) -> bool:
        return not self.problem and self.worst <= self.tolerance


# --- configurations -----------------------------------------------------------------------------


def nested(path: str, value: Any) -> dict[str, Any]:
    """``{"a": {"b": value}}`` for the path ``a.b``."""
    for key in reversed(path.split(".")):
        value = {key: value}
    return value


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes` laid over it, at every depth."""
    result = dict(base)
    for key, value in changes.items():
        below = result.get(key)
        both = isinstance(below, Mapping) and isinstance(value, Mapping)
        result[key] = merged(below, value) if both else value
    return result


def other_values(parameter: Any) -> list[Any]:
    """Values to try beside the default: all of a list, two of a range."""
    if isinstance(parameter, Choice):
        values = list(parameter.options)
        default = parameter.default or values[0]
    elif isinstance(parameter, Float | Integer):
        values = [parameter.decode(0.25), parameter.decode(0.8)]
        default = parameter.default_value
    else:
        values = [parameter.decode((i + 0.5) / parameter.size) for i in range(parameter.size)]
        default = parameter.default_value
    return [value for value in values if value != default]


def configurations(
    space: Space, reference: Reference | Schedule, smoke: bool
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The default configuration, then each other value of each hyperparameter alone; what the
    reference's settings say is set in all of them."""
    fixed: dict[str, Any] = {}
    for path, value in reference.settings.items():
        fixed = merged(fixed, nested(path, value))
    yield "default", merged(space.default(), fixed)
    varied = [] if smoke else [slot for slot in space.slots if slot.path not in reference.skipped]
    for slot in varied:
        for value in other_values(slot.parameter):
            partial: dict[str, Any] = {}
            for path, option in slot.conditions:
                partial = merged(partial, nested(path, {"name": option}))
            chosen = {"name": value} if isinstance(slot.parameter, Choice) else value
            partial = merged(partial, nested(slot.path, chosen))
            try:
                whole = space.complete(partial)
            except SpaceError:  # a forbidden combination with the other defaults
                continue
            yield f"{slot.name}={value}", merged(merged(whole, fixed), partial)


# --- optimizers ---------------------------------------------------------------------------------


def run_optimizer(
    plugin: type[Optimizer],
    configuration: Mapping[str, Any],
    problem: Problem,
    drive: Callable[[torch.optim.Optimizer, int], None] | None = None,
) -> Iterator[Weights]:
    """The weights after each step, as the training loop drives the plugin."""
    torch.manual_seed(SEED)
    leaves = {name: nn.Parameter(weight) for name, weight in problem.weights().items()}
    optimizer = plugin(configuration).build(list(leaves.items()))
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", float(group["lr"]))
    for t in range(1, problem.steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * problem.factor(t)
        if drive is not None:
            drive(optimizer, t)
        _step(optimizer, plugin.needs, problem, t, leaves)
        switches = hasattr(optimizer, "train") and hasattr(optimizer, "eval")
        if switches:
            optimizer.eval()
        yield {name: leaf.detach().clone() for name, leaf in leaves.items()}
        if switches:
            optimizer.train()


def _step(
    optimizer: torch.optim.Optimizer,
    needs: frozenset[str],
    problem: Problem,
    t: int,
    leaves: Mapping[str, nn.Parameter],
) -> None:
    def closure() -> torch.Tensor:
        for leaf in leaves.values():
            leaf.grad = None
        with torch.enable_grad():
            loss = problem.objective(t, leaves)
            inputs = list(leaves.values())
            found = torch.autograd.grad(loss, inputs, create_graph="second_order" in needs)
            for leaf, gradient in zip(inputs, found, strict=True):
                leaf.grad = gradient
        return loss.detach()

    if "closure" in needs:
        optimizer.step(closure)
    else:
        value = closure().item()
        if "loss" in needs:
            optimizer.step(lambda: value)
        else:
            optimizer.step()
    for leaf in leaves.values():
        leaf.grad = None


def apart(ours: Sequence[Weights], theirs: Sequence[Weights], start: Weights) -> float:
    """Largest difference over steps and tensors, relative to the farthest that any element of
    the reference's tensor has gone from the start."""
    worst = 0.0
    for name, first in start.items():
        way = max((step[name] - first).abs().max().item() for step in theirs)
        gap = max((a[name] - b[name]).abs().max().item() for a, b in zip(ours, theirs, strict=True))
        if not gap >= 0.0:  # NaN on either side
            return float("inf")
        if gap > 0.0:
            worst = max(worst, gap / way if way > 0.0 else float("inf"))
    return worst


def compare_optimizer(plugin: type[Optimizer], reference: Reference, smoke: bool) -> Row:
    worst, where, runs = 0.0, "", 0
    for problem in (PROBLEMS[name]() for name in reference.problems):
        problem = replace(problem, steps=SMOKE_STEPS) if smoke else problem
        for label, configuration in configurations(plugin.space(), reference, smoke):
            ours = list(run_optimizer(plugin, configuration, problem, reference.drive))
            theirs = list(reference.trajectory(problem, configuration))
            difference = apart(ours, theirs, problem.weights())
            runs += 1
            if difference >= worst:
                worst, where = difference, f"{problem.name}, {label}"
    return _row(plugin.kind, plugin.name, reference, worst, where, runs)


# --- schedules ----------------------------------------------------------------------------------


def runs_of_schedules(smoke: bool) -> Iterator[tuple[str, list[Progress], list[Signals]]]:
    """Progresses and signals of whole runs: an even one, and one whose batch size changes."""
    for label, steps, sizes in (
        ("even batches", 60, (8,)),
        ("changing batches", 60, (8, 8, 16, 5)),
        ("long", 400, (32,)),
    )[: 1 if smoke else None]:
        total = sum(sizes[step % len(sizes)] for step in range(steps))
        generator = torch.Generator().manual_seed(steps)
        progresses, signals, samples = [], [], 0
        for step in range(steps):
            size = sizes[step % len(sizes)]
            progresses.append(
                Progress(
                    samples=samples,
                    horizon_samples=total,
                    samples_per_epoch=total // 5,
                    steps=step,
                    batch_size=size,
                )
            )
            signals.append(_signals(generator) if step else Signals())
            samples += size
        yield label, progresses, signals


def _signals(generator: torch.Generator) -> Signals:
    """Measurements of one step, all of them."""
    draws = torch.rand(5, generator=generator, dtype=torch.float64).tolist()
    return Signals(
        gradient_norm=0.3 + draws[0],
        measured_samples=8,
        per_sample_gradient_variance=8.0 * draws[1],
        inner_product_variance=4.0 * draws[2],
        orthogonal_variance=60.0 * draws[3],
        coordinate_variance_ratio=9.0 * draws[4],
    )


def _measured(before: Control, signals: Signals) -> Signals:
    """What of a step's signals there is, given the control that it was taken under."""
    if before.measured_samples != 0:
        return signals
    return Signals(gradient_norm=signals.gradient_norm)


def difference_of_controls(ours: Control, theirs: Control) -> float:
    """Of the factors; infinite where anything else that is commanded differs."""
    if replace(ours, factor=1.0, group_factors={}) != replace(theirs, factor=1.0, group_factors={}):
        return float("inf")
    if set(ours.group_factors) != set(theirs.group_factors):
        return float("inf")
    pairs = [(ours.factor, theirs.factor)]
    pairs += [(ours.group_factors[key], theirs.group_factors[key]) for key in theirs.group_factors]
    return max(abs(a - b) for a, b in pairs)


def compare_schedule(plugin: type[SchedulePlugin], reference: Schedule, smoke: bool) -> Row:
    worst, where, runs = 0.0, "", 0
    for run, progresses, signals in runs_of_schedules(smoke):
        for label, configuration in configurations(plugin.space(), reference, smoke):
            schedule = plugin(configuration)
            theirs = reference.controls(configuration, progresses, signals)
            seen = [Signals(), *map(_measured, theirs, signals[1:])]
            ours = [schedule.control(p, s) for p, s in zip(progresses, seen, strict=True)]
            size = max(abs(control.factor) for control in theirs) or 1.0
            gaps = [difference_of_controls(a, b) for a, b in zip(ours, theirs, strict=True)]
            difference = max(gaps) / size
            runs += 1
            if difference >= worst:
                step = gaps.index(max(gaps))
                worst, where = difference, f"{run}, {label}, step {step}"
    if reference.refined is not None:
        for norm, width in itertools.product(("l1", "l2"), (1, 5, 25)):
            difference = _refined_apart(plugin, reference.refined, norm, width)
            runs += 1
            if difference >= worst:
                worst, where = difference, f"refined from {norm} norms, filter of {width} steps"
    return _row(plugin.kind, plugin.name, reference, worst, where, runs)


def _refined_apart(plugin: type[SchedulePlugin], refined: Any, norm: Any, width: int) -> float:
    """The largest difference of factors in a run as long as the one whose norms are given."""
    draws = torch.rand(2, STEPS, generator=torch.Generator().manual_seed(width)).double()
    norms = GradientNorms([8 * step for step in range(STEPS)], 8 * STEPS, *draws.add(0.1).tolist())
    schedule = plugin()
    schedule.refine(norms, norm, width / STEPS)
    theirs = refined(getattr(norms, norm), norm, width)
    ours = [
        schedule.control(Progress(8 * step, 8 * STEPS, 8 * STEPS, step, 8), Signals()).factor
        for step in range(STEPS)
    ]
    return max(abs(a - b) for a, b in zip(ours, theirs, strict=True))


# --- rates that are carried over ----------------------------------------------------------------

SCALINGS = ("mup", *(rule for rule in RULES if rule != "none"))


def compare_scaling(name: str, reference: Scaling, smoke: bool) -> Row:
    worst, where, runs = 0.0, "", 0
    for label, ours, theirs, start in reference.pairs(SMOKE_STEPS if smoke else STEPS):
        difference = apart(ours, theirs, start)
        runs += 1
        if difference >= worst:
            worst, where = difference, label
    return _row("scaling", name, reference, worst, where, runs)


# --- all kinds ----------------------------------------------------------------------------------

KINDS: Mapping[str, Callable[[Any, Any, bool], Row]] = {
    "optimizer": compare_optimizer,
    "schedule": compare_schedule,
    "scaling": compare_scaling,
}
"""How a method of each kind is held against its reference, which lies in ``references/KINDs/``: a
plugin, or the name of what the training loop has."""


def _row(kind: str, name: str, reference: Any, worst: float, where: str, runs: int) -> Row:
    return Row(
        kind=kind,
        name=name,
        worst=worst,
        tolerance=reference.tolerance,
        runs=runs,
        where=where if worst > 0.0 else "-",
        source=reference.source,
        differences=reference.differences,
        reason=reference.reason,
        skipped="; ".join(f"{path} ({why})" for path, why in reference.skipped.items()),
    )


def reference_of(kind: str, name: str) -> Any | None:
    """The reference in ``references/KINDs/NAME.py``, None if there is no such file."""
    module = f"references.{kind}s.{name}"
    if importlib.util.find_spec(module) is None:
        return None
    return importlib.import_module(module).REFERENCE


def failed(kind: str, name: str, problem: str) -> Row:
    return Row(kind, name, float("nan"), 0.0, 0, "-", "-", problem=problem)


def compare(kind: str, method: Any, smoke: bool) -> Row:
    """The row of one registered plugin, or of what the training loop has."""
    name = method if isinstance(method, str) else method.bare
    found = method if isinstance(method, str) else load(method)
    if isinstance(found, Failure):
        return failed(kind, name, f"the plugin cannot be loaded: {found.cause}")
    reference = reference_of(kind, name)
    if reference is None:
        return failed(kind, name, f"no reference: references/{kind}s/{name}.py is missing")
    try:
        return KINDS[kind](found, reference, smoke)
    except Exception as error:  # one method that raises is one failing row
        return failed(kind, name, f"raised {type(error).__name__}: {error}")


def methods(kind: str) -> dict[str, Any]:
    """What is compared of a kind, by name: the bundled plugins, or names alone."""
    if kind == "scaling":
        return {name: name for name in SCALINGS}
    return {record.bare: record for record in records(kind) if record.distribution == OURS}


def rows(kinds: Sequence[str], names: Sequence[str], smoke: bool) -> Iterator[Row]:
    """A row for each method of `kinds`; only those named, if any are."""
    for kind in kinds:
        for name, method in methods(kind).items():
            if not names or name in names:
                yield compare(kind, method, smoke)


def show(row: Row) -> None:
    verdict = "ok" if row.passes else "OUT"
    figures = f"{row.worst:10.1e} {row.tolerance:10.0e} {row.runs:5d}"
    print(f"{row.kind:10} {row.name:28} {figures}  {verdict:3}  {row.source}", flush=True)
    notes = [
        ("paper and code", row.differences),
        ("tolerance", row.reason),
        ("not varied", row.skipped),
        ("worst at", "" if row.passes else row.where),
        ("problem", row.problem),
    ]
    for title, text in notes:
        if text and text != "-":
            print(
                textwrap.fill(
                    f"{title}: {text}", 110, initial_indent=" " * 11, subsequent_indent=" " * 13
                )
            )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="only these methods")
    parser.add_argument("--kind", choices=sorted(KINDS), help="only this kind")
    parser.add_argument("--smoke", action="store_true", help="defaults alone, fewer steps")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print(
        f"{'kind':10} {'method':28} {'largest':>10} {'tolerance':>10} {'runs':>5}       reference"
    )
    found = []
    for row in rows(
        [options.kind] if options.kind else sorted(KINDS), options.names, options.smoke
    ):
        show(row)
        found.append(row)
    unknown = set(options.names) - {row.name for row in found}
    if unknown:
        parser.error(f"no such method: {', '.join(sorted(unknown))}")
    out = [f"{row.kind} {row.name}" for row in found if not row.passes]
    print(f"{len(found) - len(out)} of {len(found)} methods agree with their reference")
    if out:
        print(f"out of tolerance, failed or without a reference: {', '.join(out)}")
    return 1 if out else 0


if __name__ == "__main__":
    sys.exit(main())

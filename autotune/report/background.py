"""The report's last sections: what failed or was left out, and how the study was run."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from autotune.report import elements, words

if TYPE_CHECKING:
    from autotune.result import StudyView


def left_out(view: StudyView) -> elements.Section:
    """Failures with their cause, and plugins that were left out with the reason."""
    heading = "Failed and left out"
    failed = [t.failure for _, t in sorted(view.trials.all.items()) if t.failure is not None]
    parts = []
    if failed:
        rows = [
            [
                elements.number_cell(failure.trial),
                elements.number_cell(failure.step),
                elements.Cell(words.spaced(failure.cause)),
                elements.Cell(failure.message, None, f"<pre>{escape(failure.message)}</pre>"),
            ]
            for failure in failed
        ]
        columns = ["trial", f"after {view.header.unit}", "cause", "message"]
        parts.append("<h3>Failed trials</h3>" + elements.table("Failed trials", columns, rows))
    else:
        parts.append(elements.note("No trial failed."))
    if view.header.left_out:
        cells = [
            [elements.Cell(kind), elements.Cell(name), elements.Cell(reason)]
            for kind, name, reason in view.header.left_out
        ]
        table = elements.table("Plugins left out", ["kind", "plugin", "reason"], cells)
        parts.append("<h3>Plugins left out</h3>" + table)
    else:
        parts.append(elements.note("Every plugin of the space suits the model."))
    return elements.section("failures", "Failures", heading, *parts)


def study(view: StudyView) -> elements.Section:
    """What the study was begun with."""
    header, budget = view.header, view.context.budget
    limits = [
        text
        for value, text in (
            (budget.units, f"{budget.units} {header.unit}s"),
            (budget.trials, f"{budget.trials} trials"),
            (budget.seconds, words.duration(budget.seconds)),
            (budget.gpu_seconds, f"{words.duration(budget.gpu_seconds)} of GPU time"),
            (budget.evaluations, f"{budget.evaluations} evaluations"),
        )
        if value is not None
    ]
    facts = {
        "task": header.task or header.task_name,
        "begun": header.created,
        "objectives": ", ".join(
            f"{o.name} ({'less' if o.sign > 0 else 'more'} is better)" for o in header.objectives
        ),
        **({"constraints": ", ".join(map(str, header.constraints))} if header.constraints else {}),
        "budget": ", ".join(limits),
        "horizon": words.plural(view.context.horizon, header.unit),
        "seed": str(header.seed),
        "search": ", ".join(f"{part} {spec['name']}" for part, spec in header.search.items()),
        **({"policy (auto)": header.policy_reason} if header.policy_reason else {}),
        "executor": f"{header.executor.get('name')}, {words.plural(header.workers, 'worker')}, "
        f"device {header.device}",
        "versions": ", ".join(f"{name} {version}" for name, version in header.versions.items()),
        "plugins": ", ".join(f"{name} ({kind})" for kind, name, _, _ in header.plugins),
        "folder": str(view.folder),
    }
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>'
        for name, value in facts.items()
    )
    table = (
        '<div class="scroll" tabindex="0" role="region" aria-label="The study">'
        f'<table class="facts"><tbody>{rows}</tbody></table></div>'
    )
    return elements.section("study", "Study", "How it was run", table)

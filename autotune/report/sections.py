"""The report's sections as HTML: headings, cards and tables around the figures."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from autotune.report import elements, words
from autotune.report.curves import curve_metrics
from autotune.report.figures import knee_point
from autotune.report.history import Segment, Standing, best_value
from autotune.report.importance import Importance

if TYPE_CHECKING:
    from autotune.plugins.trials import Trial
    from autotune.result import Point, StudyView


def links(body: Sequence[elements.Section]) -> str:
    """Entries of the navigation."""
    return "".join(f'<li><a href="#{s.anchor}">{escape(s.name)}</a></li>' for s in body)


def colour_selector(rows: Sequence[Standing]) -> str:
    """What the figures are coloured by, with a legend that the page fills."""
    paths = list(dict.fromkeys(row.choice for row in rows))
    if not paths:
        return ""
    trained = [path for path in paths if any(r.units for r in rows if r.choice == path)]
    first = max(
        [path for path in trained if "." not in path] or paths,
        key=lambda path: _variety([r.trials for r in rows if r.choice == path]),
    )
    options = "".join(
        f'<option value="{escape(path)}"{" selected" if path == first else ""}>'
        f"{escape(words.spaced(path))}</option>"
        for path in paths
    )
    return (
        f'<div class="colour"><label for="colour-by">Colour by</label> '
        f'<select id="colour-by">{options}</select>'
        f'<ul id="legend" aria-label="Colours"></ul></div>'
    )


def _variety(counts: Sequence[int]) -> float:
    """Entropy of how often each option was taken: colours should tell trials apart."""
    total = sum(counts)
    return -sum(count / total * math.log(count / total) for count in counts if count)


# --- summary --------------------------------------------------------------------------------


def summary(view: StudyView, pieces: Sequence[Segment], has_plot: bool) -> elements.Section:
    """The headline: what won, how good it is, what it took."""
    result, objective, unit = view.result, view.context.objective, view.header.unit
    best = result.best
    if best is None:
        lead = "Nothing has been trained to a checkpoint yet."
        validation = elements.card("Validation", "–")
    else:
        lead = (
            f"Trial {best.trial}, {words.label(best.configuration) or 'the only configuration'}, "
            f"trained for {words.plural(best.step, unit)}."
        )
        others = [
            f"{words.metric(o)} {words.quantity(best.metrics.get(o.name), o)}"
            for o in view.context.objectives
            if o is not objective
        ]
        if (first := result.winner) is not None:
            seeds = words.plural(len(first.repeats), "other seed")
            others.insert(0, f"mean on {seeds}: {words.mean_text(first)}")
        validation = elements.card(
            f"Best {words.metric(objective)}",
            words.quantity(best.metrics.get(objective.name), objective),
            *others,
        )
    cards = [validation, _test_card(view), _spent_card(view, pieces), _trials_card(view, pieces)]
    if view.context.constraints and best is not None:
        limits = ", ".join(map(str, view.context.constraints))
        told = result.unmet or f"It keeps the constraints: {limits}."
        lead = f"{lead} {told[0].upper()}{told[1:]}{'' if told.endswith('.') else '.'}"
    state = result.reason or (
        "finished" if view.finished else "still running when this was written"
    )
    parts = [f'<p class="lead">{escape(lead)}</p>', f'<div class="cards">{"".join(cards)}</div>']
    left = _configuration(best, unit) if best is not None else ""
    right = (
        "<div><h3>Best so far</h3>"
        + elements.plot("best-so-far", "The best value so far over what was spent")
        + "</div>"
        if has_plot
        else ""
    )
    parts.append(f'<div class="columns">{left}{right}</div>')
    parts.append(
        elements.note(f"The search ended: {state}." if result.reason else f"The study is {state}.")
    )
    return elements.section("summary", "Result", view.name, *parts)


def _test_card(view: StudyView) -> str:
    result, objective = view.result, view.context.objective
    if result.test_failure:
        return elements.card("Test split", "–", f"scoring the winner failed: {result.test_failure}")
    if not result.test:
        return elements.card("Test split", "–", "scored once, when the search has ended")
    test = dict(result.test)
    twin = objective.name.replace("validation", "test", 1)
    first = next((name for name in (twin, objective.name) if name in test), next(iter(test)))
    rest = [f"{words.spaced(n)} {words.number(v)}" for n, v in test.items() if n != first]
    before = len(view.meta.get("earlier_winners", ()))
    looked = f"looked at {words.plural(before + 1, 'time')}, whenever the search had ended"
    return elements.card(
        f"{words.spaced(first)} (test split)" if "test" not in first else words.spaced(first),
        words.number(test[first]),
        *rest[:4],
        looked if before else "looked at once, after the search",
    )


def _spent_card(view: StudyView, pieces: Sequence[Segment]) -> str:
    trials, budget, unit = view.trials, view.context.budget, view.header.unit
    of = f" of {budget.units:,}" if budget.units is not None else ""
    lines = [f"{words.duration(trials.train_seconds)} of training"]
    limit = f" of {words.duration(budget.seconds)}" if budget.seconds is not None else ""
    lines.append(f"{words.duration(trials.at)}{limit} from start to end")
    if trials.gpu_seconds:
        limit = "" if budget.gpu_seconds is None else f" of {words.duration(budget.gpu_seconds)}"
        lines.append(f"{words.duration(trials.gpu_seconds)}{limit} of GPU time")
    if trials.evaluations:
        lines.append(words.plural(trials.evaluations, "evaluation"))
    return elements.card("Spent", f"{trials.units:,}{of} {unit}s", *lines)


def _trials_card(view: StudyView, pieces: Sequence[Segment]) -> str:
    counts = Counter(
        "barred" if trial.barred else trial.status for trial in view.trials.all.values()
    )
    thaws = sum(piece.work == "thaw" for piece in pieces)
    thawed = len({piece.trial for piece in pieces if piece.work == "thaw"})
    states = [
        f"{counts[status]} {label}"
        for status, label in (
            ("done", "trained to the end"),
            ("barred", "ended for breaking a constraint"),
            ("frozen", "left frozen"),
            ("running", "running"),
            ("evicted", "without a checkpoint any more"),
            ("failed", "failed"),
        )
        if counts[status]
    ]
    kept = ""
    if view.context.constraints:
        found = Counter(view.result.feasibility.values())
        kept = f"constraints: {words.constraint_counts(found)}"
    line = f"{words.plural(thawed, 'trial')} thawed, {words.plural(thaws, 'time')} in all"
    further = view.trials.further
    again = f"and {further} in the final phase" if further else ""
    own = f"{len(view.trials) - further:,}"
    return elements.card("Trials", own, again, ", ".join(states), kept, line)


def _configuration(point: Point, unit: str) -> str:
    rows = []
    for path, value in words.leaves(point.configuration):
        depth = path.count(".")
        name = words.spaced(path.rpartition(".")[2])
        head = f'<th scope="row" style="--depth:{depth}" title="{escape(path)}">{escape(name)}</th>'
        rows.append(f"<tr>{head}<td>{escape(words.value_text(value))}</td></tr>")
    return (
        "<div><h3>Best configuration</h3>"
        '<div class="scroll" tabindex="0" role="region" aria-label="Best configuration">'
        f'<table class="configuration"><tbody>{"".join(_with_groups(point, rows))}</tbody></table>'
        "</div></div>"
    )


def _with_groups(point: Point, rows: Sequence[str]) -> list[str]:
    """Plain groups have no value of their own: a heading row before their first leaf."""
    shown: list[str] = []
    seen: set[str] = {path for path, _ in words.leaves(point.configuration)}
    for (path, _), row in zip(words.leaves(point.configuration), rows, strict=True):
        parts = path.split(".")
        for depth in range(1, len(parts)):
            group = ".".join(parts[:depth])
            if group not in seen:
                seen.add(group)
                shown.append(
                    f'<tr><th scope="rowgroup" style="--depth:{depth - 1}" colspan="2">'
                    f"{escape(words.spaced(parts[depth - 1]))}</th></tr>"
                )
        shown.append(row)
    return shown


# --- the rest -------------------------------------------------------------------------------


def front(view: StudyView, has_parallel: bool) -> elements.Section:
    """The Pareto front over all objectives."""
    result, objectives, unit = view.result, view.context.measured, view.header.unit
    heading = "Pareto front"
    if not result.points:
        return elements.section(
            "front", heading, heading, elements.note("No checkpoint has been written yet.")
        )
    names = [
        (o.name, f"{words.metric(o)} ({'less' if o.sign > 0 else 'more'} is better)")
        for o in objectives
    ]
    names += [("@steps", f"{unit}s trained"), ("@seconds", "training time")]
    controls = [
        elements.select("front-x", "Across", names),
        elements.select("front-y", "Up", names),
    ]
    knee = knee_point(view)
    text = (
        f"{words.plural(len(result.pareto), 'point')} of {len(result.points):,} on the front over "
        f"{words.plural(len(view.context.objectives), 'objective')}"
        f"{', of those that keep the constraints' if view.context.constraints else ''}. A point is "
        f"a checkpoint under one way of evaluating it; differences within the measured spread do "
        f"not dominate."
    )
    if not result.pareto:
        text = (
            "No point has every objective yet (some are measured only at the end), so there is "
            "no front."
        )
        text = text if result.unmet is None else f"There is no front: {result.unmet}."
    rows = []
    for point in result.pareto:
        tags = [
            label
            for label, other in (("best", result.best), ("knee", knee))
            if other is not None and point is other
        ]
        rows.append(
            [
                elements.Cell(f"{point.trial}", point.trial),
                elements.Cell(f"{point.step}", point.step),
                *[_with_spread(point, o.name) for o in objectives],
                elements.Cell(words.label(point.configuration)),
                elements.Cell(", ".join(tags)),
            ]
        )
    columns = ["trial", unit, *[words.title(o) for o in objectives], "plugins", "note"]
    return elements.section(
        "front",
        heading,
        heading,
        f"<p>{escape(text)}</p>",
        elements.plot("front", "Front and dominated points over two objectives", *controls),
        "<h3>All objectives at once</h3><p>Better is up on every axis; each line is a point of "
        "the front, grey ones are dominated.</p>"
        + elements.plot("parallel", "Points of the front over all objectives")
        if has_parallel
        else "",
        ("<h3>Points of the front</h3>" + elements.table("Points of the front", columns, rows))
        if rows
        else "",
    )


def _with_spread(point: Point, name: str) -> elements.Cell:
    value, spread = point.metrics.get(name), point.spread.get(name)
    around = f" ± {words.number(spread, 2)}" if spread else ""
    return elements.Cell(words.number(value) + around, value)


def curves(view: StudyView, band_note: str) -> elements.Section:
    """Learning curves with what was frozen and thawed when."""
    heading = "Learning curves"
    if not view.trials.units:
        return elements.section(
            "curves", heading, heading, elements.note("No trial has been trained yet.")
        )
    metrics = [(name, words.spaced(name)) for name in curve_metrics(view)]
    shown = [
        ("all", "all trials"),
        ("best", "the ten best"),
        ("front", "trials on the front"),
        ("thawed", "trials thawed at least once"),
    ]
    controls = [
        elements.select("curve-metric", "Metric", metrics),
        elements.select("curve-show", "Show", shown),
    ]
    key = (
        '<ul class="key"><li><span aria-hidden="true">●</span> frozen, thawed later</li>'
        '<li><span aria-hidden="true">○</span> frozen to the end</li>'
        '<li><span aria-hidden="true">■</span> trained to its horizon</li>'
        '<li><span aria-hidden="true">×</span> failed</li></ul>'
    )
    plot = elements.plot("curves", "Learning curves of all trials", *controls)
    return elements.section("curves", heading, heading, plot, key, f"<p>{escape(band_note)}</p>")


def timeline(view: StudyView, pieces: Sequence[Segment]) -> elements.Section:
    """Trials over time."""
    if not pieces:
        return elements.section(
            "timeline", "Timeline", "Timeline", elements.note("Nothing has run yet.")
        )
    text = (
        "One lane for each trial, one bar for each segment: a gap is a trial on ice. "
        "Outlined bars are evaluations and measurements of checkpoints."
    )
    plot = elements.plot("timeline", "Segments of all trials over time")
    return elements.section("timeline", "Timeline", "Timeline", f"<p>{text}</p>", plot)


def plugins(view: StudyView, rows: Sequence[Standing]) -> elements.Section:
    """Which plugins won where."""
    heading = "Which plugins won where"
    objective = view.context.objective
    if not rows:
        text = elements.note("The space holds no choice between plugins or options.")
        return elements.section("plugins", "Plugins", heading, text)
    name = words.title(objective)
    table = elements.table(
        "Plugins by kind",
        ["choice", "option", "trials", "failed", "best", "median", "on the front"],
        [
            [
                elements.Cell(words.spaced(row.choice)),
                elements.Cell(row.option),
                elements.number_cell(row.trials),
                elements.number_cell(row.failed),
                elements.number_cell(row.best),
                elements.number_cell(row.median),
                elements.number_cell(row.front),
            ]
            for row in rows
        ],
    )
    note = (
        f"Best and median are over each trial's best {name}. The search favours what looks good "
        "early, so an option that was tried seldom has a median to be read with care. Choices of "
        "evaluation count evaluated points instead of trials."
    )
    plot = (
        "<p>Best value of every trial, by the choice under “Colour by”.</p>"
        + elements.plot("strip", "Best value of every trial by option")
        if view.trials.units
        else ""
    )
    return elements.section("plugins", "Plugins", heading, plot, table, elements.note(note))


def importance(found: Importance, view: StudyView) -> elements.Section:
    """Hyperparameter importance."""
    heading = "Hyperparameter importance"
    if found.missing is not None:
        return elements.section("importance", "Importance", heading, elements.note(found.missing))
    text = (
        f"How much each hyperparameter decides whether a trial is among the best "
        f"{100 * found.top:.0f} % by {words.spaced(view.context.objective.name)} "
        f"(PED-ANOVA over {found.trials} trials; conditional hyperparameters counted where "
        f"they are active). Trials frozen early count with what they reached."
    )
    plot = elements.plot("importance", "Shares of hyperparameter importance")
    return elements.section("importance", "Importance", heading, f"<p>{escape(text)}</p>", plot)


def cost(view: StudyView, pieces: Sequence[Segment]) -> elements.Section:
    """Where the time went."""
    labels = {
        "start": "training, first segments",
        "thaw": "training, after a thaw",
        "evaluate": "evaluation of checkpoints",
        "measure": "measurements alone",
    }
    rows = []
    for work, label in labels.items():
        members = [piece for piece in pieces if piece.work == work]
        if not members:
            continue
        seconds = sum(piece.seconds for piece in members)
        occupied = sum(max(0.0, piece.ended - piece.began) for piece in members)
        units = sum(piece.last - piece.first for piece in members)
        rows.append(
            [
                elements.Cell(label),
                elements.number_cell(len(members)),
                elements.number_cell(units) if work in ("start", "thaw") else elements.Cell("–"),
                elements.Cell(words.duration(seconds), seconds),
                elements.Cell(words.duration(occupied), occupied),
                elements.Cell(words.duration(seconds / units), seconds / units)
                if units
                else elements.Cell("–"),
            ]
        )
    if not rows:
        return elements.section("cost", "Cost", "Cost", elements.note("Nothing has run yet."))
    unit = view.header.unit
    columns = ["work", "segments", f"{unit}s", "working", "worker occupied", f"per {unit}"]
    note = (
        "“Worker occupied” runs from the decision to the segment's end: beyond the work itself "
        "it holds loading data and checkpoints, freezing, and waiting."
    )
    plot = (
        "<p>Training time by the choice under “Colour by”.</p>"
        + elements.plot("cost", "Training time by option")
        if view.trials.units
        else ""
    )
    return elements.section(
        "cost", "Cost", "Cost", plot, elements.table("Cost", columns, rows), elements.note(note)
    )


def trials(view: StudyView, pieces: Sequence[Segment]) -> elements.Section:
    """The full table of trials."""
    heading = "All trials"
    if not len(view.trials):
        return elements.section(
            "trials", "Trials", heading, elements.note("No trial has been started yet.")
        )
    unit, objective = view.header.unit, view.context.objective
    on_front = Counter(point.trial for point in view.result.pareto)
    thaws = Counter(piece.trial for piece in pieces if piece.work == "thaw")
    paths = list(
        dict.fromkeys(
            path for t in view.trials.all.values() for path in words.choices(t.configuration)
        )
    )
    static = [o for o in view.context.measured if o.kind == "static"]
    columns = [
        "trial",
        "state",
        f"best {words.title(objective)}",
        f"last {unit}",
        "thawed",
        "time [s]",
        "on the front",
        *[words.title(o) for o in static],
        *[words.spaced(path) for path in paths],
        "hyperparameters",
    ]
    rows = [
        [
            elements.number_cell(number),
            _state(trial),
            elements.number_cell(best_value(view.trials, number)),
            elements.number_cell(trial.last),
            elements.number_cell(thaws[number]),
            elements.number_cell(trial.seconds.total),
            elements.number_cell(on_front[number]),
            *[elements.number_cell(trial.static.get(o.name)) for o in static],
            *[elements.Cell(words.choices(trial.configuration).get(path, "–")) for path in paths],
            elements.Cell(_others(trial.configuration)),
        ]
        for number, trial in sorted(view.trials.all.items())
    ]
    return elements.section(
        "trials", "Trials", heading, elements.table("All trials", columns, rows)
    )


def _state(trial: Trial) -> elements.Cell:
    inexact = "" if trial.exact else ", thawed inexactly"
    inexact += ", breaks a constraint" if trial.barred else ""
    shown = f'<span class="state {trial.status}">{trial.status}</span>{inexact}'
    return elements.Cell(trial.status, trial.status, shown)


def _others(configuration: Mapping[str, Any]) -> str:
    taken = words.choices(configuration)
    return ", ".join(
        f"{words.spaced(path)} {words.value_text(value)}"
        for path, value in words.leaves(configuration)
        if path not in taken
    )

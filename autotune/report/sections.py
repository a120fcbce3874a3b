"""The report's sections as HTML: headings, cards and tables around the figures."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from autotune.report import words
from autotune.report.figures import curve_metrics, knee_point
from autotune.report.history import Segment, Standing, best_value
from autotune.report.importance import Importance

if TYPE_CHECKING:
    from autotune.plugins.trials import Trial
    from autotune.result import Point, StudyView


@dataclass(frozen=True)
class Section:
    """One section: its anchor, its name in the navigation, its HTML."""

    anchor: str
    name: str
    html: str


def links(body: Sequence[Section]) -> str:
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


def _section(anchor: str, name: str, heading: str, *content: str) -> Section:
    inner = "\n".join(part for part in content if part)
    return Section(
        anchor,
        name,
        f'<section id="{anchor}" aria-labelledby="{anchor}-heading">\n'
        f'<h2 id="{anchor}-heading">{escape(heading)}</h2>\n{inner}\n</section>',
    )


def _plot(name: str, label: str, *controls: str) -> str:
    bar = f'<div class="controls">{"".join(controls)}</div>' if controls else ""
    return (
        f'<figure>{bar}<div class="plot" id="plot-{name}" role="img" '
        f'aria-label="{escape(label)}"></div></figure>'
    )


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>' if text else ""


def _select(identifier: str, label: str, options: Iterable[tuple[str, str]]) -> str:
    inner = "".join(f'<option value="{escape(v)}">{escape(t)}</option>' for v, t in options)
    return (
        f'<span><label for="{identifier}">{escape(label)}</label>'
        f'<select id="{identifier}">{inner}</select></span>'
    )


@dataclass(frozen=True)
class Cell:
    """A table cell: what it shows and, where that differs, what it is sorted by."""

    text: str
    key: float | str | None = None
    html: str | None = None


def _number_cell(value: float | int | None) -> Cell:
    return Cell(words.number(value), value)


def _table(
    label: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], sortable: bool = True
) -> str:
    """A table whose headings sort it; a column is right-aligned if all its cells are numbers."""
    numeric = [
        bool(rows)
        and all(isinstance(row[i].key, int | float) or row[i].text == "–" for row in rows)
        for i in range(len(columns))
    ]
    head = "".join(
        f'<th scope="col"{" class=num" if numeric[i] else ""}>'
        + (f'<button type="button">{escape(name)}</button>' if sortable else escape(name))
        + "</th>"
        for i, name in enumerate(columns)
    )
    lines = []
    for row in rows:
        cells = []
        for i, cell in enumerate(row):
            key = "" if cell.key is None else f' data-key="{escape(str(cell.key))}"'
            shown = cell.html if cell.html is not None else escape(cell.text)
            cells.append(f"<td{' class=num' if numeric[i] else ''}{key}>{shown}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    kind = "sortable" if sortable else "plain"
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}">'
        f'<table class="{kind}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


# --- summary --------------------------------------------------------------------------------


def _card(title: str, headline: str, *lines: str) -> str:
    rest = "".join(f"<p>{escape(line)}</p>" for line in lines if line)
    return (
        f'<div class="card"><h3>{escape(title)}</h3>'
        f'<p class="headline">{escape(headline)}</p>{rest}</div>'
    )


def summary(view: StudyView, pieces: Sequence[Segment], has_plot: bool) -> Section:
    """The headline: what won, how good it is, what it took."""
    result, objective, unit = view.result, view.context.objective, view.header.unit
    best = result.best
    if best is None:
        lead = "Nothing has been trained to a checkpoint yet."
        validation = _card("Validation", "–")
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
        validation = _card(
            f"Best {words.metric(objective)}",
            words.quantity(best.metrics.get(objective.name), objective),
            *others,
        )
    cards = [validation, _test_card(view), _spent_card(view, pieces), _trials_card(view, pieces)]
    state = result.reason or (
        "finished" if view.finished else "still running when this was written"
    )
    parts = [f'<p class="lead">{escape(lead)}</p>', f'<div class="cards">{"".join(cards)}</div>']
    left = _configuration(best, unit) if best is not None else ""
    right = (
        "<div><h3>Best so far</h3>"
        + _plot("best-so-far", "The best value so far over what was spent")
        + "</div>"
        if has_plot
        else ""
    )
    parts.append(f'<div class="columns">{left}{right}</div>')
    parts.append(
        _note(f"The search ended: {state}." if result.reason else f"The study is {state}.")
    )
    return _section("summary", "Result", view.name, *parts)


def _test_card(view: StudyView) -> str:
    result, objective = view.result, view.context.objective
    if result.test_failure:
        return _card("Test split", "–", f"scoring the winner failed: {result.test_failure}")
    if not result.test:
        return _card("Test split", "–", "scored once, when the search has ended")
    test = dict(result.test)
    twin = objective.name.replace("validation", "test", 1)
    first = next((name for name in (twin, objective.name) if name in test), next(iter(test)))
    rest = [f"{words.spaced(n)} {words.number(v)}" for n, v in test.items() if n != first]
    return _card(
        f"{words.spaced(first)} (test split)" if "test" not in first else words.spaced(first),
        words.number(test[first]),
        *rest[:4],
        "looked at once, after the search",
    )


def _spent_card(view: StudyView, pieces: Sequence[Segment]) -> str:
    trials, budget, unit = view.trials, view.context.budget, view.header.unit
    of = f" of {budget.units:,}" if budget.units is not None else ""
    lines = [f"{words.duration(trials.train_seconds)} of training"]
    limit = f" of {words.duration(budget.seconds)}" if budget.seconds is not None else ""
    lines.append(f"{words.duration(trials.at)}{limit} from start to end")
    if trials.evaluations:
        lines.append(words.plural(trials.evaluations, "evaluation"))
    return _card("Spent", f"{trials.units:,}{of} {unit}s", *lines)


def _trials_card(view: StudyView, pieces: Sequence[Segment]) -> str:
    counts: Counter[str] = Counter(trial.status for trial in view.trials.all.values())
    thaws = sum(piece.work == "thaw" for piece in pieces)
    thawed = len({piece.trial for piece in pieces if piece.work == "thaw"})
    states = [
        f"{counts[status]} {label}"
        for status, label in (
            ("done", "trained to the end"),
            ("frozen", "left frozen"),
            ("running", "running"),
            ("failed", "failed"),
        )
        if counts[status]
    ]
    line = f"{words.plural(thawed, 'trial')} thawed, {words.plural(thaws, 'time')} in all"
    return _card("Trials", f"{len(view.trials):,}", ", ".join(states), line)


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


def front(view: StudyView, has_parallel: bool) -> Section:
    """The Pareto front over all objectives."""
    result, objectives, unit = view.result, view.context.objectives, view.header.unit
    heading = "Pareto front"
    if not result.points:
        return _section("front", heading, heading, _note("No checkpoint has been written yet."))
    names = [
        (o.name, f"{words.metric(o)} ({'less' if o.sign > 0 else 'more'} is better)")
        for o in objectives
    ]
    names += [("@steps", f"{unit}s trained"), ("@seconds", "training time")]
    controls = [_select("front-x", "Across", names), _select("front-y", "Up", names)]
    knee = knee_point(view)
    text = (
        f"{words.plural(len(result.pareto), 'point')} of {len(result.points):,} on the front over "
        f"{words.plural(len(objectives), 'objective')}. A point is a checkpoint under one way of "
        f"evaluating it; differences within the measured spread do not dominate."
    )
    if not result.pareto:
        text = (
            "No point has every objective yet (some are measured only at the end), so there is "
            "no front."
        )
    rows = []
    for point in result.pareto:
        tags = [
            label
            for label, other in (("best", result.best), ("knee", knee))
            if other is not None and point is other
        ]
        rows.append(
            [
                Cell(f"{point.trial}", point.trial),
                Cell(f"{point.step}", point.step),
                *[_with_spread(point, o.name) for o in objectives],
                Cell(words.label(point.configuration)),
                Cell(", ".join(tags)),
            ]
        )
    columns = ["trial", unit, *[words.title(o) for o in objectives], "plugins", "note"]
    return _section(
        "front",
        heading,
        heading,
        f"<p>{escape(text)}</p>",
        _plot("front", "Front and dominated points over two objectives", *controls),
        "<h3>All objectives at once</h3><p>Better is up on every axis; each line is a point of "
        "the front, grey ones are dominated.</p>"
        + _plot("parallel", "Points of the front over all objectives")
        if has_parallel
        else "",
        ("<h3>Points of the front</h3>" + _table("Points of the front", columns, rows))
        if rows
        else "",
    )


def _with_spread(point: Point, name: str) -> Cell:
    value, spread = point.metrics.get(name), point.spread.get(name)
    around = f" ± {words.number(spread, 2)}" if spread else ""
    return Cell(words.number(value) + around, value)


def curves(view: StudyView, band_note: str) -> Section:
    """Learning curves with what was frozen and thawed when."""
    heading = "Learning curves"
    if not view.trials.units:
        return _section("curves", heading, heading, _note("No trial has been trained yet."))
    metrics = [(name, words.spaced(name)) for name in curve_metrics(view)]
    shown = [
        ("all", "all trials"),
        ("best", "the ten best"),
        ("front", "trials on the front"),
        ("thawed", "trials thawed at least once"),
    ]
    controls = [_select("curve-metric", "Metric", metrics), _select("curve-show", "Show", shown)]
    key = (
        '<ul class="key"><li><span aria-hidden="true">●</span> frozen, thawed later</li>'
        '<li><span aria-hidden="true">○</span> frozen to the end</li>'
        '<li><span aria-hidden="true">■</span> trained to its horizon</li>'
        '<li><span aria-hidden="true">×</span> failed</li></ul>'
    )
    plot = _plot("curves", "Learning curves of all trials", *controls)
    return _section("curves", heading, heading, plot, key, f"<p>{escape(band_note)}</p>")


def timeline(view: StudyView, pieces: Sequence[Segment]) -> Section:
    """Trials over time."""
    if not pieces:
        return _section("timeline", "Timeline", "Timeline", _note("Nothing has run yet."))
    text = (
        "One lane for each trial, one bar for each segment: a gap is a trial on ice. "
        "Outlined bars are evaluations and measurements of checkpoints."
    )
    plot = _plot("timeline", "Segments of all trials over time")
    return _section("timeline", "Timeline", "Timeline", f"<p>{text}</p>", plot)


def plugins(view: StudyView, rows: Sequence[Standing]) -> Section:
    """Which plugins won where."""
    heading = "Which plugins won where"
    objective = view.context.objective
    if not rows:
        text = _note("The space holds no choice between plugins or options.")
        return _section("plugins", "Plugins", heading, text)
    name = words.title(objective)
    table = _table(
        "Plugins by kind",
        ["choice", "option", "trials", "failed", "best", "median", "on the front"],
        [
            [
                Cell(words.spaced(row.choice)),
                Cell(row.option),
                _number_cell(row.trials),
                _number_cell(row.failed),
                _number_cell(row.best),
                _number_cell(row.median),
                _number_cell(row.front),
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
        + _plot("strip", "Best value of every trial by option")
        if view.trials.units
        else ""
    )
    return _section("plugins", "Plugins", heading, plot, table, _note(note))


def importance(found: Importance, view: StudyView) -> Section:
    """Hyperparameter importance."""
    heading = "Hyperparameter importance"
    if found.missing is not None:
        return _section("importance", "Importance", heading, _note(found.missing))
    text = (
        f"How much each hyperparameter decides whether a trial is among the best "
        f"{100 * found.top:.0f} % by {words.spaced(view.context.objective.name)} "
        f"(PED-ANOVA over {found.trials} trials; conditional hyperparameters counted where "
        f"they are active). Trials frozen early count with what they reached."
    )
    plot = _plot("importance", "Shares of hyperparameter importance")
    return _section("importance", "Importance", heading, f"<p>{escape(text)}</p>", plot)


def cost(view: StudyView, pieces: Sequence[Segment]) -> Section:
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
                Cell(label),
                _number_cell(len(members)),
                _number_cell(units) if work in ("start", "thaw") else Cell("–"),
                Cell(words.duration(seconds), seconds),
                Cell(words.duration(occupied), occupied),
                Cell(words.duration(seconds / units), seconds / units) if units else Cell("–"),
            ]
        )
    if not rows:
        return _section("cost", "Cost", "Cost", _note("Nothing has run yet."))
    unit = view.header.unit
    columns = ["work", "segments", f"{unit}s", "working", "worker occupied", f"per {unit}"]
    note = (
        "“Worker occupied” runs from the decision to the segment's end: beyond the work itself "
        "it holds loading data and checkpoints, freezing, and waiting."
    )
    plot = (
        "<p>Training time by the choice under “Colour by”.</p>"
        + _plot("cost", "Training time by option")
        if view.trials.units
        else ""
    )
    return _section("cost", "Cost", "Cost", plot, _table("Cost", columns, rows), _note(note))


def trials(view: StudyView, pieces: Sequence[Segment]) -> Section:
    """The full table of trials."""
    heading = "All trials"
    if not len(view.trials):
        return _section("trials", "Trials", heading, _note("No trial has been started yet."))
    unit, objective = view.header.unit, view.context.objective
    on_front = Counter(point.trial for point in view.result.pareto)
    thaws = Counter(piece.trial for piece in pieces if piece.work == "thaw")
    paths = list(
        dict.fromkeys(
            path for t in view.trials.all.values() for path in words.choices(t.configuration)
        )
    )
    static = [o for o in view.context.objectives if o.kind == "static"]
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
            _number_cell(number),
            _state(trial),
            _number_cell(best_value(view.trials, number)),
            _number_cell(trial.last),
            _number_cell(thaws[number]),
            _number_cell(sum(trial.seconds.values())),
            _number_cell(on_front[number]),
            *[_number_cell(trial.static.get(o.name)) for o in static],
            *[Cell(words.choices(trial.configuration).get(path, "–")) for path in paths],
            Cell(_others(trial.configuration)),
        ]
        for number, trial in sorted(view.trials.all.items())
    ]
    return _section("trials", "Trials", heading, _table("All trials", columns, rows))


def _state(trial: Trial) -> Cell:
    inexact = "" if trial.exact else ", thawed inexactly"
    shown = f'<span class="state {trial.status}">{trial.status}</span>{inexact}'
    return Cell(trial.status, trial.status, shown)


def _others(configuration: Mapping[str, Any]) -> str:
    taken = words.choices(configuration)
    return ", ".join(
        f"{words.spaced(path)} {words.value_text(value)}"
        for path, value in words.leaves(configuration)
        if path not in taken
    )


def left_out(view: StudyView) -> Section:
    """Failures with their cause, and plugins that were left out with the reason."""
    heading = "Failed and left out"
    failed = [t.failure for _, t in sorted(view.trials.all.items()) if t.failure is not None]
    parts = []
    if failed:
        rows = [
            [
                _number_cell(failure.trial),
                _number_cell(failure.step),
                Cell(words.spaced(failure.cause)),
                Cell(failure.message, None, f"<pre>{escape(failure.message)}</pre>"),
            ]
            for failure in failed
        ]
        columns = ["trial", f"after {view.header.unit}", "cause", "message"]
        parts.append("<h3>Failed trials</h3>" + _table("Failed trials", columns, rows))
    else:
        parts.append(_note("No trial failed."))
    if view.header.left_out:
        cells = [
            [Cell(kind), Cell(name), Cell(reason)] for kind, name, reason in view.header.left_out
        ]
        table = _table("Plugins left out", ["kind", "plugin", "reason"], cells)
        parts.append("<h3>Plugins left out</h3>" + table)
    else:
        parts.append(_note("Every plugin of the space suits the model."))
    return _section("failures", "Failures", heading, *parts)


def study(view: StudyView) -> Section:
    """What the study was begun with."""
    header, budget = view.header, view.header.budget
    limits = [
        text
        for value, text in (
            (budget.units, f"{budget.units} {header.unit}s"),
            (budget.trials, f"{budget.trials} trials"),
            (budget.seconds, words.duration(budget.seconds)),
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
        "budget": ", ".join(limits),
        "horizon": words.plural(header.horizon, header.unit),
        "seed": str(header.seed),
        "search": ", ".join(f"{part} {spec['name']}" for part, spec in header.search.items()),
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
    return _section("study", "Study", "How it was run", table)

"""The report's figures as plotly traces and layouts in plain values.

Colours, fonts and grid lines are the page's business (``page.js``): it knows the reader's
colour scheme and what to colour by. A trace says in ``meta`` which trials its points belong to,
so that a plugin keeps its colour in every figure.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from autotune.pareto import knee
from autotune.plugins.search import Objective
from autotune.report import words
from autotune.report.history import Segment, best_value
from autotune.report.importance import Importance

if TYPE_CHECKING:
    from autotune.result import Point, StudyView

Figure = dict[str, Any]

_HOVER_LINES = 22


def finite(value: float | None) -> float | None:
    """JSON has no NaN: a value that is not finite becomes None, which plotly leaves out."""
    return float(value) if value is not None and math.isfinite(value) else None


def text(value: str, limit: int = 90) -> str:
    """User text for plotly, which reads a little HTML."""
    short = value if len(value) <= limit else value[: limit - 1] + "…"
    return html.escape(short, quote=False)


def hover_configuration(configuration: Mapping[str, Any]) -> str:
    """A configuration as hover lines."""
    rows = [
        f"{text(path)}: {text(words.value_text(v), 40)}" for path, v in words.leaves(configuration)
    ]
    more = [f"and {len(rows) - _HOVER_LINES} more"] if len(rows) > _HOVER_LINES else []
    return "<br>".join(rows[:_HOVER_LINES] + more)


def wants_log(values: Sequence[float | None], objective: Objective) -> bool:
    """Whether a log axis serves values that spread over orders of magnitude above zero. What
    is maximised or bounded (an accuracy) is read best on its own scale."""
    known = [value for value in values if value is not None]
    scalable = objective.direction == "minimize" and objective.bounds is None
    return scalable and bool(known) and min(known) > 0 and max(known) / min(known) >= 10


# --- the front ------------------------------------------------------------------------------


def point_values(view: StudyView, point: Point) -> dict[str, float | None]:
    """What a point may be plotted against: its objectives and what its training took."""
    trial = view.trials[point.trial]
    values = {o.name: finite(point.metrics.get(o.name)) for o in view.context.measured}
    trained = sum(seconds for step, seconds in trial.seconds.items() if step <= point.step)
    return {**values, "@steps": float(point.step), "@seconds": trained}


def axes(view: StudyView) -> list[dict[str, Any]]:
    """The quantities that the front can be drawn over, and which way is better."""
    unit = view.header.unit
    found = [
        {
            "name": o.name,
            "title": text(words.title(o)),
            "better": "lower" if o.sign > 0 else "higher",
            "scalable": o.direction == "minimize" and o.bounds is None,
        }
        for o in view.context.measured
    ]
    return [
        *found,
        {"name": "@steps", "title": f"trained [{unit}s]", "better": "lower", "scalable": True},
        {"name": "@seconds", "title": "training time [s]", "better": "lower", "scalable": True},
    ]


def front(view: StudyView) -> Figure:
    """All points over two axes; the front's filled and in colour, the dominated hollow."""
    result = view.result
    on_front = {id(point) for point in result.pareto}
    best = result.best
    groups = {
        "dominated": [p for p in result.points if id(p) not in on_front],
        "front": list(result.pareto),
        "best": [best] if best is not None else [],
    }
    traces = []
    for role, points in groups.items():
        values = [point_values(view, point) for point in points]
        names = list(values[0]) if values else []
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": role,
                "hoverinfo": "text" if role != "best" else "skip",
                "hovertext": [_hover_point(view, point) for point in points],
                "meta": {
                    "role": role,
                    "trials": [point.trial for point in points],
                    "options": [words.choices(point.configuration) for point in points],
                    "values": {name: [row[name] for row in values] for name in names},
                    "spread": {
                        o.name: [finite(p.spread.get(o.name)) for p in points]
                        for o in view.context.measured
                        if any(p.spread.get(o.name) for p in points)
                    },
                },
            }
        )
    return {"kind": "front", "data": traces, "layout": {"height": 480}}


def _hover_point(view: StudyView, point: Point) -> str:
    unit = view.header.unit
    rows = [f"<b>trial {point.trial}, {unit} {point.step}</b>"]
    for objective in view.context.measured:
        value = point.metrics.get(objective.name)
        spread = point.spread.get(objective.name)
        around = f" ± {words.number(spread, 2)}" if spread else ""
        rows.append(
            f"{text(words.metric(objective))}: <b>{words.number(value)}{around}"
            f"{' ' + text(objective.unit) if objective.unit else ''}</b>"
        )
    rows += [f"breaks {text(broken)}" for broken in point.broken]
    return "<br>".join(rows) + "<br>" + hover_configuration(point.configuration)


def knee_point(view: StudyView) -> Point | None:
    """The front's knee, None where there is no front with finite values."""
    objectives = view.context.objectives
    points = view.result.pareto
    if not points or len(objectives) < 2:
        return None
    values = [[p.metrics.get(o.name, math.nan) for o in objectives] for p in points]
    index = knee(np.array(values), [o.sign for o in objectives])
    return None if index is None else points[index]


def parallel(view: StudyView) -> Figure | None:
    """Every point as a line over all objectives, better always up; None for one objective."""
    objectives = view.context.objectives
    points = [
        p
        for p in view.result.points
        if all(finite(p.metrics.get(o.name)) is not None for o in objectives)
    ]
    if len(objectives) < 2 or not points:
        return None
    on_front = {id(point) for point in view.result.pareto}
    columns, notes = [], []
    for index, objective in enumerate(objectives):
        raw = np.array([p.metrics[objective.name] for p in points], dtype=np.float64)
        low, high = float(raw.min()), float(raw.max())
        if wants_log([low, high], objective):
            scaled = np.log(raw / low) / math.log(high / low)
        else:
            scaled = (raw - low) / (high - low) if high > low else np.full(len(raw), 0.5)
        columns.append(scaled if objective.sign < 0 else 1.0 - scaled)
        top, bottom = (high, low) if objective.sign < 0 else (low, high)
        for value, y, anchor in ((top, 1.0, "bottom"), (bottom, 0.0, "top")):
            notes.append(_note(index, y, words.quantity(value, objective), anchor))
    heights = np.stack(columns, axis=1)
    ticks = list(range(len(objectives)))
    traces: list[dict[str, Any]] = []
    dominated = [i for i, p in enumerate(points) if id(p) not in on_front]
    xs: list[float | None] = []
    ys: list[float | None] = []
    for i in dominated:
        xs += [*ticks, None]
        ys += [*heights[i].tolist(), None]
    traces.append(
        {
            "type": "scatter",
            "mode": "lines",
            "name": "dominated",
            "x": xs,
            "y": ys,
            "hoverinfo": "skip",
            "meta": {"role": "dominated"},
        }
    )
    for i, point in enumerate(points):
        if id(point) in on_front:
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "name": f"trial {point.trial}",
                    "x": ticks,
                    "y": heights[i].tolist(),
                    "hoverinfo": "text",
                    "hovertext": [_hover_point(view, point)] * len(ticks),
                    "meta": {
                        "role": "front",
                        "trials": [point.trial],
                        "options": [words.choices(point.configuration)],
                    },
                }
            )
    return {
        "kind": "parallel",
        "data": traces,
        "layout": {
            "height": 380,
            "annotations": notes,
            "margin": {"t": 40, "b": 64, "l": 48, "r": 48},
            "xaxis": {
                "tickvals": ticks,
                "ticktext": [_wrapped(words.title(o)) for o in objectives],
                "range": [-0.25, len(ticks) - 0.75],
            },
            "yaxis": {"visible": False, "range": [-0.14, 1.14]},
        },
    }


def _wrapped(label: str) -> str:
    return "<br>".join(text(word, 24) for word in label.split(" "))


def _note(x: float, y: float, label: str, anchor: str) -> dict[str, Any]:
    return {
        "x": x,
        "y": y,
        "text": text(label),
        "showarrow": False,
        "yanchor": anchor,
        "yshift": 4 if anchor == "bottom" else -4,
    }


# --- time, importance, plugins --------------------------------------------------------------


def timeline(view: StudyView, segments: Sequence[Segment]) -> Figure:
    """A lane for every trial; a bar for every segment, from its decision to its end."""
    groups = {
        "training": [s for s in segments if s.work in ("start", "thaw")],
        "evaluation": [s for s in segments if s.work in ("evaluate", "measure")],
    }
    traces: list[dict[str, Any]] = []
    for role, members in groups.items():
        traces.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": role,
                "base": [s.began for s in members],
                "width": 0.75,
                "x": [max(s.ended - s.began, 1e-3) for s in members],
                "y": [s.trial for s in members],
                "hoverinfo": "text",
                "hovertext": [_hover_segment(view, s) for s in members],
                "textposition": "none",
                "meta": {"role": role, "trials": [s.trial for s in members]},
            }
        )
    bad = [s for s in segments if s.outcome in ("failed", "lost")]
    traces.append(
        {
            "type": "scatter",
            "mode": "markers",
            "name": "failed or lost",
            "x": [s.ended for s in bad],
            "y": [s.trial for s in bad],
            "marker": {"symbol": "x", "size": 8},
            "hoverinfo": "text",
            "hovertext": [_hover_segment(view, s) for s in bad],
            "meta": {"role": "bad"},
        }
    )
    lanes = max(1, len(view.trials))
    return {
        "kind": "timeline",
        "data": traces,
        "layout": {
            "height": int(min(1100, max(260, 90 + 11 * lanes))),
            "barmode": "overlay",
            "xaxis": {"title": {"text": "time since the study's start [s]"}, "rangemode": "tozero"},
            "yaxis": {
                "title": {"text": "trial"},
                "autorange": "reversed",
                "tickformat": "d",
                "showgrid": False,
            },
        },
    }


def _hover_segment(view: StudyView, s: Segment) -> str:
    unit = view.header.unit
    words_of = {
        "start": f"{unit} {s.first} to {s.last}",
        "thaw": f"thawed, {unit} {s.first} to {s.last}",
        "evaluate": f"evaluated at {unit} {s.last}",
        "measure": f"measured alone at {unit} {s.last}",
    }
    return (
        f"<b>trial {s.trial}</b> {text(words.label(view.trials[s.trial].configuration))}<br>"
        f"{words_of[s.work]}, {s.outcome}<br>"
        f"{words.duration(s.began)} to {words.duration(s.ended)}"
    )


def importance_bars(found: Importance, limit: int = 20) -> Figure:
    """Shares of importance, largest on top."""
    shown = [(name, share) for name, share in found.shares[:limit] if share >= 5e-4][::-1]
    return {
        "kind": "bars",
        "data": [
            {
                "type": "bar",
                "orientation": "h",
                "x": [round(100 * share, 3) for _, share in shown],
                "y": [text(name, 44) for name, _ in shown],
                "text": [f"{100 * share:.1f} %" for _, share in shown],
                "textposition": "outside",
                "cliponaxis": False,
                "hoverinfo": "skip",
                "meta": {"role": "accent"},
            }
        ],
        "layout": {
            "height": 90 + 26 * len(shown),
            "xaxis": {"title": {"text": "share of importance [%]"}, "rangemode": "tozero"},
            "yaxis": {"automargin": True},
            "margin": {"r": 64},
        },
    }


def strip(view: StudyView) -> Figure:
    """Each trial's best value, sorted by the page into a row for every option of the choice
    that it colours by."""
    objective: Objective = view.context.objective
    numbers = [n for n in view.trials.all if best_value(view.trials, n) is not None]
    values = [best_value(view.trials, n) for n in numbers]
    unit = view.header.unit
    return {
        "kind": "strip",
        "data": [
            {
                "type": "scatter",
                "mode": "markers",
                "x": values,
                "hoverinfo": "text",
                "hovertext": [
                    f"<b>trial {n}</b>: {words.quantity(v, objective)} after "
                    f"{words.plural(view.trials[n].last, unit)}<br>"
                    + hover_configuration(view.trials[n].configuration)
                    for n, v in zip(numbers, values, strict=True)
                ],
                "meta": {"role": "strip", "trials": numbers},
            }
        ],
        "layout": {
            "height": 300,
            "xaxis": {
                "title": {"text": text("best " + words.title(objective))},
                "type": "log" if wants_log(values, objective) else "linear",
            },
        },
    }


def cost(segments: Sequence[Segment]) -> Figure:
    """Training seconds of first segments and of thawed ones, by trial; the page sums them by
    the options of the choice that it colours by."""
    first: dict[int, float] = {}
    later: dict[int, float] = {}
    for segment in segments:
        if segment.work == "start":
            first[segment.trial] = first.get(segment.trial, 0.0) + segment.seconds
        elif segment.work == "thaw":
            later[segment.trial] = later.get(segment.trial, 0.0) + segment.seconds
    return {
        "kind": "cost",
        "data": [
            {
                "type": "bar",
                "orientation": "h",
                "name": name,
                "hoverinfo": "text",
                "textposition": "none",
                "meta": {
                    "role": role,
                    "trials": list(seconds),
                    "seconds": list(seconds.values()),
                },
            }
            for name, role, seconds in (
                ("first segment", "first", first),
                ("after a thaw", "later", later),
            )
        ],
        "layout": {
            "height": 280,
            "barmode": "stack",
            "xaxis": {"title": {"text": "training time [s]"}, "rangemode": "tozero"},
        },
    }

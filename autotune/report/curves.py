"""The report's learning curves as plotly traces: what was measured, where trials were frozen and
thawed, and what is expected of the unfinished."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from autotune.report import words
from autotune.report.figures import Figure, finite, text, wants_log
from autotune.report.history import Band, Segment, best_value

if TYPE_CHECKING:
    from autotune.result import StudyView

_LABELLED_CURVES = 6


def best_so_far(units: Sequence[int], values: Sequence[float], view: StudyView) -> Figure:
    """The best value of the primary objective over what was spent."""
    objective = view.context.objective
    unit = view.header.unit
    hover = [
        f"after {words.plural(spent, unit)}: <b>{words.quantity(value, objective)}</b>"
        for spent, value in zip(units, values, strict=True)
    ]
    return {
        "kind": "line",
        "data": [
            {
                "type": "scatter",
                "mode": "lines",
                "x": list(units),
                "y": [finite(value) for value in values],
                "line": {"shape": "hv"},
                "hoverinfo": "text",
                "hovertext": hover,
                "meta": {"role": "accent"},
            }
        ],
        "layout": {
            "height": 300,
            "xaxis": {"title": {"text": f"{unit}s trained in all"}, "rangemode": "tozero"},
            "yaxis": {
                "title": {"text": text(words.title(objective))},
                "type": "log"
                if wants_log([finite(value) for value in values], objective)
                else "linear",
            },
        },
    }


def curve_metrics(view: StudyView) -> list[str]:
    """Metrics that change with training, the primary objective first."""
    primary = view.context.objective.name
    names = {name for t in view.trials.all.values() for name in t.metrics.names}
    return [primary, *sorted(names - {primary})]


def curves(view: StudyView, segments: Sequence[Segment], bands: Sequence[Band]) -> Figure:
    """Every learning curve, with marks where it was frozen, thawed, finished or failed, and
    the last forecast of unfinished trials."""
    metrics = curve_metrics(view)
    unit = view.header.unit
    objective = view.context.objective
    ranked = sorted(
        (
            (objective.sign * value, number)
            for number in view.trials.all
            if (value := best_value(view.trials, number)) is not None
        ),
    )
    on_front = {point.trial for point in view.result.pareto}
    rank = {number: position for position, (_, number) in enumerate(ranked)}
    traces: list[dict[str, Any]] = []
    for band in bands:
        traces += _band(band)
    for number in sorted(view.trials.all, key=lambda n: -rank.get(n, len(rank))):
        trial = view.trials[number]
        steps = sorted(trial.metrics)
        if not steps:
            continue
        head = f"<b>trial {number}</b> {text(words.label(trial.configuration))}<br>"
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers" if trial.status == "running" else "lines",
                "name": f"trial {number}",
                "x": steps,
                "hoverinfo": "text",
                "meta": {
                    "role": "curve",
                    "trials": [number],
                    "rank": rank.get(number),
                    "front": number in on_front,
                    "label": str(number) if rank.get(number, 99) < _LABELLED_CURVES else "",
                    "values": _columns(trial.metrics, steps, metrics),
                    "hover": [f"{head}{unit} {step}" for step in steps],
                },
            }
        )
    traces += _marks(view, segments, metrics)
    ys = [finite(v) for t in view.trials.all.values() for v in t.curve(objective.name)[1]]
    return {
        "kind": "curves",
        "data": traces,
        "layout": {
            "height": 520,
            "hovermode": "closest",
            "xaxis": {"title": {"text": unit}, "rangemode": "tozero"},
            "yaxis": {"type": "log" if wants_log(ys, objective) else "linear"},
        },
    }


def _columns(
    metrics: Mapping[int, Mapping[str, float]], steps: Sequence[int], names: Sequence[str]
) -> dict[str, list[float | None]]:
    return {name: [finite(metrics[step].get(name)) for step in steps] for name in names}


def _band(band: Band) -> list[dict[str, Any]]:
    meta = {"role": "band", "trials": [band.trial]}
    steps = list(band.steps)
    hover = [
        f"<b>trial {band.trial}</b>, forecast<br>{words.number(m)} "
        f"(80 % within {words.number(low)} … {words.number(high)})"
        for low, m, high in zip(band.low, band.middle, band.high, strict=True)
    ]
    return [
        {
            "type": "scatter",
            "mode": "lines",
            "name": f"forecast of trial {band.trial}",
            "x": steps + steps[::-1],
            "y": [finite(v) for v in (*band.high, *reversed(band.low))],
            "fill": "toself",
            "hoverinfo": "skip",
            "meta": meta,
        },
        {
            "type": "scatter",
            "mode": "lines",
            "name": f"forecast of trial {band.trial}",
            "x": steps,
            "y": [finite(v) for v in band.middle],
            "hoverinfo": "text",
            "hovertext": hover,
            "meta": {**meta, "role": "forecast"},
        },
    ]


_MARKS = {
    "thawed": ("circle", "frozen here, thawed later"),
    "frozen": ("circle-open", "frozen"),
    "done": ("square", "trained to its horizon"),
    "failed": ("x", "failed"),
}


def _marks(
    view: StudyView, segments: Sequence[Segment], metrics: Sequence[str]
) -> list[dict[str, Any]]:
    """Where segments ended, one trace for each way of ending."""
    places: dict[str, list[tuple[int, int]]] = {name: [] for name in _MARKS}
    for segment in segments:
        if (
            segment.work not in ("start", "thaw")
            or segment.last not in view.trials[segment.trial].metrics
        ):
            continue
        trial = view.trials[segment.trial]
        if segment.outcome == "failed":
            places["failed"].append((segment.trial, segment.last))
        elif segment.outcome == "frozen":
            thawed = trial.last > segment.last or trial.status == "running"
            name = "thawed" if thawed else "done" if trial.status == "done" else "frozen"
            places[name].append((segment.trial, segment.last))
    traces = []
    for name, points in places.items():
        symbol, label = _MARKS[name]
        unit = view.header.unit
        rows = {(t, s): view.trials[t].metrics[s] for t, s in points}
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": label,
                "x": [step for _, step in points],
                "marker": {"symbol": symbol, "size": 7},
                "hoverinfo": "text",
                "meta": {
                    "role": "mark",
                    "thawed": name == "thawed",
                    "trials": [trial for trial, _ in points],
                    "values": {
                        metric: [finite(rows[point].get(metric)) for point in points]
                        for metric in metrics
                    },
                    "hover": [
                        f"<b>trial {trial}</b> {unit} {step}: {label}" for trial, step in points
                    ],
                },
            }
        )
    return traces

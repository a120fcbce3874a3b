"""The HTML report: one file with everything in it, which opens anywhere without a network.

Text that came from users (names, values, error messages) is escaped where it enters the page.
The page's own rules forbid loading anything (Content-Security-Policy).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autotune.report import background, curves, figures, sections, words
from autotune.report.finalists import finalists
from autotune.report.history import Band, best_so_far, forecasts, segments, standings
from autotune.report.importance import importance

if TYPE_CHECKING:
    from autotune.result import StudyView

_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; font-src data:"
)

_NOSCRIPT = (
    '<noscript><p class="note">The figures need JavaScript; the tables do not.</p></noscript>'
)


def write_report(view: StudyView, path: Path | str) -> Path:
    """Write the report of a study, finished or not.

    Args:
        view: the study; its task is not imported.
        path: of the file to write; replaced as a whole.

    Returns:
        The absolute path of the file.

    Raises:
        OSError: if the file cannot be written.
    """
    target = Path(path).absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        draft.write_text(page(view), encoding="utf-8")
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
    return target


def page(view: StudyView) -> str:
    """The report as HTML."""
    from plotly.offline import get_plotlyjs

    pieces = segments(view.events)
    bands, band_note = _forecasts(view)
    found = importance(view.trials)
    result = view.result
    rows = standings(
        view.trials,
        [point.configuration for point in result.pareto],
        [point.configuration for point in result.points],
    )
    units, best = best_so_far(view.trials, view.events)
    plots: dict[str, figures.Figure | None] = {
        "best-so-far": curves.best_so_far(units, best, view) if units else None,
        "front": figures.front(view) if result.points else None,
        "parallel": figures.parallel(view),
        "curves": curves.curves(view, pieces, bands) if units else None,
        "timeline": figures.timeline(view, pieces) if pieces else None,
        "strip": figures.strip(view) if units else None,
        "importance": figures.importance_bars(found) if found.missing is None else None,
        "cost": figures.cost(pieces) if units else None,
    }
    drawn = {name: figure for name, figure in plots.items() if figure is not None}
    body = [
        sections.summary(view, pieces, "best-so-far" in drawn),
        *finalists(view),
        sections.front(view, "parallel" in drawn),
        sections.curves(view, band_note),
        sections.timeline(view, pieces),
        sections.plugins(view, rows),
        sections.importance(found, view),
        sections.cost(view, pieces),
        sections.trials(view, pieces),
        background.left_out(view),
        background.study(view),
    ]
    shell = _resource("page.html")
    values = {
        "policy": escape(_POLICY),
        "title": escape(f"{view.name} – autotune report"),
        "name": escape(view.name),
        "style": _resource("page.css"),
        "links": sections.links(body),
        "colour": sections.colour_selector(rows),
        "noscript": _NOSCRIPT,
        "sections": "\n".join(section.html for section in body),
        "data": _json({"figures": drawn, **_page_data(view, rows)}),
        "plotly": _inline_script(get_plotlyjs()),
        "script": _inline_script(_resource("page.js")),
    }
    # One pass: what is inserted is never searched for further marks.
    return re.sub(r"\{\{(\w+)\}\}", lambda mark: values[mark[1]], shell)


def _page_data(view: StudyView, rows: Sequence[Any]) -> dict[str, Any]:
    options: dict[str, list[str]] = {}
    # A colour belongs to an option whatever the order of merit, so that it stays when a
    # report is written again later.
    for row in sorted(rows, key=lambda row: (row.choice, row.option)):
        options.setdefault(row.choice, []).append(row.option)
    objective = view.context.objective
    return {
        "axes": figures.axes(view) if view.result.points else [],
        "primary": objective.name,
        "primaryTitle": figures.text(words.title(objective)),
        "metricTitles": {
            name: figures.text(words.spaced(name)) for name in curves.curve_metrics(view)
        },
        "options": options,
        "trialOptions": {
            number: words.choices(trial.configuration) for number, trial in view.trials.all.items()
        },
        "unit": view.header.unit,
    }


def _forecasts(view: StudyView) -> tuple[list[Band], str]:
    """The last forecast of unfinished trials by the study's own forecaster, and what to say
    of it."""
    from autotune.plugins import PluginError
    from autotune.plugins.discovery import get
    from autotune.plugins.search import Forecaster

    search = dict(view.header.search["forecaster"])
    name = str(search.pop("name"))
    try:
        plugin = get("forecaster", name)
    except PluginError as error:
        return [], f"No forecast is shown: {error}"
    forecaster = plugin(search)
    assert isinstance(forecaster, Forecaster)
    bands = forecasts(view.context, view.events, forecaster)
    if not bands:
        return [], "Every trial with a value is finished, so there is nothing to forecast."
    which = words.plural(len(bands), "best unfinished trial")
    return bands, (
        f"Bands: where the forecaster “{name}” expects the {which} to go, with 80 % probability."
    )


def _resource(name: str) -> str:
    return resources.files("autotune.report").joinpath(name).read_text(encoding="utf-8")


def _json(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    plain = json.dumps(value, allow_nan=False, separators=(",", ":"), default=float)
    return plain.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _inline_script(source: str) -> str:
    return source.replace("</script", "<\\/script").replace("<!--", "<\\!--")

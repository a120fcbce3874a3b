"""The report's section on the final phase: what the finalists do on seeds they were not chosen
for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autotune.report import elements, words

if TYPE_CHECKING:
    from autotune.decide.final import Standing
    from autotune.result import StudyView


def finalists(view: StudyView) -> list[elements.Section]:
    """The section; none where there was no final phase."""
    result, objective = view.result, view.context.objective
    if not result.standings:
        return []
    columns = [
        "trial",
        view.header.unit,
        f"{words.metric(objective)} it was chosen for",
        "on other seeds",
        "mean",
        "± standard error",
        "failures",
        "plugins",
    ]
    rows = [
        [
            elements.number_cell(standing.trial),
            elements.number_cell(standing.step),
            elements.number_cell(standing.value),
            elements.Cell(", ".join(words.number(value) for _, value in standing.repeats) or "–"),
            elements.number_cell(standing.mean),
            elements.number_cell(standing.standard_error),
            elements.number_cell(standing.failed),
            elements.Cell(_label(view, standing)),
        ]
        for standing in result.standings
    ]
    note = (
        "The best candidates were finished and their configurations trained again on other seeds; "
        "beside them stands what was cooled down from one or refined by its gradient norms. "
        "The best mean over the other seeds wins, first row; the value that a candidate was chosen "
        "for was lucky in part and does not count. The standard error is that of the mean, from "
        "the spread of all repeats around their means."
    )
    return [
        elements.section(
            "finalists",
            "Final phase",
            "Final phase: the best on other seeds",
            elements.table("Final phase", columns, rows),
            elements.note(note),
        )
    ]


def _label(view: StudyView, standing: Standing) -> str:
    """The plugins of a candidate, and what it was derived from."""
    label = words.label(view.trials[standing.trial].configuration)
    if standing.origin is None:
        return label
    return f"{label} ({words.origin_text(standing.origin, view.header.unit)})"

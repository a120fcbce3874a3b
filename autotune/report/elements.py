"""The building blocks of the report's HTML: sections, cards, places for plots, sortable tables.
Text is escaped here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from autotune.report import words


@dataclass(frozen=True)
class Section:
    """One section: its anchor, its name in the navigation, its HTML."""

    anchor: str
    name: str
    html: str


def section(anchor: str, name: str, heading: str, *content: str) -> Section:
    """A section of the page; empty parts of its content are left out."""
    inner = "\n".join(part for part in content if part)
    return Section(
        anchor,
        name,
        f'<section id="{anchor}" aria-labelledby="{anchor}-heading">\n'
        f'<h2 id="{anchor}-heading">{escape(heading)}</h2>\n{inner}\n</section>',
    )


def plot(name: str, label: str, *controls: str) -> str:
    """The place that the page draws a figure in, with controls above it."""
    bar = f'<div class="controls">{"".join(controls)}</div>' if controls else ""
    return (
        f'<figure>{bar}<div class="plot" id="plot-{name}" role="img" '
        f'aria-label="{escape(label)}"></div></figure>'
    )


def note(text: str) -> str:
    """A remark in small type."""
    return f'<p class="note">{escape(text)}</p>' if text else ""


def select(identifier: str, label: str, options: Iterable[tuple[str, str]]) -> str:
    """A labelled choice between (value, text) options."""
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


def number_cell(value: float | int | None) -> Cell:
    """A cell sorted by its number."""
    return Cell(words.number(value), value)


def table(
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


def card(title: str, headline: str, *lines: str) -> str:
    """A summary card: a title, what matters most, and lines below."""
    rest = "".join(f"<p>{escape(line)}</p>" for line in lines if line)
    return (
        f'<div class="card"><h3>{escape(title)}</h3>'
        f'<p class="headline">{escape(headline)}</p>{rest}</div>'
    )

"""The report as a file: complete, self-contained, and safe against what users write."""

from __future__ import annotations

import html
import json
import re
from html.parser import HTMLParser

import demo
import pytest

from autotune.plugins.search import Budget, Decided, Failed, Objective, Observed, Start, Stop
from autotune.report import write_report
from autotune.report.html import page


class Outline(HTMLParser):
    """Elements, identifiers, addresses and visible text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.text: list[str] = []
        self.scripts: list[str] = []
        self._in: str | None = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        values = dict(attrs)
        if "id" in values:
            self.ids.append(values["id"])
        self.addresses += [values[key] for key in ("href", "src") if key in values]
        self._in = tag if tag in ("script", "style") else None

    def handle_endtag(self, tag):
        self._in = None

    def handle_data(self, data):
        (self.scripts if self._in else self.text).append(data)


@pytest.fixture(scope="module")
def outline(report):
    return Outline(report.read_text(encoding="utf-8"))


def test_nothing_is_loaded_from_elsewhere(outline, report):
    assert all(a.startswith("#") or a == "data:," for a in outline.addresses)
    assert outline.tags.count("script") == 3
    assert "link" in outline.tags
    assert "default-src 'none'" in html.unescape(report.read_text(encoding="utf-8")[:600])
    assert report.stat().st_size > 1_000_000


def test_every_link_has_its_target_and_ids_are_unique(outline):
    assert len(outline.ids) == len(set(outline.ids))
    targets = [a[1:] for a in outline.addresses if a.startswith("#")]
    assert len(targets) == 11
    assert set(targets) <= set(outline.ids)


def test_figures_are_valid_plotly(outline):
    import plotly.graph_objects as go

    data = json.loads(next(text for text in outline.scripts if text.startswith('{"figures"')))
    assert set(data["figures"]) == {
        "best-so-far",
        "front",
        "parallel",
        "curves",
        "timeline",
        "strip",
        "importance",
        "cost",
    }
    for name, figure in data["figures"].items():
        assert f"plot-{name}" in outline.ids
        traces = [{k: v for k, v in t.items() if k != "meta"} for t in figure["data"]]
        go.Figure({"data": traces, "layout": figure["layout"]})


def test_the_headline(outline, view):
    text = " ".join(outline.text)
    best = view.result.best
    assert f"Trial {best.trial}" in text
    assert f"{best.metrics['validation_loss']:.4g}" in text
    assert "0.0934" in text
    assert "looked at once, after the search" in text
    assert "The search ended: the budget of 420 epochs is spent." in text
    assert f"{view.trials.units} of 420 epochs" in text


def test_what_users_wrote_is_text(outline, report):
    source = report.read_text(encoding="utf-8")
    assert "<img" not in source.replace("image/svg+xml", "").split("<script>")[0]
    assert outline.tags.count("img") == 0
    assert any(demo.HOSTILE in part for part in outline.text)
    # Plotly reads a little HTML in labels and hovers.
    data = json.loads(next(text for text in outline.scripts if text.startswith('{"figures"')))
    hovers = [h for t in data["figures"]["front"]["data"] for h in t["hovertext"]]
    assert any("&lt;script&gt;" in h for h in hovers)
    assert not any("<script" in h or "<img" in h for h in hovers)


def test_failures_and_plugins_left_out_are_told(outline):
    text = " ".join(outline.text)
    assert "not finite" in text
    assert "loss is NaN" in text
    assert "needs attention blocks" in text


@pytest.mark.parametrize("count", [0, 1, 2, 3, 6, 30])
def test_a_study_just_begun(tmp_path, count):
    log = [event for event in demo.events() if not isinstance(event, Stop)][:count]
    view = demo.write_study(tmp_path / "study", log, demo.header())
    text = " ".join(Outline(page(view)).text)
    assert "still running when this was written" in text


def test_a_study_where_everything_failed(tmp_path):
    configuration = demo.SPACE.split()[0].default()
    log = []
    for number in range(3):
        log.append(Decided(number, Start(number, configuration, 5, 1)))
        log.append(Failed(number, 0, "error", "ValueError: no such column\n  at line 3"))
    view = demo.write_study(tmp_path / "study", log, demo.header())
    text = " ".join(Outline(page(view)).text)
    assert "Nothing has been trained to a checkpoint yet" in text
    assert text.count("ValueError: no such column") == 3


def test_a_single_objective_without_choices(tmp_path):
    from autotune.space import Float, Space

    space = Space({"learning_rate": Float(1e-4, 1.0, log=True, default=1e-2)})
    only = (Objective("accuracy", "maximize", "curve", bounds=(0.0, 1.0)),)
    head = demo.header(objectives=only, space=space, budget=Budget(trials=3), left_out=())
    log = [
        Decided(0, Start(0, {"learning_rate": 0.1}, 3, 3)),
        *[Observed(0, s, {"accuracy": 0.2 * s}, 0.1, float(s)) for s in (1, 2, 3)],
        demo.Frozen(0, 3, "c", {}, 0.3, True, 3.0),
    ]
    view = demo.write_study(tmp_path / "study", log, head)
    outline = Outline(page(view))
    text = " ".join(outline.text)
    assert "no choice between plugins" in text
    assert "plot-parallel" not in outline.ids
    assert "0.6" in text


def test_the_file_is_replaced_as_a_whole(view, tmp_path, monkeypatch):
    path = tmp_path / "deep" / "report.html"
    assert write_report(view, path) == path
    before = path.read_bytes()
    monkeypatch.setattr("autotune.report.html.page", lambda view: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(view, path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_the_page_speaks_plainly(outline):
    text = re.sub(r"\s+", " ", " ".join(outline.text))
    assert "None" not in text
    assert "nan" not in re.findall(r"[a-z]+", text)
    assert "{{" not in text

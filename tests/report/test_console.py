"""Live progress on terminals, pipes, and odd things in between."""

from __future__ import annotations

import io
import math
import re

import demo
import pytest
from rich.console import Console

from autotune.plugins.search import Budget, Decided, Failed, Observed, SearchContext, Start
from autotune.plugins.trials import Trials
from autotune.report.console import Progress, clean, print_summary

ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def context(**budget) -> SearchContext:
    training, evaluation = demo.SPACE.split()
    limits = budget or {"units": 420, "seconds": 240.0, "evaluations": 24}
    return SearchContext(training, evaluation, demo.OBJECTIVES, 24, Budget(**limits), 0)


class Encoded(io.TextIOWrapper):
    """A text stream of some encoding over memory, which may call itself a terminal."""

    def __init__(self, encoding: str = "utf-8", terminal: bool = False) -> None:
        self.bytes = io.BytesIO()
        self.terminal = terminal
        super().__init__(self.bytes, encoding=encoding, errors="strict")

    def isatty(self) -> bool:
        return self.terminal

    def text(self) -> str:
        self.flush()
        return self.bytes.getvalue().decode(self.encoding)


def feed(progress: Progress, events) -> None:
    trials = Trials(progress.context.space, progress.context.objectives)
    with progress:
        for event in events:
            trials.observe(event)
            progress(trials, event)


def console(stream, **options) -> Console:
    return Console(file=stream, _environ={}, **options)


def test_plain_lines_in_a_pipe():
    stream = Encoded()
    feed(Progress(context(), "digits", console=console(stream), every=0.0), demo.events(trials=12))
    lines = stream.text().splitlines()
    assert "\x1b" not in stream.text()
    assert any("thaw trial" in line for line in lines)
    assert any("failed (not finite): loss is NaN" in line for line in lines)
    last = lines[-1]
    assert "of 420" in last
    assert "stop: the budget of 420 epochs is spent" in last
    assert re.search(r"validation_loss 0\.\d+, trial \d+, epoch \d+: ", last)


def test_plain_lines_are_throttled():
    stream = Encoded()
    events = [event for event in demo.events() if not isinstance(event, Failed)]
    feed(Progress(context(), "digits", console=console(stream), every=3600), events)
    # First event, lost, restarted, stop, and the end.
    assert len(stream.text().splitlines()) == 5


def test_the_panel_tells_what_happens():
    stream = Encoded(terminal=True)
    progress = Progress(
        context(), "digits", console=console(stream, force_terminal=True, width=100, height=40)
    )
    log = demo.events(trials=12)
    trials = Trials(progress.context.space, progress.context.objectives)
    for event in log:
        trials.observe(event)
        progress(trials, event)
    picture = io.StringIO()
    Console(file=picture, width=100, _environ={}).print(progress._render())
    text = picture.getvalue()
    assert "stop: the budget of 420 epochs is spent" in text
    assert re.search(r"\d+ frozen, \d+ done, \d+ failed", text)
    assert re.search(r"epochs .*of 420, \d+ left", text)
    assert re.search(r"validation_loss 0\.\d+, trial", text)
    assert re.search(r"[▂▃▄▅▆▇█]▁", text)
    feed(progress, log[:40])
    assert "digits" in ANSI.sub("", stream.text())


@pytest.mark.parametrize("width", [1, 2, 7, 20, 39, 70, 500])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1", "cp1252"])
def test_any_width_and_encoding(width, encoding):
    for options in ({"force_terminal": True}, {}):
        stream = Encoded(encoding, terminal=bool(options))
        shown = console(stream, width=width, height=10, **options)
        feed(
            Progress(context(), "stüdy \x1b[31m\udcff", console=shown, every=0.0),
            demo.events(6)[:60],
        )
        assert stream.text()


def test_a_dumb_terminal_gets_plain_lines():
    stream = Encoded(terminal=True)
    shown = Console(file=stream, _environ={"TERM": "dumb"}, force_terminal=True)
    feed(Progress(context(), "digits", console=shown, every=0.0), demo.events(6)[:30])
    assert "\x1b" not in stream.text()


@pytest.mark.parametrize("terminal", [True, False])
def test_a_broken_pipe_silences_it_only(terminal):
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError(32, "Broken pipe")

        def isatty(self) -> bool:
            return terminal

    shown = Console(file=Broken(), _environ={}, force_terminal=terminal)
    feed(Progress(context(), "digits", console=shown, every=0.0), demo.events(6)[:30])


def test_a_budget_of_nothing_and_values_of_nothing():
    stream = Encoded()
    progress = Progress(context(trials=0), "odd", "step", console=console(stream), every=0.0)
    configuration = demo.SPACE.split()[0].default()
    feed(
        progress,
        [
            Decided(0, Start(0, configuration, 3, 2)),
            Observed(0, 1, {"validation_loss": math.nan}, 0.1),
            Observed(0, 2, {}, math.inf),
            Failed(0, 2, "error", ""),
        ],
    )
    assert "nothing measured yet" in stream.text()
    assert "1 of 0, 0 left" in stream.text()


def test_control_characters_never_reach_the_terminal():
    assert clean("a\x1b[2Jb\rc\x07", "utf-8") == "a [2Jb c "
    assert clean("ü – ☃", "ascii") == "? - ?"
    assert clean("\udcff", "utf-8") == " "


def test_summary(view):
    stream = Encoded()
    print_summary(view, console(stream, width=160))
    text = stream.text()
    best = view.result.best
    assert f"trial {best.trial}, epoch {best.step}" in text
    assert "test_accuracy 0.9712" in text
    assert "optimizer.learning_rate" in text
    assert f"Pareto front, {len(view.result.pareto)} points" in text
    for width in (1, 12, 40):
        narrow = Encoded("ascii")
        print_summary(view, console(narrow, width=width))
        assert narrow.text()


def test_summary_of_a_study_without_a_checkpoint(tmp_path):
    empty = demo.write_study(tmp_path / "empty", [], demo.header())
    stream = Encoded()
    print_summary(empty, console(stream))
    assert "no best configuration" in stream.text()

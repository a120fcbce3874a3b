"""Live progress of a study in the terminal, and the summary at its end.

`Progress` is a listener over (trials, event). In a terminal it keeps one panel up to date; in a
file or a pipe it writes a line now and then. What it shows is a snapshot taken when an event
arrives, so the thread that draws never looks at the trials while they change.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from autotune.plugins.search import (
    Decided,
    Event,
    Failed,
    Lost,
    Observed,
    Restarted,
    SearchContext,
    Stop,
)
from autotune.plugins.trials import Trials
from autotune.report import words

if TYPE_CHECKING:
    from autotune.result import Point, StudyView

_STATUSES = ("running", "frozen", "new", "done", "evicted", "failed")
_FRESH_SECONDS = 0.2
_POINTS = 256
"""Of the curve no more points are kept than twice as many; no terminal shows more."""


@dataclass(frozen=True)
class Snapshot:
    """What the panel shows, at one moment.

    `seconds` is the study's clock and `taken` the monotonic time it was read at; `curve` holds
    the best value so far, as units went by, in the objective's own units.
    """

    counts: dict[str, int]
    units: int
    evaluations: int
    seconds: float
    taken: float
    best: tuple[float, int, int] | None
    best_label: str
    curve: tuple[float, ...]
    recent: tuple[str, ...]
    further: int
    violated: bool = False
    gpu_seconds: float = 0.0


class Progress:
    """Shows a study's progress while it runs.

    Use it as a context manager around the study and hand it over as a listener::

        with Progress(context, "digits", unit=task.unit) as progress:
            run(..., listeners=[progress])

    A terminal that cannot be written to any more silences it; it never ends a study.

    Args:
        context: of the search: objectives and budget.
        name: of the study.
        unit: what a trial's step counts, ``epoch`` or ``step``.
        console: where to write; standard error by default, so that a command's own output
            stays clean.
        every: seconds between two lines where the output is not a terminal.
    """

    def __init__(
        self,
        context: SearchContext,
        name: str,
        unit: str = "epoch",
        console: Console | None = None,
        every: float = 5.0,
    ) -> None:
        self.context = context
        self.name = name
        self.unit = unit
        self.console = console or Console(stderr=True)
        self.every = every
        self.interactive = self.console.is_terminal and not self.console.is_dumb_terminal
        self._live: Live | None = None
        self._recent: deque[str] = deque(maxlen=5)
        self._curve: list[float] = []
        self._units, self._stride = 0, 1
        self._snapshot: Snapshot | None = None
        self._last_line = -math.inf
        self._seen_best: tuple[float, int, int] | None = None
        self._broken = False
        # By default rich ends the whole program when its pipe is closed.
        self.console.on_broken_pipe = self._silence  # type: ignore[method-assign]

    def __enter__(self) -> Progress:
        if self.interactive:
            live = Live(
                get_renderable=self._render,
                console=self.console,
                refresh_per_second=4,
                transient=True,
            )
            self._try(live.start)
            self._live = live
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._try(self._live.stop)
            self._live = None
        if self._snapshot is not None and not self.interactive and not self._broken:
            self._line()

    def __call__(self, trials: Trials, event: Event) -> None:
        """Take note of an event that `trials` has folded already."""
        if self._broken:
            return
        urgent = self._note(trials, event)
        now = time.monotonic()
        line = not self.interactive and (urgent or now - self._last_line >= self.every)
        if urgent or line or self._snapshot is None or now - self._snapshot.taken >= _FRESH_SECONDS:
            self._snapshot = self._take(trials, now)
        if line:
            self._line()

    def _note(self, trials: Trials, event: Event) -> bool:
        """Remember what the event brings; whether it should be shown at once."""
        match event:
            case Decided(decision=decision):
                self._recent.append(words.describe(decision, self.unit))
                return isinstance(decision, Stop)
            case Observed():
                if trials.best is not None and not trials.best_violation > 0:
                    self._extend_curve(self.context.objective.sign * trials.best[0])
                return False
            case Failed(trial=trial, cause=cause, message=message):
                first = next(iter(message.strip().splitlines()), "")
                self._recent.append(f"trial {trial} failed ({words.spaced(cause)}): {first}")
                return True
            case Lost(trial=trial, message=message):
                self._recent.append(f"trial {trial} lost its segment: {message}")
                return True
            case Restarted():
                self._recent.append("the study goes on after a restart")
                return True
            case _:
                return False

    def _extend_curve(self, best: float) -> None:
        """Note every unit's best value; of ever more units, every second, fourth, ... one."""
        if self._units % self._stride == 0:
            self._curve.append(best)
        self._units += 1
        if len(self._curve) == 2 * _POINTS:
            del self._curve[1::2]
            self._stride *= 2

    def _take(self, trials: Trials, now: float) -> Snapshot:
        counts = dict.fromkeys(_STATUSES, 0)
        for trial in trials.all.values():
            counts[trial.status] += 1
        best = trials.best
        return Snapshot(
            counts,
            trials.units,
            trials.evaluations,
            trials.at,
            now,
            best,
            words.label(trials[best[1]].configuration) if best else "",
            (*self._curve, self.context.objective.sign * best[0]) if self._curve and best else (),
            tuple(self._recent),
            trials.further,
            trials.best_violation > 0,
            trials.gpu_seconds,
        )

    # --- drawing ----------------------------------------------------------------------------

    def _silence(self) -> None:
        self._broken = self.console.quiet = True

    def _try(self, action: Callable[[], object]) -> None:
        """Draw. A closed pipe or terminal silences the progress: the study matters more."""
        try:
            action()
        except (OSError, ValueError):
            self._silence()

    def _clean(self, text: str) -> str:
        return clean(text, self.console.encoding)

    def _render(self) -> RenderableType:
        snapshot = self._snapshot
        if snapshot is None:
            return Text(self._clean(f"{self.name}: starting the workers"))
        elapsed = snapshot.seconds + time.monotonic() - snapshot.taken
        rows = Table.grid(padding=(0, 2))
        rows.add_column(style="dim", no_wrap=True)
        rows.add_column(ratio=1, overflow="fold")
        rows.add_row("spent", self._budget(snapshot, elapsed))
        rows.add_row("trials", self._counts(snapshot))
        rows.add_row("best", self._best(snapshot))
        ascii_only = self.console.options.ascii_only
        line = words.sparkline(
            snapshot.curve,
            max(8, min(60, self.console.width - 40)),
            words.ASCII_BLOCKS if ascii_only else words.BLOCKS,
        )
        if line:
            first, last = words.number(snapshot.curve[0]), words.number(snapshot.curve[-1])
            rows.add_row("so far", Text(self._clean(f"{first} {line} {last}")))
        recent = self._clean("\n".join(reversed(snapshot.recent)))
        rows.add_row(
            "last", Text(recent, style="dim", overflow="ellipsis" if not ascii_only else "fold")
        )
        return Panel(
            rows,
            title=Text(self._clean(self.name), style="bold"),
            title_align="left",
            subtitle=words.duration(elapsed),
            subtitle_align="right",
            border_style="dim",
        )

    def _limits(self, snapshot: Snapshot, elapsed: float) -> list[tuple[str, float, float, str]]:
        """Every limit of the budget: its name, what is spent, the limit, both in words."""
        budget = self.context.budget
        total = sum(snapshot.counts.values()) - snapshot.further
        rows: list[tuple[str, float, float, str]] = []
        for noun, spent, limit in (
            (f"{self.unit}s", snapshot.units, budget.units),
            ("trials", total, budget.trials),
            ("evaluations", snapshot.evaluations, budget.evaluations),
        ):
            if limit is not None:
                left = max(0, limit - spent)
                rows.append((noun, spent, limit, f"{spent:,} of {limit:,}, {left:,} left"))
        if budget.gpu_seconds is not None:
            taken, whole = snapshot.gpu_seconds, budget.gpu_seconds
            text = f"{words.duration(taken)} of {words.duration(whole)}"
            rows.append(("GPU time", taken, whole, text))
        if budget.seconds is not None:
            left_text = words.duration(max(0.0, budget.seconds - elapsed))
            rows.append(
                (
                    "time",
                    elapsed,
                    budget.seconds,
                    f"{words.duration(elapsed)} of {words.duration(budget.seconds)}, "
                    f"{left_text} left",
                )
            )
        return rows

    def _budget(self, snapshot: Snapshot, elapsed: float) -> RenderableType:
        rows = Table.grid(padding=(0, 1))
        rows.add_column(no_wrap=True)
        wide = self.console.width >= 70
        if wide:
            rows.add_column(width=20)
        rows.add_column(overflow="fold")
        for noun, spent, limit, text in self._limits(snapshot, elapsed):
            bar = ProgressBar(total=max(limit, 1e-9), completed=min(spent, limit), width=20)
            rows.add_row(*([noun, bar, text] if wide else [noun, text]))
        return rows

    def _counts(self, snapshot: Snapshot) -> Text:
        styles = {"running": "cyan", "frozen": "blue", "done": "green", "failed": "red"}
        text = Text()
        for status, count in snapshot.counts.items():
            if count or status not in ("new", "evicted"):
                if text:
                    text.append(", ")
                text.append(f"{count} {status}", style=styles.get(status, "") if count else "dim")
        return text

    def _best(self, snapshot: Snapshot) -> Text:
        if snapshot.best is None:
            return Text("nothing measured yet", style="dim")
        score, trial, step = snapshot.best
        objective = self.context.objective
        value = words.quantity(objective.sign * score, objective)
        text = Text(self._clean(f"{objective.name} {value}"), style="bold green")
        where = f", trial {trial}, {self.unit} {step}"
        where += ", which breaks the constraints" if snapshot.violated else ""
        detail = f": {snapshot.best_label}" if snapshot.best_label else ""
        text.append(self._clean(where + detail), style="default not bold")
        return text

    def _line(self) -> None:
        snapshot = self._snapshot
        assert snapshot is not None
        self._last_line = time.monotonic()
        elapsed = snapshot.seconds + self._last_line - snapshot.taken
        limits = self._limits(snapshot, elapsed)
        spent = "; ".join(f"{noun} {text}" for noun, _, _, text in limits)
        counts = self._counts(snapshot).plain
        parts = [f"[{words.duration(elapsed)}]", f"{spent} |" if spent else "", f"{counts} |"]
        parts.append(self._best(snapshot).plain)
        if snapshot.recent:
            parts.append(f"| {snapshot.recent[-1]}")
        line = self._clean(" ".join(part for part in parts if part).replace("\n", " "))
        self._try(lambda: self.console.file.write(line + "\n"))
        self._try(self.console.file.flush)


def clean(text: str, encoding: str, keep: str = "") -> str:
    """`text` as a terminal of that encoding can show it: no control characters but line feeds
    and those in `keep`, nothing that cannot be encoded."""
    printable = "".join(c if c.isprintable() or c == "\n" or c in keep else " " for c in text)
    for fancy, plain in (("–", "-"), (" · ", ", "), ("∞", "inf"), (" ± ", " +-")):
        try:
            fancy.encode(encoding)
        except (UnicodeError, LookupError):
            printable = printable.replace(fancy, plain)
    try:
        return printable.encode(encoding, "replace").decode(encoding)
    except LookupError:
        return printable.encode("ascii", "replace").decode("ascii")


# --- the summary ----------------------------------------------------------------------------


def _text(value: str, style: str = "") -> Text:
    return Text(clean(value, "utf-8"), style=style)


def configuration_table(point: Point) -> Table:
    """A point's whole configuration, one value a row."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for path, value in words.leaves(point.configuration):
        table.add_row(_text(path), _text(words.value_text(value)))
    return table


def front_table(points: Sequence[Point], view: StudyView, limit: int | None = None) -> Table:
    """Points with their objectives and plugins, one a row; `limit` of them at most."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("trial", justify="right")
    table.add_column(view.header.unit, justify="right")
    for objective in view.context.measured:
        table.add_column(_text(words.title(objective)), justify="right", overflow="fold")
    table.add_column("plugins", overflow="fold")
    for point in points[:limit]:
        cells = []
        for objective in view.context.measured:
            spread = point.spread.get(objective.name)
            around = f" ± {words.number(spread, 2)}" if spread else ""
            cells.append(words.number(point.metrics.get(objective.name)) + around)
        row = [str(point.trial), str(point.step), *cells, words.label(point.configuration)]
        best = point is view.result.best
        table.add_row(*(_text(cell) for cell in row), style="bold" if best else "")
    return table


def winner_line(view: StudyView) -> str:
    """What the winner's configuration does on seeds that it was not chosen for, in a sentence."""
    first = view.result.winner
    assert first is not None, "asked for only after a final phase"
    seeds = words.plural(len(first.repeats), "other seed")
    best = view.result.best
    chosen = "the best of these runs is the one handed out"
    if best is not None and best.trial == first.trial:
        chosen = "the run that it was chosen for is the one handed out"
    return (
        f"its configuration (trial {first.trial}) on {seeds}: "
        f"{view.context.objective.name} {words.mean_text(first)}, mean ± standard error; {chosen}"
    )


def standings_table(view: StudyView) -> Table:
    """The finalists: the value each was chosen for, and what its other seeds gave."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("trial", view.header.unit, "chosen for", "other seeds", "mean ± standard error"):
        table.add_column(title, justify="right", overflow="fold")
    derived = any(standing.origin for standing in view.result.standings)
    if derived:
        table.add_column("derived", overflow="fold")
    for index, standing in enumerate(view.result.standings):
        others = ", ".join(words.number(value) for _, value in standing.repeats)
        failed = f" ({words.plural(standing.failed, 'failure')})" if standing.failed else ""
        row = [
            str(standing.trial),
            str(standing.step),
            words.number(standing.value),
            (others or "-") + failed,
            words.mean_text(standing),
        ]
        if derived:
            origin = standing.origin
            row.append("" if origin is None else words.origin_text(origin, view.header.unit))
        first = index == 0 and standing.mean is not None
        table.add_row(*(_text(cell) for cell in row), style="bold" if first else "")
    return table


def summary(view: StudyView, limit: int = 12) -> RenderableType:
    """What came out of a study: why it ended, the best configuration, its scores, the front."""
    result, objective, unit = view.result, view.context.objective, view.header.unit
    parts: list[RenderableType] = []
    if result.reason:
        parts.append(_text(f"{view.name}: {result.reason}", style="bold"))
    further = view.trials.further
    again = f" (and {further} in the final phase)" if further else ""
    spent = (
        f"{words.plural(len(view.trials) - further, 'trial')}{again}, "
        f"{words.plural(view.trials.units, unit)}, "
        f"{words.duration(view.trials.train_seconds)} of training"
    )
    parts += [Text(spent, style="dim"), Text("")]
    best = result.best
    if best is None:
        parts.append(Text("No trial reached a checkpoint, so there is no best configuration."))
        return Group(*parts)
    value = words.quantity(best.metrics.get(objective.name), objective)
    head = _text(f"best: {objective.name} {value}", style="bold green")
    head.append(f"  (trial {best.trial}, {unit} {best.step})", style="default not bold")
    parts.append(head)
    if result.unmet is not None:
        parts.append(_text(result.unmet, style="bold red"))
    elif view.context.constraints:
        parts.append(_text(f"it keeps {', '.join(map(str, view.context.constraints))}"))
    if result.winner is not None:
        parts.append(_text(winner_line(view)))
    if result.test:
        scores = ", ".join(f"{name} {words.number(v)}" for name, v in result.test.items())
        parts.append(_text(f"on the test split: {scores}"))
    elif result.test_failure:
        parts.append(_text(f"scoring it on the test split failed: {result.test_failure}"))
    parts += [Text(""), configuration_table(best)]
    if result.standings:
        parts += [Text(""), _text("Final phase", style="bold"), standings_table(view)]
    if len(result.pareto) > 1:
        more = len(result.pareto) - limit
        parts += [
            Text(""),
            _text(f"Pareto front, {words.plural(len(result.pareto), 'point')}", style="bold"),
            front_table(result.pareto, view, limit),
        ]
        if more > 0:
            parts.append(_text(f"and {more} more: autotune pareto", style="dim"))
    return Group(*parts)


def print_renderable(renderable: RenderableType, console: Console) -> None:
    """Print on terminals of any encoding and width: characters that it lacks are replaced."""
    with console.capture() as capture:
        console.print(renderable)
    console.file.write(clean(capture.get(), console.encoding, keep="\x1b"))
    console.file.flush()


def print_summary(view: StudyView, console: Console | None = None) -> None:
    """Print `summary`, to standard output by default."""
    print_renderable(summary(view), console or Console())

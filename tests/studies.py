"""What the tests of studies share: a small space, and how event logs are compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import autotune
from autotune.decide import build_search
from autotune.plugins.discovery import get
from autotune.plugins.search import Decided, Event, Frozen, Key, Lost, Observed, Restarted, Start
from autotune.space import Categorical, Float, Integer, Space

HERE = Path(__file__).parent
ADDRESS = f"{HERE / 'study_tasks.py'}:quick"
OBJECTIVES = ["validation_loss", "shifted_accuracy", "parameters", "latency_ms"]
SEARCH = {"policy": "asha", "proposer": "random"}


def space(**further: Any) -> Space:
    return Space(
        {
            "learning_rate": Float(1e-4, 1.0, log=True, default=0.01),
            "width": Integer(1, 16, default=4),
            "smoothing": Float(0.0, 1.0, default=0.5, evaluation=True),
            **further,
        }
    )


def moods(*bad: str) -> Categorical:
    """Configurations that misbehave, by default a good one."""
    return Categorical(("good", *bad), default="good")


def tune(folder: Path, task: Any = ADDRESS, **options: Any) -> autotune.Result:
    """A study of some seconds."""
    asked = {
        "space": space(),
        "objectives": OBJECTIVES,
        "budget": {"epochs": 30, "evaluations": 6},
        "horizon": 6,
        "search": SEARCH,
        "workers": 1,
        "progress": False,
        **options,
    }
    return autotune.tune(task, folder=folder, **asked)


def untimed(events: Sequence[Event]) -> list[Event]:
    """Events without what differs between two runs of the same study: times, and latency."""
    bare = []
    for event in events:
        values: dict[str, Any] = {"at": 0.0}
        if any(field.name == "seconds" for field in fields(event)):
            values["seconds"] = 0.0
        bare.append(replace(event, **values))
    return bare


def check_replay(view: autotune.StudyView) -> int:
    """Fold a study's events anew; every recorded decision must be taken again. Returns how
    many there were."""
    search = build_search(view.header.context(), view.header.search, get)
    count = 0
    for event in view.events:
        if isinstance(event, Decided):
            decision = search.decide(Key(view.header.seed, event.number))
            if isinstance(decision, Start):
                assert isinstance(event.decision, Start)
                decision = replace(decision, bound_from=event.decision.bound_from)
            assert decision == event.decision, f"decision {event.number}"
            count += 1
        search.observe(event)
    return count


def check_repeats(view: autotune.StudyView) -> int:
    """Every unit that was trained twice gave the same bits, and was in a segment that a loss or
    a restart cut short. Returns how many were."""
    metrics: dict[tuple[int, int], Any] = {}
    lost: Counter[tuple[int, int]] = Counter()
    since: dict[int, list[int]] = {}
    repeats: Counter[tuple[int, int]] = Counter()
    for event in view.events:
        match event:
            case Observed(trial=trial, step=step):
                since.setdefault(trial, []).append(step)
                if (trial, step) in metrics:
                    repeats[trial, step] += 1
                    assert metrics[trial, step] == event.metrics
                metrics[trial, step] = event.metrics
            case Frozen(trial=trial):
                since.pop(trial, None)
            case Lost(trial=trial):
                lost.update((trial, step) for step in since.pop(trial, []))
            case Restarted():
                lost.update((trial, step) for trial, steps in since.items() for step in steps)
                since.clear()
    for unit, times in repeats.items():
        assert times <= lost[unit], f"unit {unit} was trained again without need"
    return sum(repeats.values())

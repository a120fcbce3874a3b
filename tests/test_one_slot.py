"""One slot, twenty trials: a bandit that pauses needs no second worker to go on with its trials.

Schedulers that hold a trial's place while it is paused cannot do this: with one slot, the first
trial that is paused is the last that runs.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from studies import check_replay, tune

import autotune
from autotune.plugins.search import Decided, Frozen, Observed, Start, Thaw
from autotune.study import Interrupted


def test_twenty_trials_run_pause_and_go_on_with_a_single_worker(tmp_path: Path) -> None:
    sent: list[int] = []

    def interrupt(trials: Any, event: Any) -> None:
        if isinstance(event, Frozen) and trials.units >= 25 and not sent:
            sent.append(trials.units)
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        tune(
            tmp_path,
            objectives=["validation_loss"],
            budget={"trials": 20},
            horizon=9,
            workers=1,
            final=False,
            search={"policy": "asha", "proposer": "random"},
            listeners=[interrupt],
        )
    view = autotune.resume(tmp_path / "study", progress=False).view
    assert len(view.trials) == 20
    assert {trial.status for trial in view.trials.all.values()} <= {"frozen", "done"}

    running, before, resumed = None, None, set()
    for event in view.events:
        match event:
            case Decided(decision=Start(trial=number) | Thaw(trial=number)):
                assert running is None, "one slot"
                running = number
                if isinstance(event.decision, Thaw) and before != number:
                    resumed.add(number)
            case Frozen(trial=number):
                before, running = number, None
            case _:
                pass
    assert len(resumed) >= 3, "went on with trials after the slot had been another's"
    units = Counter((e.trial, e.step) for e in view.events if isinstance(e, Observed))
    assert set(units.values()) == {1}, "nothing was trained twice"
    reached = Counter(trial.last for trial in view.trials.all.values())
    assert set(reached) == {1, 3, 9}
    assert reached[3] + reached[9] >= 20 // 3
    assert reached[9] >= 2
    check_replay(view)

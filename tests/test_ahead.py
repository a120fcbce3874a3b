"""Decisions taken ahead of the workers that they are for."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from studies import check_repeats, check_replay, tune

import autotune
from autotune.ahead import Pace
from autotune.plugins.search import Decided, Failed, Frozen, Lost, Observed, Start, Thaw
from autotune.study import Interrupted


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if deciding took long, however quick it is."""
    monkeypatch.setattr(Pace, "pays", property(lambda pace: True))


def most_in_flight(view: autotune.StudyView) -> int:
    flying: set[int] = set()
    most = 0
    for event in view.events:
        match event:
            case Decided(decision=Start() | Thaw() as decision):
                assert decision.trial not in flying
                flying.add(decision.trial)
                most = max(most, len(flying))
            case Frozen(trial=trial) | Lost(trial=trial, evaluation=None):
                flying.remove(trial)
    return most


@pytest.mark.parametrize(
    ("decisions", "segments", "pays"),
    [
        ([0.03, 0.03, 0.03], [0.1], True),
        ([0.03, 0.03], [0.1], False),  # too few to tell
        ([0.03, 0.03, 0.001], [0.1], False),  # one was quick: the others were held up
        ([0.001, 0.001, 0.001], [0.01], False),
        ([0.03, 0.03, 0.03], [0.1, 10.0], False),
        ([0.03, 0.03, 0.03], [], False),
        ([1.0, 0.03, 0.03, 0.03], [10.0] + [0.1] * 20, True),  # of late
    ],
)
def test_deciding_ahead_pays_where_segments_are_short(
    decisions: list[float], segments: list[float], pays: bool
) -> None:
    pace = Pace()
    for seconds in decisions:
        pace.decided(seconds)
    for seconds in segments:
        pace.ended(seconds)
    assert pace.pays is pays


def test_a_study_that_decides_ahead_is_like_any_other(tmp_path: Path, always: None) -> None:
    result = tune(tmp_path, workers=2)
    assert result.trials.units == 30
    assert 2 < most_in_flight(result.view) <= 4
    assert check_replay(result.view) > 10
    assert check_repeats(result.view) == 0
    assert not [e for e in result.view.events if isinstance(e, Lost | Failed)]
    assert len({p.step for p in result.pareto}) >= 1
    assert result.best is not None


def test_one_worker_never_decides_ahead(tmp_path: Path, always: None) -> None:
    assert most_in_flight(tune(tmp_path, budget={"epochs": 6, "evaluations": 1}).view) == 1


def test_what_was_decided_ahead_is_gone_on_with_after_an_interruption(
    tmp_path: Path, always: None
) -> None:
    def stop(trials: Any, event: Any) -> None:
        if trials.units == 9 and isinstance(event, Observed):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        tune(tmp_path, workers=2, listeners=[stop])
    result = autotune.resume("study", folder=tmp_path, progress=False)
    assert result.trials.units == 30
    assert check_replay(result.view) > 10
    assert not [e for e in result.view.events if isinstance(e, Failed)]


def test_what_was_decided_ahead_does_not_begin_when_the_time_is_over(
    tmp_path: Path, always: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUICK_SECONDS", "0.2")
    result = tune(tmp_path, workers=2, budget={"seconds": 4, "evaluations": 1})
    assert result.reason is not None
    assert "of the budget are spent" in result.reason
    assert check_replay(result.view) > 0

"""With one worker and a budget in epochs, every executor writes the same events but for times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from studies import check_replay, untimed

import autotune
from autotune.execute.recorded_table import RecordedTable
from autotune.execute.store import parse_name
from autotune.plugins.search import Event, Failed, Frozen, Thaw
from autotune.space import Float, Integer, Space


@pytest.fixture(scope="module")
def table() -> RecordedTable:
    """Forty curves of eight epochs, some of which diverge."""
    generator = np.random.default_rng(0)
    rates, widths = 10 ** generator.uniform(-4, 0, 40), generator.integers(1, 17, 40)
    levels = 0.2 + 0.1 * np.abs(np.log10(rates) + 2) + 0.3 / widths
    epochs = np.arange(1, 9)
    curves = levels[:, None] + np.exp(-epochs / 3) + 0.01 * generator.standard_normal((40, 8))
    curves[rates > 0.1, :] = np.nan
    curves[::4, 4:] = np.nan
    return RecordedTable(
        rows=np.column_stack([rates, widths]),
        names=("learning_rate", "width"),
        log=(True, False),
        curves=curves,
        seconds=np.full((40, 8), 0.5),
        test=curves + 0.01,
    )


def run(table: RecordedTable, folder: Path, executor: Any, policy: str) -> autotune.Result:
    return autotune.tune(
        table,
        Space(
            {
                "learning_rate": Float(1e-4, 1.0, log=True, default=0.01),
                "width": Integer(1, 16, default=4),
            }
        ),
        ["validation_loss"],
        {"epochs": 60},
        horizon=8,
        folder=folder,
        executor=executor,
        workers=1,
        search={"policy": policy, "proposer": "random"},
        progress=False,
    )


def comparable(events: Sequence[Event]) -> list[Event]:
    """Without times, and of a checkpoint's name only what it is of: its digest is that of its
    content, which a replayed one does not have."""
    return [
        replace(event, checkpoint=str(parse_name(event.checkpoint)[:2]))
        if isinstance(event, Frozen)
        else event
        for event in untimed(events)
    ]


@pytest.mark.parametrize("policy", ["asha", "freeze_thaw"])
def test_local_and_replay(tmp_path: Path, table: RecordedTable, policy: str) -> None:
    local = run(table, tmp_path / "local", "local", policy)
    replay = run(table, tmp_path / "replay", "replay", policy)
    assert comparable(local.view.events) == comparable(replay.view.events)
    assert any(isinstance(e, Failed) for e in local.view.events)
    assert any(isinstance(getattr(e, "decision", None), Thaw) for e in local.view.events)
    assert local.test == replay.test
    assert check_replay(local.view) == check_replay(replay.view) > 10
    # The virtual clock is the table's: two epochs a second, those that diverge too.
    failed = sum(isinstance(e, Failed) for e in replay.view.events)
    assert replay.trials.at == pytest.approx(0.5 * (replay.trials.units + failed))


def test_local_and_ray(tmp_path: Path, table: RecordedTable) -> None:
    local = run(table, tmp_path / "local", "local", "asha")
    ray = run(table, tmp_path / "ray", "ray", "asha")
    assert comparable(local.view.events) == comparable(ray.view.events)
    assert local.test == ray.test

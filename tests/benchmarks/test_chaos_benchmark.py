"""Ten kills at random moments, and the memory benchmark's smoke form."""

from __future__ import annotations

import chaos
import pytest


def test_ten_kills_of_workers_and_drivers(capsys: pytest.CaptureFixture[str]) -> None:
    left = chaos.main(["--kills", "10"])
    told = capsys.readouterr()
    print(told.out)  # the seed
    assert left == 0, told.err
    assert "| local | 10 (" in told.out


def test_what_was_cut_short_is_counted() -> None:
    """Or the bound on what is trained again would hold whatever happens."""
    from autotune.plugins.search import Decided, Frozen, Lost, Restarted, Start, Thaw

    events = [
        Decided(0, Start(0, {}, 9, 3)),
        Decided(1, Start(1, {}, 9, 1)),
        Frozen(0, 3, "a"),
        Decided(2, Thaw(0, 9)),
        Lost(1, "killed"),
        Restarted(),
    ]
    assert chaos.cut_short(events) == 1 + 6

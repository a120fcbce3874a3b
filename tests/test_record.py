"""The record: exact, append-only, one driver."""

from __future__ import annotations

import json
import math
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune import record
from autotune.plugins.search import (
    Decided,
    Equipped,
    Evaluate,
    Evaluated,
    Failed,
    Frozen,
    Lost,
    Measure,
    Observed,
    Restarted,
    Start,
    Stop,
    Thaw,
)
from autotune.record import (
    Record,
    RecordError,
    database,
    event_from_plain,
    event_to_plain,
    place,
)
from autotune.record.events import dump

CONFIGURATION = {"optimizer": {"name": "adamw", "learning_rate": 1e-3}, "batch_size": 32}
EVENTS = [
    Decided(0, Start(0, CONFIGURATION, 20, 3, None), 0.25),
    Observed(0, 1, {"validation_loss": 0.1 + 0.2, "accuracy": 1 / 3}, 0.01, 0.5),
    Frozen(0, 3, "trial-0", {"parameters": 1234.0}, 0.2, False, 0.75),
    Decided(1, Thaw(0, 5), 1.0),
    Lost(0, "worker 1 was killed", None, 1.5),
    Restarted(1.6),
    Equipped(0.25, 1.7),
    Decided(2, Evaluate(0, 3, {"tta": {"name": "tent"}}), 1.75),
    Evaluated(0, 3, {"tta": {"name": "tent"}}, {"a": 0.5}, {"a": 0.4}, {"a": 0.1}, 0.3, 2.0),
    Decided(3, Measure(0, 3, {}), 2.25),
    Failed(0, 3, "not_finite", "loss is nan", None, 2.5),
    Decided(4, Stop("the budget is spent"), 3.0),
]


def begun(folder: Path, events: list = EVENTS) -> None:
    log = Record(folder)
    log.set_meta("header", {"name": "x"})
    log.back_up()
    for event in events:
        log.append(event)
        log.commit()
    log.close()


def test_what_is_appended_is_what_is_read(tmp_path: Path) -> None:
    begun(tmp_path)
    events, meta = record.read(tmp_path)
    assert events == EVENTS
    assert meta["header"] == {"name": "x"}
    log = Record(tmp_path)
    assert list(log.events()) == EVENTS
    log.close()


numbers = st.floats(allow_nan=True, allow_infinity=True)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(max_size=8), numbers, max_size=4), numbers)
def test_every_float_survives_exactly(metrics: dict[str, float], seconds: float) -> None:
    event = Observed(3, 7, metrics, seconds, 0.0)
    text = dump(event_to_plain(event))
    back = event_from_plain(json.loads(text))
    assert isinstance(back, Observed)
    for name, value in {**metrics, "": seconds}.items():
        other = back.seconds if name == "" else back.metrics[name]
        if name == "":
            value = seconds
        assert np.float64(value).tobytes() == np.float64(other).tobytes() or (
            math.isnan(value) and math.isnan(other)
        )


def test_numpy_and_torch_numbers_are_recorded_as_numbers(tmp_path: Path) -> None:
    import torch

    log = Record(tmp_path)
    metrics = {"a": np.float32(0.5), "b": np.int64(3), "c": torch.tensor(2.5)}
    event = log.append(Observed(0, 1, metrics, 0.0))
    log.close()
    assert isinstance(event, Observed)
    assert event.metrics == {"a": 0.5, "b": 3, "c": 2.5}


def test_an_unknown_event_names_itself() -> None:
    with pytest.raises(RecordError, match="kind 'promoted'"):
        event_from_plain({"kind": "promoted", "at": 1.0})


def test_events_cannot_be_changed_or_deleted(tmp_path: Path) -> None:
    begun(tmp_path)
    connection = sqlite3.connect(tmp_path / record.FILE)
    for statement in ("UPDATE events SET at = 0", "DELETE FROM events"):
        with pytest.raises(sqlite3.IntegrityError, match="never"):
            connection.execute(statement)
    connection.close()


def test_a_second_driver_is_refused_and_told_of_the_first(tmp_path: Path) -> None:
    log = Record(tmp_path)
    with pytest.raises(RecordError, match=f"another driver .process {os.getpid()}"):
        Record(tmp_path)
    log.close()
    Record(tmp_path).close()


def test_a_reader_sees_a_running_drivers_events(tmp_path: Path) -> None:
    log = Record(tmp_path)
    log.set_meta("header", {})
    for number, event in enumerate(EVENTS):
        log.append(event)
        log.commit()
        assert record.read(tmp_path)[0] == EVENTS[: number + 1]
    log.close()


def test_the_lock_goes_with_a_killed_driver(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from autotune.record import Record\n"
        "from autotune.plugins.search import Restarted\n"
        "log = Record(Path(sys.argv[1])); log.set_meta('header', {}); log.append(Restarted(1.0))\n"
        "log.commit(); print('up', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    with pytest.raises(RecordError, match=f"process {process.pid}"):
        Record(tmp_path)
    process.kill()
    process.wait()
    process.stdout.close()
    log = Record(tmp_path)
    assert list(log.events()) == [Restarted(1.0)]
    log.close()


def cut_short(file: Path, statement: str) -> None:
    """Kill a process in a transaction, its journal on the disk and half of its pages in the file,
    as when a driver is killed while it makes the file or takes it out of WAL mode."""
    script = (
        "import os, sqlite3, sys; file = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "file.execute('PRAGMA cache_size = 1'); file.execute('BEGIN'); file.execute(sys.argv[2])\n"
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", script, str(file), statement], check=False)
    assert file.with_name(file.name + "-journal").stat().st_size > 512


def test_what_a_kill_cut_short_is_undone_and_nothing_is_called_damaged(tmp_path: Path) -> None:
    begun(tmp_path)
    cut_short(
        tmp_path / record.FILE,
        "INSERT INTO meta WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT "
        "9999) SELECT i, hex(randomblob(99)), 0 FROM n",
    )
    assert record.exists(tmp_path)
    events, meta = record.read(tmp_path)
    assert events == EVENTS
    assert meta["header"] == {"name": "x"}
    log = Record(tmp_path)
    assert log.restored is None
    assert list(log.events()) == EVENTS
    log.close()


def test_killed_while_the_file_was_made(tmp_path: Path) -> None:
    cut_short(
        tmp_path / record.FILE,
        "CREATE TABLE events AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n "
        "LIMIT 9999) SELECT i, hex(randomblob(99)) FROM n",
    )
    assert not record.exists(tmp_path)
    begun(tmp_path)
    assert record.read(tmp_path)[0] == EVENTS


def test_how_to_resume_names_the_folder_that_holds_the_study() -> None:
    assert record.resume_command(record.FOLDER / "s") == "autotune resume --study s"
    told = record.resume_command(Path("/my own/s-2"))
    assert told == "autotune resume --study s-2 --folder '/my own'"


def test_a_folder_without_a_study_is_told_apart(tmp_path: Path) -> None:
    assert not record.exists(tmp_path)
    with pytest.raises(RecordError, match="holds no study"):
        record.read(tmp_path)
    Record(tmp_path).close()  # killed before the header was written
    assert not record.exists(tmp_path)
    begun(tmp_path)
    assert record.exists(tmp_path)


def test_a_study_that_cannot_be_looked_at_is_not_taken_for_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as one that another program has locked."""

    def at_once(path: Path, write: bool) -> sqlite3.Connection:
        return sqlite3.connect(path, timeout=0, isolation_level=None)

    begun(tmp_path)
    (tmp_path / record.BACKUP).unlink()
    monkeypatch.setattr(database, "connect", at_once)
    with closing(at_once(tmp_path / record.FILE, True)) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert record.exists(tmp_path)
        with pytest.raises(RecordError, match="locked"):
            Record(tmp_path)
    assert record.exists(tmp_path)
    assert "header" in record.read(tmp_path)[1]


# --- where it lies --------------------------------------------------------------------------

MOUNTS = """\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 22 0:40 / /home rw,relatime shared:1 - nfs4 server:/home rw
31 30 0:41 / /home/me/my\\040disk rw,relatime - ext4 /dev/vdb rw
32 22 0:42 / /mnt/remote rw - fuse.sshfs me@there: rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/studies", "ext4"),
        ("/home/me/studies", "nfs4"),
        ("/home/me/my disk/studies", "ext4"),
        ("/homework", "ext4"),
        ("/mnt/remote/x", "fuse.sshfs"),
    ],
)
def test_the_file_system_is_that_of_the_nearest_mount(path: str, kind: str) -> None:
    assert record.file_system(Path(path), MOUNTS) == kind


def test_a_network_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, "file_system", lambda path: "nfs4")
    with pytest.raises(RecordError, match=r"network file system .nfs4.*local disk"):
        Record(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_record_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    log = Record(tmp_path)
    log._connection.execute("PRAGMA max_page_count = 8")  # as a full disk does

    def fill() -> None:
        for number in range(10_000):
            log.append(Observed(0, number, {"validation_loss": 1.0}, 0.0))
            if number % 3 == 2:
                log.commit()

    with pytest.raises(RecordError, match=r"cannot be written .*full.*autotune resume"):
        fill()
    kept = log.count
    log.close()
    assert kept > 0
    log = Record(tmp_path) if record.exists(tmp_path) else None
    assert log is None or log.count == kept

"""A damaged record: noticed, restored from its backup and what can still be read, and what was
lost is said. Random places with a printed seed; `benchmarks/damage.py` looks at more of them."""

from __future__ import annotations

import re
import sqlite3
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from test_record import EVENTS

from autotune import record
from autotune.record import Record, backup

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import damage  # type: ignore[import-not-found]


def begun(folder: Path, verified: int = len(EVENTS)) -> tuple[bytes, int]:
    """A record of all events, of whose backup so many were verified. Returns the bytes of the
    file, and the length of the verified part of the backup."""
    log = Record(folder)
    log.set_meta("header", {"name": "x"})
    for event in EVENTS[:verified]:
        log.append(event)
        log.commit()
    log.back_up()
    length = (folder / record.BACKUP).stat().st_size
    for event in EVENTS[verified:]:
        log.append(event)
        log.commit()
    log.close()
    return (folder / record.FILE).read_bytes(), length


def cut(path: Path, length: int) -> None:
    with open(path, "r+b") as file:
        file.truncate(length)


def test_random_damage_of_file_and_write_ahead_log(capsys: pytest.CaptureFixture[str]) -> None:
    assert damage.main(["--smoke"]) == 0
    told = capsys.readouterr().out
    print(told)  # the seed
    assert "entries read without the backup, 7500 of 7500 with it" in told
    rows = {
        cells[1]: cells
        for line in told.splitlines()
        if len(cells := [cell.strip() for cell in line.split("|")]) > 5
    }
    assert int(rows["zeroed"][4]) > 0
    assert int(rows["both"][4]) > 0


@pytest.mark.parametrize("kept", [0, 1, 50, 100, 4096, 5000, 12_000])
def test_a_cut_file_is_restored_from_its_verified_backup(tmp_path: Path, kept: int) -> None:
    whole, verified = begun(tmp_path, 5)
    assert kept < len(whole)
    cut(tmp_path / record.FILE, kept)
    cut(tmp_path / record.BACKUP, verified)
    told = f"autotune resume --study {tmp_path.name} --folder {tmp_path.parent}` restores"
    with pytest.raises(record.Damaged, match=re.escape(told)):
        record.read(tmp_path)
    assert record.exists(tmp_path)
    log = Record(tmp_path)
    assert list(log.events()) == EVENTS[:5]
    assert log.restored is not None
    assert "5 events, up to second 2 of the study" in log.restored
    assert (tmp_path / "record.damaged-1.sqlite").read_bytes() == whole[:kept]
    assert log.append(EVENTS[5]) == EVENTS[5]
    log.close()
    log = Record(tmp_path)
    assert log.restored is None
    assert list(log.events()) == EVENTS[:6]
    assert len(log.meta["restored"]) == 1
    log.close()


def test_what_lies_behind_a_gap_is_said_to_be_lost(tmp_path: Path) -> None:
    """Events 6 and 7 are whole on neither side; those after can be read but not gone on from."""
    _, verified = begun(tmp_path, 6)
    with sqlite3.connect(tmp_path / record.FILE) as connection:
        connection.execute("DROP TRIGGER events_are_final")
        connection.execute("UPDATE events SET json = 'x' || json WHERE seq IN (2, 6, 7)")
    connection.close()
    cut(tmp_path / record.BACKUP, verified)
    log = Record(tmp_path)
    assert list(log.events()) == EVENTS[:6]
    assert log.restored is not None
    assert "event 2 is missing or has changed" in log.restored
    lost = len(EVENTS) - 6
    assert f"{lost} later events are lost (of trials 0, as far as they can be read)" in log.restored
    log.close()
    assert record.read(tmp_path)[0] == EVENTS[:6]


def test_both_sides_together_make_a_whole(tmp_path: Path) -> None:
    begun(tmp_path)
    with sqlite3.connect(tmp_path / record.FILE) as connection:
        connection.execute("DROP TRIGGER events_are_kept")
        connection.execute("DELETE FROM events WHERE seq IN (0, 7)")
    connection.close()
    lines = (tmp_path / record.BACKUP).read_bytes().splitlines(keepends=True)
    lines[4] = bytes(len(lines[4]) - 1) + b"\n"
    (tmp_path / record.BACKUP).write_bytes(b"".join(lines[:-1]) + lines[-1][:9])
    log = Record(tmp_path)
    assert list(log.events()) == EVENTS
    assert log.restored is not None
    assert "nothing that is known to have been recorded is lost" in log.restored
    log.close()
    assert backup.content(tmp_path / record.BACKUP).sound


@pytest.mark.parametrize("sound", [True, False])
def test_a_fact_that_was_dropped_does_not_come_back(tmp_path: Path, sound: bool) -> None:
    begun(tmp_path, 5)
    log = Record(tmp_path)
    log.set_meta("winner", 3)
    log.set_meta("kept", 4)
    log.close()
    stale = (tmp_path / record.FILE).read_bytes()
    log = Record(tmp_path)
    log.drop_meta("winner")
    log.append(replace(EVENTS[0], at=EVENTS[-1].at + 1))
    log.close()
    if not sound:  # it is made anew, from the file and from what it says itself
        with open(tmp_path / record.BACKUP, "r+b") as file:
            file.write(b"x")
        Record(tmp_path).close()
        assert backup.content(tmp_path / record.BACKUP).sound
    (tmp_path / record.FILE).write_bytes(stale)
    log = Record(tmp_path)
    assert log.restored is not None
    assert (log.count, "winner" in log.meta, log.meta["kept"]) == (len(EVENTS) + 1, False, 4)
    log.close()
    assert "winner" not in record.read(tmp_path)[1]


@pytest.mark.parametrize("place", [0, 300, -1])
def test_a_damaged_backup_is_made_anew(tmp_path: Path, place: int) -> None:
    begun(tmp_path)
    path = tmp_path / record.BACKUP
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[place] ^= 8
    path.write_bytes(damaged)
    log = Record(tmp_path)
    assert log.restored is None
    assert list(log.events()) == EVENTS
    log.close()
    assert sorted(path.read_bytes().splitlines()) == sorted(whole.splitlines())


def test_a_damaged_write_version_is_restored_and_not_taken_for_missing_rights(
    tmp_path: Path,
) -> None:
    """SQLite says of such a file that it may not be written to."""
    begun(tmp_path)
    path = tmp_path / record.FILE
    damaged = bytearray(path.read_bytes())
    damaged[18] = 3
    path.write_bytes(damaged)
    log = Record(tmp_path)
    assert log.restored is not None
    assert list(log.events()) == EVENTS
    log.close()


def test_a_file_that_is_gone_is_restored(tmp_path: Path) -> None:
    begun(tmp_path)
    (tmp_path / record.FILE).unlink()
    with pytest.raises(record.Damaged, match="the file is missing"):
        record.read(tmp_path)
    log = Record(tmp_path)
    assert list(log.events()) == EVENTS
    log.close()


def test_events_that_sqlite_silently_drops_are_missed(tmp_path: Path) -> None:
    """A write-ahead log with a damaged frame ends before it, which SQLite takes for its end."""
    log = Record(tmp_path)
    log.set_meta("header", {})
    log.settle()
    for event in EVENTS:
        log.append(event)
        log.commit()
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    log.close()
    ahead = bytearray(files[record.FILE + "-wal"])
    ahead[len(ahead) // 2] ^= 1
    place = tmp_path / "damaged"
    place.mkdir()
    (place / record.FILE).write_bytes(files[record.FILE])
    (place / (record.FILE + "-wal")).write_bytes(ahead)
    (place / record.BACKUP).write_bytes(files[record.BACKUP])
    missing = rf"the last \d of {len(EVENTS)} events are missing"
    with pytest.raises(record.Damaged, match=missing):
        record.read(place)
    log = Record(place)
    assert list(log.events()) == EVENTS
    log.close()


def test_nothing_to_restore_from(tmp_path: Path) -> None:
    whole, _ = begun(tmp_path)
    (tmp_path / record.BACKUP).unlink()
    (tmp_path / record.FILE).write_bytes(bytes(len(whole)))
    with pytest.raises(record.Damaged, match="start it anew under another name"):
        Record(tmp_path)
    assert (tmp_path / record.FILE).read_bytes() == bytes(len(whole))


def test_upkeep_costs_the_same_however_long_the_record_is(tmp_path: Path) -> None:
    """Counted in bytes read back, which do not depend on the machine."""
    log = Record(tmp_path)
    log.set_meta("header", {})
    read = []
    for _ in range(3):
        for event in EVENTS:
            log.append(event)
            log.commit()
        before = log._backup._verified
        log.back_up()
        read.append(log._backup._verified - before)
    log.close()
    assert max(read[1:]) < read[0] + 200

"""What becomes of a study's record when the disk under it fails.

    python benchmarks/damage.py --json damage.jsonl
    python benchmarks/damage.py --smoke

A record is written as a driver writes it, then damaged, read, and opened to go on:

- **torn**: the write-ahead log of a study that has had no checkpoint since it began is cut at
  random bytes, as a power failure leaves it. Every entry whose commit is whole must be read, and
  with the backup beside it, every entry that there was.
- **flipped**, **zeroed**: the file itself has a byte changed, or a block of up to 4,096 bytes
  zeroed, at a random place; **both**: at all these places at once. Every other time the driver
  was killed before, so that the newest events lie in the write-ahead log. The damage must be
  noticed, or harmless: what is read is what was written. It is restored from the backup as last
  verified (what was appended since is cut off, as a power failure may) and from what can still be
  read; what it says is lost must be lost. With the whole backup, nothing may be lost.

`lost` is a mean over the damaged records, of the 40 events that were not yet verified. The seed is
printed; the same seed damages the same places.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from autotune import record
from autotune.plugins.search import Decided, Event, Frozen, Observed, Start
from autotune.record import Record

CONFIGURATION = {"optimizer": {"name": "adamw", "learning_rate": 1e-3}, "batch_size": 32}
UNITS = 8
WAL = record.FILE + "-wal"
BLOCK = 4096
UNVERIFIED = 40


def events(count: int) -> list[Event]:
    """A study's log: trials of eight units each."""
    found: list[Event] = []
    trial = 0
    while len(found) < count:
        found.append(Decided(trial, Start(trial, CONFIGURATION, 50, UNITS), float(len(found))))
        for step in range(1, UNITS + 1):
            metrics = {"validation_loss": 1 / (step + trial), "validation_accuracy": 1 / 3}
            found.append(Observed(trial, step, metrics, 0.1, float(len(found))))
        found.append(Frozen(trial, UNITS, f"trial-{trial:05d}", at=float(len(found))))
        trial += 1
    return found[:count]


def begun(folder: Path) -> Record:
    """A record as a study begins it."""
    folder.mkdir()
    log = Record(folder)
    log.set_meta("header", {"name": folder.name})
    log.settle()
    log.back_up()
    return log


# --- the write-ahead log is torn ------------------------------------------------------------


@dataclass
class Torn:
    """Cuts of a write-ahead log: entries that were whole, read again, and restored."""

    cuts: int = 0
    whole: int = 0
    survived: int = 0
    restored: int = 0
    faults: list[str] = field(default_factory=list)


def torn(folder: Path, cuts: int, chosen: random.Random) -> Torn:
    """Cut the log at random bytes."""
    log = begun(folder / "whole")
    ends = []
    for event in events(300):
        log.append(event)
        log.commit()
        ends.append((folder / "whole" / WAL).stat().st_size)
    written = list(log.events())
    files = {path.name: path.read_bytes() for path in (folder / "whole").iterdir()}
    log.close()
    told = Torn(cuts)
    for number in range(cuts):
        cut = chosen.randrange(len(files[WAL]))
        place = folder / f"cut-{number}"
        place.mkdir()
        (place / record.FILE).write_bytes(files[record.FILE])
        (place / WAL).write_bytes(files[WAL][:cut])
        whole = sum(end <= cut for end in ends)
        found, _ = record.read(place)
        told.whole += whole
        told.survived += min(len(found), whole)
        if len(found) < whole or found != written[: len(found)]:
            told.faults.append(f"cut at byte {cut}: {len(found)} of {whole} entries")
        (place / record.BACKUP).write_bytes(files[record.BACKUP])
        log = Record(place)
        told.restored += log.count
        if list(log.events()) != written:
            told.faults.append(f"cut at byte {cut}: restored {log.count} of {len(written)}")
        log.close()
        shutil.rmtree(place)
    return told


# --- the file is damaged --------------------------------------------------------------------


@dataclass
class Hurt:
    """Damaged files: how many were noticed, how many read as they were written, and of those
    restored, the mean of events that were lost and of those that they were said to be."""

    what: str
    places: int
    noticed: int = 0
    harmless: int = 0
    complete: int = 0
    lost: float = 0.0
    said: float = 0.0
    faults: list[str] = field(default_factory=list)


Harm = Callable[[bytearray, random.Random], None]


def flip(data: bytearray, chosen: random.Random) -> None:
    """Change a byte."""
    data[chosen.randrange(len(data))] ^= chosen.randrange(1, 256)


def zero(data: bytearray, chosen: random.Random) -> None:
    """Zero a block."""
    start = chosen.randrange(len(data))
    end = min(len(data), start + chosen.randrange(1, BLOCK + 1))
    data[start:end] = bytes(end - start)


Files = dict[str, bytes]


def study(folder: Path, count: int) -> tuple[Files, Files, int]:
    """A record's files after its driver was killed, the same after it has left, and how much of
    the backup was verified."""
    log = begun(folder)
    verified = 0
    for number, event in enumerate(events(count)):
        if number == count - UNVERIFIED:
            log.back_up()
            verified = (folder / record.BACKUP).stat().st_size
        log.append(event)
        log.commit()
    killed = {path.name: path.read_bytes() for path in folder.iterdir()}
    log.close()
    left = {path.name: path.read_bytes() for path in folder.iterdir()}
    return killed, left, verified


def hurt(folder: Path, what: str, harms: Sequence[Sequence[Harm]], seed: int, count: int) -> Hurt:
    """Damage the file once for each of `harms`, by all that it holds, and open it."""
    *states, verified = study(folder / what, count)
    written = events(count)
    told = Hurt(what, sum(map(len, harms)))
    for number, together in enumerate(harms):
        chosen = random.Random(f"{seed} {what} {number}")
        files = states[number % 2]
        data = bytearray(files[record.FILE])
        for harm in together:
            harm(data, chosen)
        for whole_backup in (False, True):
            place = folder / f"{what}-{number}-{whole_backup}"
            place.mkdir()
            backup = files[record.BACKUP] if whole_backup else files[record.BACKUP][:verified]
            hurt_files = {**files, record.FILE: bytes(data), record.BACKUP: backup}
            for name in hurt_files.keys() - {record.LOCK, record.FILE + "-shm"}:
                (place / name).write_bytes(hurt_files[name])
            _open(told, place, written, whole_backup)
            shutil.rmtree(place)
    told.lost /= max(1, told.noticed)
    told.said /= max(1, told.noticed)
    return told


def _open(told: Hurt, place: Path, written: list[Event], whole_backup: bool) -> None:
    try:
        found, _ = record.read(place)
        silent = found != written
    except record.Damaged:
        found, silent = None, False
    if silent:
        told.faults.append(f"{place.name}: read as {len(found or ())} events without complaint")
    log = Record(place)
    kept, restored = list(log.events()), log.restored
    log.close()
    if (restored is None) != (found is not None):
        told.faults.append(f"{place.name}: a reader and the driver disagree on whether it is whole")
    if kept != written[: len(kept)]:
        told.faults.append(f"{place.name}: restored otherwise than it was written")
    lost = len(written) - len(kept)
    if whole_backup:
        told.complete += lost == 0
        if lost:
            told.faults.append(f"{place.name}: {lost} events lost although the backup has them")
    elif restored is None:
        told.harmless += 1
    else:
        said = re.search(r"(\d+) later events? (?:is|are) lost", restored)
        told.noticed += 1
        told.lost += lost
        told.said += int(said[1]) if said else 0
        if f"{len(kept)} events" not in restored or (said and int(said[1]) > lost):
            told.faults.append(f"{place.name}: says {restored!r}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="a few places, some seconds")
    parser.add_argument("--seed", type=int, help="of the places; a new one unless given")
    parser.add_argument("--json", type=Path, help="append the results here, one line each")
    asked = parser.parse_args(arguments)
    seed = asked.seed if asked.seed is not None else random.SystemRandom().randrange(2**32)
    cuts, places, count = (25, 8, 1200) if asked.smoke else (200, 50, 2000)
    print(f"seed {seed}")
    memory = Path("/dev/shm")  # thousands of synced commits
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        folder = Path(name)
        log = torn(folder, cuts, random.Random(seed))
        alone = [
            hurt(folder, what, [[harm]] * places, seed, count)
            for what, harm in (("flipped", flip), ("zeroed", zero))
        ]
        both = hurt(folder, "both", [[flip, zero] * (places // 2)] * 4, seed, count)
    print(
        f"write-ahead log cut at {log.cuts} bytes: {log.survived} of {log.whole} whole entries "
        f"read without the backup, {log.restored} of {log.cuts * 300} with it\n"
    )
    print("| damage | files | places | noticed | harmless | lost | said | with the whole backup |")
    print("|---|---|---|---|---|---|---|---|")
    for row in (*alone, both):
        print(
            f"| {row.what} | {row.noticed + row.harmless} | {row.places} | {row.noticed} | "
            f"{row.harmless} | {row.lost:.1f} of {UNVERIFIED} | {row.said:.1f} | "
            f"{row.complete} whole |"
        )
    faults = [fault for told in (log, *alone, both) for fault in told.faults]
    for fault in faults:
        print(f"WRONG: {fault}", file=sys.stderr)
    if asked.json:
        with asked.json.open("a") as file:
            for told in (log, *alone, both):
                file.write(json.dumps({"seed": seed, **asdict(told)}) + "\n")
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())

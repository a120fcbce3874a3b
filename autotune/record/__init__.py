"""The durable log of a study: every decision before it is carried out, every observation as it
arrives. A study is what folding this log gives, so nothing else need survive a kill.

One SQLite file in WAL mode, synced at every commit, with one writer at a time (the driver, which
holds a file lock); beside it a text file that is only appended to, from which a damaged one is
restored. Every entry carries a checksum, so that a flipped byte is noticed.
"""

from autotune.record.backup import FILE as BACKUP
from autotune.record.database import FILE, exists, peek, read, reading
from autotune.record.errors import Busy, Damaged, RecordError
from autotune.record.events import event_from_plain, event_to_plain
from autotune.record.log import Record
from autotune.record.place import FOLDER, LOCK, driver, file_system, resume_command

__all__ = [
    "BACKUP",
    "FILE",
    "FOLDER",
    "LOCK",
    "Busy",
    "Damaged",
    "Record",
    "RecordError",
    "driver",
    "event_from_plain",
    "event_to_plain",
    "exists",
    "file_system",
    "peek",
    "read",
    "reading",
    "resume_command",
]

"""What can be wrong with a record, in words for people."""

from __future__ import annotations


class RecordError(Exception):
    """The record cannot be opened, read or written; the message says why and what to do."""


class Busy(RecordError):
    """Another driver runs the study."""


class Damaged(RecordError):
    """The file's content is not what was written."""

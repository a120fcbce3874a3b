"""How jobs and reports cross a process border: as JSON in frames, each with a binary part for
what JSON cannot hold (the task, once)."""

from __future__ import annotations

import dataclasses
import json
import queue
import socket
import struct
from collections.abc import Mapping
from typing import Any

from autotune.plugins.execution import (
    Broken,
    Done,
    EvaluateJob,
    Job,
    Oversize,
    Report,
    TrainJob,
    Unit,
    WorkerLost,
)

_HEADER = struct.Struct("!QQ")
_TYPES = {
    cls.__name__: cls for cls in (TrainJob, EvaluateJob, Unit, Oversize, Done, Broken, WorkerLost)
}


def to_plain(value: Job | Report) -> dict[str, Any]:
    """A job or report as a JSON-able dict."""
    fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    return {"type": type(value).__name__, **fields}


def from_plain(plain: Mapping[str, Any]) -> Any:
    """The inverse of `to_plain`."""
    fields = dict(plain)
    return _TYPES[fields.pop("type")](**fields)


def frame(message: Mapping[str, Any], binary: bytes = b"") -> bytes:
    """One message on the wire: two lengths (64 bits, network order), the JSON, the binary
    part. Floats survive exactly, NaN and infinities included."""
    text = json.dumps(message).encode()
    return _HEADER.pack(len(text), len(binary)) + text + binary


class FrameReader:
    """Cuts a byte stream into messages; an unfinished one at the end is never returned."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[tuple[dict[str, Any], bytes]]:
        """The (message, binary) pairs that `data` completes."""
        self._buffer += data
        messages = []
        while len(self._buffer) >= _HEADER.size:
            text, binary = _HEADER.unpack_from(self._buffer)
            end = _HEADER.size + text + binary
            if len(self._buffer) < end:
                break
            body = bytes(self._buffer[_HEADER.size : end])
            del self._buffer[:end]
            messages.append((json.loads(body[:text]), body[text:]))
        return messages


class Grants:
    """Answers to `Oversize` on a worker's side: one thread hears them, another waits."""

    def __init__(self) -> None:
        self._given: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()

    def give(self, identifier: int, room: int) -> None:
        """The driver has made room for a job's checkpoint."""
        self._given.put((identifier, room))

    def wait(self, identifier: int) -> int:
        """The room, once it is given."""
        while True:
            granted, room = self._given.get()
            if granted == identifier:
                return room


def receive(connection: socket.socket, reader: FrameReader) -> list[tuple[dict[str, Any], bytes]]:
    """Wait until at least one message is complete. An empty list means that the other side has
    gone."""
    while True:
        try:
            data = connection.recv(1 << 16)
        except ConnectionResetError:
            return []
        if not data:
            return []
        if messages := reader.feed(data):
            return messages

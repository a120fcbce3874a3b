"""The process of a local worker: takes jobs from a socket, sends reports back.

Started by `autotune.execute.local` in a session of its own, so a Ctrl-C in the terminal reaches
the driver alone, which lets the workers freeze. When the driver goes, however it goes, the
worker and all its children end.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import queue
import signal
import socket
import sys
import threading
import traceback
from typing import Any

from autotune.execute.messages import FrameReader, Grants, frame, from_plain, receive, to_plain

_SET_PARENT_DEATH_SIGNAL = 1


def main(descriptor: int, parent: int) -> None:
    """Work until told to close or until the driver has gone.

    Args:
        descriptor: of the socket to the driver.
        parent: the driver's process id.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_with(parent)
    faulthandler.enable()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    connection = socket.socket(fileno=descriptor)
    connection.set_inheritable(False)
    inbox: queue.SimpleQueue[tuple[dict[str, Any], bytes]] = queue.SimpleQueue()
    interrupted: set[int] = set()
    grants = Grants()
    listening = (connection, inbox, interrupted, grants)
    threading.Thread(target=_listen, args=listening, daemon=True).start()
    message, binary = inbox.get()
    try:
        # torch is imported here, with Ctrl-C ignored and the driver's death watched
        from autotune.execute.opening import Opening

        opening = Opening(**message["opening"])
        runner = opening.runner((binary, []), interrupted.__contains__, grants.wait)
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        connection.sendall(
            frame({"type": "refused", "error": type(error).__name__, "message": str(error)})
        )
        return
    connection.sendall(frame({"type": "ready"}))
    while True:
        message, _ = inbox.get()
        if message["type"] == "close":
            return
        job = from_plain(message)
        for report in runner.run(job):
            connection.sendall(frame(to_plain(report)))
        interrupted.discard(job.identifier)


def _listen(
    connection: socket.socket,
    inbox: queue.SimpleQueue[tuple[dict[str, Any], bytes]],
    interrupted: set[int],
    grants: Grants,
) -> None:
    """Pass messages on; end the process and its children when the driver has gone."""
    reader = FrameReader()
    while messages := receive(connection, reader):
        for message, binary in messages:
            if message["type"] == "interrupt":
                interrupted.add(message["identifier"])
            elif message["type"] == "grant":
                grants.give(message["identifier"], message["room"])
            else:
                inbox.put((message, binary))
    os.killpg(0, signal.SIGKILL)


def _die_with(parent: int) -> None:
    """Have the kernel kill this process with its parent. The socket's end says it too, unless
    a child that the driver forked keeps the other end open."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the driver has gone")

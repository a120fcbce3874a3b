"""When decisions are taken ahead of the workers that they are for.

A worker that has ended a segment waits for the next decision. Where deciding takes long, as with a
forecast, and segments are short, the driver decides while all workers train, and whichever is free
next begins at once. Such a decision does not know how the segments in flight will end, so it is
taken only where the wait would be a share of the workers' time that is worth it.
"""

from __future__ import annotations

import statistics
from collections import deque

_SLOW_SECONDS = 0.005
"""Less is no wait that anybody notices, whatever share of a segment it is."""

_SHARE = 0.02
"""Of a segment's time: waits that are shorter cost less than what a later decision knows."""

_DECISIONS, _SEGMENTS = 3, 20


class Pace:
    """How long decisions and segments have taken of late."""

    def __init__(self) -> None:
        self._decisions: deque[float] = deque(maxlen=_DECISIONS)
        self._segments: deque[float] = deque(maxlen=_SEGMENTS)

    def decided(self, seconds: float) -> None:
        """A decision took so long."""
        self._decisions.append(seconds)

    def ended(self, seconds: float) -> None:
        """A segment took so long."""
        self._segments.append(seconds)

    @property
    def pays(self) -> bool:
        """Whether the quickest of the last decisions would keep a worker waiting too long."""
        if len(self._decisions) < _DECISIONS or not self._segments:
            return False
        quickest = min(self._decisions)
        return quickest > max(_SLOW_SECONDS, _SHARE * statistics.fmean(self._segments))

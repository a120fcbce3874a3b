"""Events as JSON and back, exactly; and the checksum that each carries on disk."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, NamedTuple

from autotune.plugins.search import (
    Budget,
    Decided,
    Doubt,
    Equipped,
    Evaluate,
    Evaluated,
    Event,
    Evicted,
    Extended,
    Failed,
    Finalists,
    Frozen,
    Lost,
    Measure,
    Observed,
    Origin,
    Restarted,
    Start,
    Stop,
    Thaw,
)
from autotune.record.errors import RecordError

_EVENTS: dict[str, type] = {
    t.__name__.lower(): t
    for t in (
        Decided,
        Observed,
        Frozen,
        Evicted,
        Evaluated,
        Failed,
        Lost,
        Restarted,
        Equipped,
        Extended,
    )
}
_DECISIONS: dict[str, type] = {
    t.__name__.lower(): t for t in (Start, Thaw, Finalists, Doubt, Evaluate, Measure, Stop)
}


class Row(NamedTuple):
    """An event as it lies on disk: its place in the record, its kind, the rest as JSON."""

    seq: int
    kind: str
    text: str
    checksum: int

    @property
    def whole(self) -> bool:
        """Whether it is what was written."""
        return self.checksum == checksum(self.seq, self.kind, self.text)

    def event(self) -> Event:
        """Raises `RecordError` for a kind that this version lacks."""
        return event_from_plain({"kind": self.kind, **json.loads(self.text)})


def event_to_row(seq: int, event: Event) -> Row:
    """Inverse of `Row.event`."""
    plain = event_to_plain(event)
    kind, text = plain.pop("kind"), dump(plain)
    return Row(seq, kind, text, checksum(seq, kind, text))


def _plain_number(value: Any) -> Any:
    # Metrics come from users' code, where numpy and torch scalars are common.
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{value!r} of type {type(value).__name__} cannot be recorded")


def _shallow(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in fields(value)}


def event_to_plain(event: Event) -> dict[str, Any]:
    """An event as JSON-ready values, with its ``kind``; exact, NaN and infinities included."""
    plain: dict[str, Any] = {"kind": type(event).__name__.lower(), **_shallow(event)}
    if isinstance(event, Decided):
        decision = event.decision
        plain["decision"] = {"kind": type(decision).__name__.lower(), **_shallow(decision)}
        if isinstance(decision, Start) and decision.origin is not None:
            plain["decision"]["origin"] = _shallow(decision.origin)
    elif isinstance(event, Extended):
        plain["budget"] = _shallow(event.budget)
    return plain


def event_from_plain(plain: Mapping[str, Any]) -> Event:
    """Inverse of `event_to_plain`. Raises `RecordError` for a kind that this version lacks."""
    values = dict(plain)
    kind = values.pop("kind", None)
    try:
        if kind == "decided":
            decision = dict(values["decision"])
            if decision["kind"] == "finalists":
                decision["trials"] = tuple(decision["trials"])  # which JSON made a list
            if decision.get("origin") is not None:
                decision["origin"] = Origin(**decision["origin"])
            values["decision"] = _DECISIONS[decision.pop("kind")](**decision)
        elif kind == "extended":
            values["budget"] = Budget(**values["budget"])
        event: Event = _EVENTS[str(kind)](**values)
    except (KeyError, TypeError) as error:
        raise RecordError(
            f"the record holds an event that this version of autotune cannot read "
            f"(kind {kind!r}: {error}); use the version that wrote it"
        ) from error
    return event


def dump(value: Any) -> str:
    """Compact JSON; NaN and infinities as Python writes them."""
    return json.dumps(value, default=_plain_number, separators=(",", ":"))


def checksum(*parts: object) -> int:
    """CRC-32 of the parts' texts."""
    return zlib.crc32("\x1f".join(map(str, parts)).encode())

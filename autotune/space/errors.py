"""One kind of mistake in a space or a configuration, and how it is put into words."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from itertools import takewhile
from typing import Any, Final

Path = tuple[str | int, ...]


class _Missing:
    def __repr__(self) -> str:
        return "nothing"

    def __reduce__(self) -> str:
        return "MISSING"


MISSING: Final = _Missing()
"""Stands for a value that should be there and is not."""


class SpaceError(Exception):
    """A space or a configuration is wrong at one place.

    Args:
        key: the place, dotted (``optimizer.learning_rate``) or as a path of keys.
        value: what stands there; `MISSING` if nothing does.
        expected: what should stand there, for people: "a number above 0".
        nearest: what was probably meant.
        problem: what is wrong, if "got VALUE" does not say it.
    """

    def __init__(
        self,
        key: str | Path,
        value: Any,
        expected: str,
        nearest: str | None = None,
        problem: str | None = None,
    ) -> None:
        self.path: Path = (key,) if isinstance(key, str) and key else tuple(key)
        self.value = value
        self.expected = expected
        self.nearest = nearest
        self.problem = problem
        super().__init__(key, value, expected, nearest, problem)

    @property
    def key(self) -> str:
        """The dotted place."""
        return dotted(self.path)

    @property
    def explanation(self) -> str:
        """The message without the place."""
        if self.problem is not None:
            text = self.problem
        elif self.value is MISSING:
            text = "is missing"
        else:
            text = f"got {shown(self.value)}"
        if self.expected:
            text += f", expected {self.expected}"
        return text + (f" (did you mean {self.nearest!r}?)" if self.nearest else "")

    def under(self, *prefix: str | int) -> SpaceError:
        """The same mistake seen from further out."""
        return SpaceError(
            (*prefix, *self.path), self.value, self.expected, self.nearest, self.problem
        )

    def __str__(self) -> str:
        return f"{self.key}: {self.explanation}" if self.path else self.explanation


def dotted(path: Iterable[str | int]) -> str:
    """``("first", 0, "batch_size")`` as ``first[0].batch_size``."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{part}" if text else part
    return text


def shown(value: Any) -> str:
    """A value in a message, on one line and not longer than people read."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def listed(names: Iterable[Any]) -> str:
    """Names in a message."""
    every = [str(name) for name in names]
    return ", ".join(every[:20]) + (f", ... ({len(every)} in all)" if len(every) > 20 else "")


def nearest(name: Any, names: Iterable[Any]) -> str | None:
    """The name that was probably meant, if any is close; of equally close ones that with the
    longest common beginning, since few mistype a word's first letters."""
    wanted = str(name)
    close = difflib.get_close_matches(wanted, [str(n) for n in names], n=5, cutoff=0.6)

    def closeness(candidate: str) -> tuple[float, int]:
        ratio = difflib.SequenceMatcher(None, candidate, wanted).ratio()
        alike = (one == other for one, other in zip(candidate, wanted, strict=False))
        return ratio, sum(takewhile(bool, alike))

    return max(close, key=closeness, default=None)


def unknown(path: Path, name: Any, names: Iterable[Any], what: str) -> SpaceError:
    """`name` (a `what`, such as "key") is none of `names`."""
    known = list(names)
    expected = f"one of {listed(known)}" if known else f"no {what} here"
    return SpaceError(
        path, name, expected, nearest(name, known), problem=f"unknown {what} {shown(name)}"
    )

"""Study files: YAML to a checked `StudyFile`, and every mistake to one message with its line.

Nothing in a file can run code: YAML is read without tags, the task's address is checked for its
form and never imported. Plugin names, overrides and hyperparameters are checked against the
installed plugins, which are imported for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from autotune.space import SpaceError
from autotune.space.errors import nearest
from autotune.space.yaml_text import Document, YamlError, parse
from autotune.study_file.models import json_schema
from autotune.study_file.plugin_checks import check_against_plugins
from autotune.study_file.reading import StudyFile, read

__all__ = ["Problem", "StudyFile", "StudyFileError", "json_schema", "load"]


@dataclass(frozen=True)
class Problem:
    """One mistake in a file. `line` counts from 1; None if no line is at fault."""

    path: str
    line: int | None
    text: str

    def __str__(self) -> str:
        where = self.path if self.line is None else f"{self.path}:{self.line}"
        text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in self.text)
        return f"{where}: {text}"


class StudyFileError(Exception):
    """A study file is wrong; `problems` lists every mistake found, by line."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__(problems)
        self.problems = tuple(sorted(problems, key=lambda problem: problem.line or 0))

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)


def load(path: str | Path) -> StudyFile:
    """Read and check a study file; its task is not imported.

    Raises:
        StudyFileError: with every mistake of the first stage that finds any (YAML, keys and
            values, then what depends on plugins).
    """
    given, path = str(path), Path(path)
    try:
        document = parse(_text(given, path))
    except YamlError as error:
        raise StudyFileError([Problem(given, error.line, error.message)]) from None
    problems: list[SpaceError] = []
    try:
        described = read(document.value, path, problems)
        if described is not None and not problems:
            check_against_plugins(described, problems)
    except SpaceError as error:
        problems.append(error)
    if described is None or problems:
        raise StudyFileError([_located(given, document, problem) for problem in problems])
    return described


def _located(path: str, document: Document, problem: SpaceError) -> Problem:
    return Problem(path, document.line(problem.path), str(problem))


def _text(given: str, path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        words = "there is no such file"
        if path.parent.is_dir():
            close = nearest(path.name, (other.name for other in path.parent.iterdir()))
            words += f" (did you mean {str(path.parent / close)!r}?)" if close else ""
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        words = f"byte {error.start} is not UTF-8, expected a text file in UTF-8"
        raise StudyFileError([Problem(given, line, words)]) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        words = f"cannot be read ({reason}), expected a YAML file"
    raise StudyFileError([Problem(given, None, words)])

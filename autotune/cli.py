"""The command line. A user's mistake is one clear message on standard error and exit code 2."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from autotune import commands

MISTAKE = 2
"""Exit code of whatever is the user's to mend. Others: 0 all is well, 1 nothing was trained,
128 + N ended by signal N."""

_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    Args:
        argv: the arguments, by default the process's own.
    """
    parser = _parser()
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as stop:
        # argparse ends the process after --help and after its message about a mistake.
        return int(stop.code or 0)
    try:
        code: int = arguments.command(arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt as stop:
        print(f"autotune: {stop}" if str(stop) else "autotune: stopped", file=sys.stderr)
        number = getattr(stop, "number", None)
        return _INTERRUPTED if number is None else 128 + int(number)
    except BrokenPipeError:
        # Whoever read our output has seen enough (`autotune best | head`).
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        code = _code_of(error)
        print(f"autotune: {error}", file=sys.stderr)
        return code


def _code_of(error: Exception) -> int:
    """The exit code for an error that says what the user can do; raises any other again."""
    from autotune.execute.store import StoreError
    from autotune.header import StudyError
    from autotune.plugins import PluginError
    from autotune.record import RecordError
    from autotune.space import SpaceError
    from autotune.study import NothingWorks
    from autotune.study_file import StudyFileError
    from autotune.train.task import TaskError

    if isinstance(error, NothingWorks):
        return commands.NOTHING_TRAINED
    known = (
        *(StudyError, StudyFileError, SpaceError, TaskError, PluginError, RecordError, StoreError),
        OSError,
    )
    if not isinstance(error, known):
        raise error
    return MISTAKE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="autotune",
        description="Finds the best way to train or adapt a PyTorch model.",
        epilog="autotune COMMAND --help says more of each.",
    )
    add = parser.add_subparsers(metavar="COMMAND", required=True).add_parser
    commands.register(add)
    validate = add("validate", help="check a study file without its task")
    validate.add_argument("file", type=Path, help="the study file (YAML)")
    validate.set_defaults(command=_validate)
    schema = add("schema", help="print the JSON Schema of study files, for editors")
    schema.set_defaults(command=_schema)
    return parser


def _validate(arguments: argparse.Namespace) -> int:
    # Here and below: each command imports what it needs, so that the others start fast.
    from autotune.study_file import StudyFileError, load

    try:
        study = load(arguments.file)
    except StudyFileError as error:
        print(error, file=sys.stderr)
        return MISTAKE
    print(f"{arguments.file}: valid; study {study.name!r} of task {study.task}")
    return 0


def _schema(arguments: argparse.Namespace) -> int:
    from autotune.study_file import json_schema

    print(json.dumps(json_schema(), indent=2))
    return 0

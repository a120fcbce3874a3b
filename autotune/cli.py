"""The command line. A user's mistake is one clear message on standard error and exit code 2."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

MISTAKE = 2
"""Exit code of whatever is the user's to mend."""


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
    code: int = arguments.command(arguments)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="autotune",
        description="Finds the best way to train or adapt a PyTorch model.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    validate = commands.add_parser("validate", help="check a study file without its task")
    validate.add_argument("file", type=Path, help="the study file (YAML)")
    validate.set_defaults(command=_validate)
    schema = commands.add_parser("schema", help="print the JSON Schema of study files, for editors")
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

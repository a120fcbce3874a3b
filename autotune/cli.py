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
    from autotune.study_file import StudyFileError
    from autotune.task_faults import NothingWorks
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
    _register_plugins(add("plugins", help="list, show and check the installed plugins"))
    return parser


def _register_plugins(parser: argparse.ArgumentParser) -> None:
    add = parser.add_subparsers(metavar="COMMAND", required=True).add_parser
    listing = add("list", help="all installed plugins, broken ones with the cause")
    listing.add_argument("--kind", help="of this kind only, e.g. optimizer")
    listing.add_argument("--json", action="store_true", help="for machines")
    listing.set_defaults(command=_list_plugins)
    show = add("show", help="what a plugin is, its hyperparameters, where it comes from")
    show.add_argument("name", help="NAME, KIND:NAME or DISTRIBUTION:NAME")
    show.set_defaults(command=_show_plugin)
    check = add("check", help="hold plugins against their contract; exit code 1 if one fails")
    check.add_argument("name", nargs="?", help="NAME, KIND:NAME or DISTRIBUTION:NAME; else all")
    check.set_defaults(command=_check_plugins)


def _validate(arguments: argparse.Namespace) -> int:
    # Here and below: each command imports what it needs, so that the others start fast.
    from autotune.asked import as_final
    from autotune.decide.automatic import chosen_policy
    from autotune.plugins.discovery import Catalogue
    from autotune.plugins.search import AUTO
    from autotune.study_file import StudyFileError, load

    try:
        study = load(arguments.file)
    except StudyFileError as error:
        print(error, file=sys.stderr)
        return MISTAKE
    print(f"{arguments.file}: valid; study {study.name!r} of task {study.task}")
    if study.search["policy"]["name"] == AUTO:
        resolved = study.space.resolve(Catalogue())
        name, why = chosen_policy(
            resolved, study.objectives, study.horizon, study.budget, as_final(study.final)
        )
        print(f"policy {name}: {why}")
    return 0


def _schema(arguments: argparse.Namespace) -> int:
    from autotune.study_file import json_schema

    print(json.dumps(json_schema(), indent=2))
    return 0


def _list_plugins(arguments: argparse.Namespace) -> int:
    from autotune.report.plugin_listing import list_plugins

    print(list_plugins(arguments.kind, as_json=arguments.json))
    return 0


def _show_plugin(arguments: argparse.Namespace) -> int:
    from autotune.report.plugin_listing import show_plugin

    print(show_plugin(arguments.name))
    return 0


def _check_plugins(arguments: argparse.Namespace) -> int:
    from autotune.report.plugin_listing import check_plugins

    return 0 if check_plugins(arguments.name, lambda line: print(line, flush=True)) else 1

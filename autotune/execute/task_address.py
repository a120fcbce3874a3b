"""Importing the task that a study names: ``package.module:object`` or ``/path/file.py:object``.

A study file may name only what was made to be tuned: a `Task`, a `Trainable`, or a function
marked ``@autotune.task`` (`autotune.train.as_task`). Anything else is refused, so that a file
from elsewhere cannot call ``os:abort`` by naming it. Importing runs the module, as any import
does.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from autotune.train import Task, TaskError, as_task

_FORM = re.compile(r"(?P<module>.+):(?P<object>[^\W\d]\w*(\.[^\W\d]\w*)*)")


def split_address(address: str) -> tuple[str, str]:
    """(module name or file path, object) of an address. Raises `TaskError` if it is none."""
    match = _FORM.fullmatch(address)
    if match is None:
        raise TaskError(
            f"task {address!r}: expected 'package.module:object' or 'path/to/file.py:object'"
        )
    return match["module"], match["object"]


def load_task(address: str, *, folder: Path | None = None) -> Task:
    """The task at an address.

    Args:
        address: as above.
        folder: what a relative file path is relative to (None: the working directory).

    Raises:
        TaskError: there is no such module, file or object, importing it failed (the cause is
            chained), or it is nothing that may be tuned.
    """
    place, name = split_address(address)
    found: Any = module_of(address, folder=folder)
    for part in name.split("."):
        if not hasattr(found, part):
            near = difflib.get_close_matches(part, [n for n in dir(found) if n[0] != "_"], 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise TaskError(f"task {address!r}: {place} has no {name!r}{hint}")
        found = getattr(found, part)
    try:
        return as_task(found)
    except TaskError as error:
        raise TaskError(f"task {address!r}: {error}") from error.__cause__
    except (Exception, SystemExit) as error:
        raise TaskError(f"task {address!r}: making it failed: {_say(error)}") from error


def module_of(address: str, *, folder: Path | None = None) -> ModuleType:
    """The module that an address names, imported. Raises as `load_task`."""
    place, _ = split_address(address)
    if place.endswith(".py"):
        return _import_file(address, (folder or Path.cwd()) / place)
    return _import_module(address, place)


def _import_module(address: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # its own missing dependency is another mistake than a wrong name
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise TaskError(f"task {address!r}: there is no module {error.name!r}") from error
        raise TaskError(f"task {address!r}: importing {name} failed: {_say(error)}") from error
    except (Exception, SystemExit) as error:
        raise TaskError(f"task {address!r}: importing {name} failed: {_say(error)}") from error


def _import_file(address: str, path: Path) -> ModuleType:
    """Import a file under a name that depends only on where it lies, so that what it defines
    has the same name in every process. Its folder stays importable, as for ``python FILE``."""
    path = path.resolve()
    if not path.is_file():
        raise TaskError(f"task {address!r}: there is no file {path}")
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:8]
    stem = re.sub(r"\W", "_", path.stem)
    name = f"autotune_task_{stem}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    folder = str(path.parent)
    if folder not in sys.path:
        # last, so that a file beside the task cannot hide an installed package
        sys.path.append(folder)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise TaskError(f"task {address!r}: importing {path} failed: {_say(error)}") from error
    return module


def _say(error: BaseException) -> str:
    where = ""
    if isinstance(error, SyntaxError) and error.lineno:
        where = f" (line {error.lineno})"
    return f"{type(error).__name__}: {error}{where}"

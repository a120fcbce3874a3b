"""One other process, in which what this process froze is thawed and carried on."""

from __future__ import annotations

import pickle
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import cloudpickle
import torch

from autotune.plugins.conformance.comparing import process_kept

SECONDS = 300

_START = (
    "import sys; sys.path[:] = sys.argv[2:]; "
    "from autotune.plugins.conformance.errands import main; main(sys.argv[1])"
)


class Errand(Protocol):
    """What the other process is to do."""

    def perform(self, folder: Path) -> str | None:
        """Do it there, after another trial; says what differs from this process, or None."""


def run(errands: Sequence[Errand]) -> list[str | None]:
    """Do all errands in one new process.

    Returns:
        For each what is wrong, for people, or None.
    """
    if not errands:
        return []
    orders = {
        "threads": torch.get_num_threads(),
        "errands": [cloudpickle.dumps(errand) for errand in errands],
    }
    with tempfile.TemporaryDirectory() as scratch:
        answer = Path(scratch, "answer")
        try:
            subprocess.run(
                [sys.executable, "-c", _START, answer, *sys.path],
                input=pickle.dumps(orders),
                check=True,
                capture_output=True,
                timeout=SECONDS,
            )
        except subprocess.CalledProcessError as error:
            said = error.stderr.decode(errors="replace").strip().splitlines() or ["nothing"]
            wrong = f"the process it was carried over to died, saying: {said[-1]}"
        except subprocess.TimeoutExpired:
            wrong = f"the process it was carried over to took more than {SECONDS} s"
        else:
            found: list[str | None] = torch.load(answer, weights_only=True)
            return found
    if len(errands) == 1:
        return [wrong]
    # One of them took the process down; alone, the others show that it was not they.
    return [run([errand])[0] for errand in errands]


def main(answer: str) -> None:
    """In the other process: do what standard input says, write what is wrong with each."""
    orders = pickle.load(sys.stdin.buffer)
    torch.set_num_threads(orders["threads"])
    with tempfile.TemporaryDirectory() as folder:
        found = [carry_out(sent, Path(folder)) for sent in orders["errands"]]
    torch.save(found, answer)


def carry_out(sent: bytes, folder: Path) -> str | None:
    """In the other process: do the errand that was sent. Never raises."""
    try:
        errand: Errand = pickle.loads(sent)
        with process_kept():
            where = errand.perform(folder)
    except (Exception, SystemExit) as error:
        return f"carried over to another process it raised {type(error).__name__}: {error}"
    if where is None:
        return None
    return (
        "thawed in a process that has just run another trial, it ends differently from the "
        f"uninterrupted run ({where})"
    )

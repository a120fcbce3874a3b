"""The commands of examples/ray_cluster, as a user copies them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from autotune.record import read

ROOT = Path(__file__).parents[2]
README = (ROOT / "examples" / "ray_cluster" / "README.md").read_text(encoding="utf-8")

pytestmark = pytest.mark.timeout(300)


def commands() -> list[str]:
    (block,) = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    return block.strip().splitlines()


@pytest.fixture
def ray_folder(tmp_path: Path) -> Iterator[Path]:
    """Whatever mentions this folder is killed in the end: `ray stop` would stop every cluster of
    the machine."""
    folder = Path("/tmp") / f"ray_{tmp_path.name[-8:]}_{os.getpid()}"
    yield folder
    for process in psutil.process_iter():
        try:
            if str(folder) in " ".join(process.cmdline()):
                os.kill(process.pid, signal.SIGKILL)
        except (psutil.Error, ProcessLookupError):
            continue


def test_a_study_on_two_nodes(tmp_path: Path, ray_folder: Path) -> None:
    assert commands()[-1] == "ray stop"
    binaries = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}"}
    studies = tmp_path / "studies"
    script = "\n".join(["set -e", *commands()[:-1]])
    script = script.replace("--head", f"--head --temp-dir={ray_folder}")
    script = script.replace("autotune run", f"autotune run --folder {studies} --quiet")
    script = script.replace("autotune status", f"autotune status --folder {studies}")
    output = tmp_path / "output.txt"  # not a pipe, which the nodes would hold open
    with output.open("w") as stream:
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=ROOT,
            env=environment,
            stdout=stream,
            stderr=subprocess.STDOUT,
            timeout=280,
        )
    text = output.read_text()
    assert done.returncode == 0, text
    assert "digits_on_a_cluster" in text
    events, _ = read(studies / "digits_on_a_cluster")
    observed = [event for event in events if type(event).__name__ == "Observed"]
    assert len(observed) == 40
    logs = {path.name for path in (studies / "digits_on_a_cluster").rglob("*") if path.is_file()}
    assert logs

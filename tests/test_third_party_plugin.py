"""A stranger's plugin package: built, installed beside autotune, checked, and tuned with through
the command line, without an edit of ours."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "third_party_plugin"
SECONDS = 300

STUDY = f"""
name: yogi
task: {ROOT}/examples/digits.py:from_scratch
space:
  architecture:
    width: {{type: integer, low: 4, high: 8, default: 4}}
    depth: 1
    dropout: 0.1
  optimizer: {{plugins: optimizer, include: [yogi]}}
  schedule: {{plugins: schedule, include: [constant]}}
  adapter: {{plugins: adapter, include: [full]}}
objectives: [validation_loss]
budget: {{epochs: 4}}
horizon: 2
search: {{policy: random_search, proposer: random}}
executor: {{name: local, workers: 1}}
"""


class Installed:
    """The package in a folder of its own, as ``pip install --target`` leaves it there."""

    def __init__(self, work: Path) -> None:
        self.work = work
        # A copy, so that building leaves nothing in our tree.
        self.source = work / "source"
        shutil.copytree(
            EXAMPLE,
            self.source,
            ignore=shutil.ignore_patterns("__pycache__", "build", "*.egg-info"),
        )
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
        subprocess.run(
            [*command, "--no-build-isolation", "--target", work / "site", self.source],
            check=True,
            timeout=SECONDS,
        )
        path = [str(work / "site"), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.environ = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}

    def run(self, *command: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", *map(str, command)],
            cwd=self.work,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("third_party"))


def test_is_listed_with_its_origin(installed: Installed) -> None:
    out = installed.run("autotune", "plugins", "list", "--json", "--kind", "optimizer")
    assert out.returncode == 0, out.stderr
    (yogi,) = [entry for entry in json.loads(out.stdout) if entry["name"] == "yogi"]
    assert (yogi["distribution"], yogi["version"]) == ("autotune-yogi", "0.1.0")
    assert yogi["status"] == "ok"
    assert yogi["class"] == "autotune_yogi.plugin:Yogi"


def test_its_own_tests_pass(installed: Installed) -> None:
    out = installed.run("pytest", "-q", "-p", "no:cacheprovider", installed.source / "tests")
    assert out.returncode == 0, out.stdout + out.stderr
    assert "3 passed" in out.stdout


def test_a_study_tunes_with_it(installed: Installed) -> None:
    (installed.work / "study.yaml").write_text(STUDY)
    out = installed.run("autotune", "run", "study.yaml", "--folder", "studies", "--quiet")
    assert out.returncode == 0, out.stdout + out.stderr
    best = installed.run("autotune", "best", "--folder", "studies", "--json")
    assert best.returncode == 0, best.stderr
    configuration = json.loads(best.stdout)["configuration"]
    assert configuration["optimizer"]["name"] == "yogi"
    assert 1e-5 <= configuration["optimizer"]["learning_rate"] <= 1e-1


def test_without_it_a_study_that_names_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(STUDY)
    out = subprocess.run(
        [sys.executable, "-m", "autotune", "validate", "study.yaml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert out.returncode == 2
    assert "yogi" in out.stderr
    assert "Traceback" not in out.stderr

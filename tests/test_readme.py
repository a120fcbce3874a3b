"""The README's commands and code are what runs: every block is taken from the file and used."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[str]:
    """The lines about a study file and what follows from it, without their comments."""
    (block,) = (block for block in blocks("sh") if "autotune validate" in block)
    return [line.split("#")[0].strip() for line in block.strip().splitlines()]


def test_the_first_two_blocks_are_the_set_up() -> None:
    assert blocks("sh")[:2] == [
        "pip install . && autotune run search_spaces/digits.yaml\n",
        'pip install ".[test]" && pytest\n',
    ]


def test_the_python_example_is_the_file() -> None:
    assert blocks("python") == [(ROOT / "examples" / "tune_user_model.py").read_text()]


def test_the_yaml_example_is_the_file() -> None:
    assert blocks("yaml") == [(ROOT / "search_spaces" / "digits.yaml").read_text()]


def test_the_entry_point_is_the_third_party_package_s() -> None:
    (block,) = blocks("toml")
    assert block in (ROOT / "examples" / "third_party_plugin" / "pyproject.toml").read_text()


def test_nothing_is_left_to_fill_in() -> None:
    assert not re.search(r"@[A-Z_]+@", README)


def test_files_that_are_linked_exist() -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / link).exists(), link


@pytest.mark.parametrize("example", ["tune_user_model.py", "own_loop.py"])
def test_examples_run_as_they_are(example: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / example)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    assert "best configuration: {" in done.stdout
    assert (tmp_path / "autotune_studies" / example[:-3] / "record.sqlite").exists()


def test_the_commands_run_as_written(tmp_path: Path) -> None:
    """In a copy of the two folders that they name; the search itself with a smaller budget (its
    own is what the README's first command spends)."""
    for folder in ("search_spaces", "examples"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    for command in commands():
        if command.startswith("autotune run"):
            command += " --budget epochs=30 evaluations=6"
        done = subprocess.run(
            f"{Path(sys.executable).parent}/{command}",
            shell=True,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=280,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
    study = tmp_path / "autotune_studies" / "digits"
    assert (study / "report.html").stat().st_size > 1_000_000
    assert (study / "export" / "train.py").exists()
    schema = (tmp_path / "search_spaces" / "autotune.schema.json").read_text()
    assert schema == (ROOT / "search_spaces" / "autotune.schema.json").read_text()


@pytest.mark.parametrize("command", ["plugins list", "plugins show adamw", "plugins check lora"])
def test_the_plugin_commands_run(command: str) -> None:
    assert any(f"autotune {command}\n" in block for block in blocks("sh"))
    done = subprocess.run(
        [sys.executable, "-m", "autotune", *command.split()],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    assert "adamw" in done.stdout or "lora" in done.stdout


@pytest.mark.parametrize("name", ["digits", "digits_from_scratch", "characters", "one_slot"])
def test_search_spaces_run(name: str, tmp_path: Path) -> None:
    file = ROOT / "search_spaces" / f"{name}.yaml"
    command = [sys.executable, "-m", "autotune", "run", str(file), "--folder", str(tmp_path)]
    done = subprocess.run(
        [*command, "--budget", "epochs=4", "evaluations=2", "--quiet"],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / name / "report.html").exists()

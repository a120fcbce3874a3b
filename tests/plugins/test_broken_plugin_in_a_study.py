"""A broken plugin on the machine: studies that do not name it never notice."""

from __future__ import annotations

from pathlib import Path

import pytest
from installed_plugins import HEALTHY, Install

from autotune.cli import main
from autotune.plugins import discovery
from autotune.space import Plugins, Space, SpaceError

STUDY = """
name: broken
task: task.py:task
space:
  optimizer: {optimizer}
objectives: [validation_loss]
budget: {{epochs: 4}}
horizon: 2
"""


def validate(folder: Path, optimizer: str) -> int:
    (folder / "task.py").write_text("raise RuntimeError('never imported')")
    (folder / "study.yaml").write_text(STUDY.format(optimizer=optimizer))
    return main(["validate", str(folder / "study.yaml")])


def test_only_a_study_that_names_it_is_refused(
    tmp_path: Path, install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install("autotune-bad", {"bad": "raise OSError('gone')"})
    assert validate(tmp_path, "{plugins: optimizer}") == 0
    assert validate(tmp_path, "{plugins: optimizer, exclude: [sgd]}") == 0
    capsys.readouterr()
    assert validate(tmp_path, "{plugins: optimizer, include: [bad]}") == 2
    message = capsys.readouterr().err
    assert "OSError: gone" in message
    assert "autotune-bad" in message
    assert "Traceback" not in message
    assert len(message.strip().splitlines()) == 1


def test_all_plugins_of_a_kind_means_all_that_work(install: Install) -> None:
    install("autotune-mixed", {"bad": "raise OSError('gone')", "good": HEALTHY.format(name="good")})
    catalogue = discovery.Catalogue()
    space = Space({"optimizer": Plugins("optimizer")}).resolve(catalogue)
    options = space.to_plain()["parameters"]["optimizer"]["options"]
    assert {"good", "adamw"} <= options.keys()
    assert "bad" not in options
    with pytest.raises(SpaceError, match="gone"):
        Space({"optimizer": Plugins("optimizer", include=("bad",))}).resolve(catalogue)


def test_a_colliding_name_is_chosen_by_its_qualified_name(tmp_path: Path, install: Install) -> None:
    install("autotune-rival", {"adamw": HEALTHY.format(name="adamw")})
    assert validate(tmp_path, '{plugins: optimizer, include: ["autotune-rival:adamw"]}') == 0

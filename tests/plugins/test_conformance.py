"""The conformance check passes what is sound and catches what is not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import faulty_plugins
import pytest
import torch
from torch import nn

from autotune.plugins import CheckFailure, PluginError, check, discovery
from autotune.plugins.conformance import (
    CheckReport,
    check_all,
    laboratory,
    named,
    trajectories,
)


@pytest.fixture(scope="module")
def reports() -> dict[str, CheckReport]:
    """All faulty plugins checked together."""
    plugins = [plugin for plugin, _, _ in faulty_plugins.FAULTY]
    return {report.name: report for report in check_all(plugins)}


@pytest.mark.parametrize(
    ("plugin", "title", "message"),
    faulty_plugins.FAULTY,
    ids=[plugin.__name__ for plugin, _, _ in faulty_plugins.FAULTY],
)
def test_catches(reports: dict[str, CheckReport], plugin: type, title: str, message: str) -> None:
    report = reports[plugin.name]
    assert not report.ok
    assert message in report.failures[title], report.failures


def test_puts_back_what_a_plugin_broke(reports: dict[str, CheckReport]) -> None:
    assert not reports["patchesthelibrary"].ok
    assert nn.BatchNorm2d.forward is faulty_plugins.HONEST_FORWARD
    assert not reports["changesthedefaulttype"].ok
    assert torch.get_default_dtype() is torch.float32


SOUND = [
    faulty_plugins.DescentPlugin,
    faulty_plugins.ShiftPlugin,
    faulty_plugins.CentrePlugin,
    faulty_plugins.OneByOne,
]


def test_what_the_faulty_ones_are_made_of_is_sound() -> None:
    """So that each is caught for its own fault, and for nothing else."""
    plugins = []
    for plugin in SOUND:
        words = {"name": plugin.__name__.lower(), "summary": "sound", "reference": ""}
        plugins.append(type(plugin.__name__, (plugin,), words))
    for report in check_all(plugins):
        assert report.ok, (report.name, report.failures)


def test_the_message_lists_all_that_is_wrong() -> None:
    with pytest.raises(CheckFailure) as caught:
        check(faulty_plugins.LooksAtTheClock)
    message = str(caught.value)
    assert "schedule 'looksattheclock' breaks its contract in" in message
    assert "- reproducible: it looks at the clock" in message
    assert caught.value.report.failures


def test_takes_the_name_of_an_installed_plugin() -> None:
    assert named("adamw") is discovery.get("optimizer", "adamw")
    assert named("autotune-torch:adamw") is named("optimizer:adamw") is named("adamw")
    with pytest.raises(PluginError, match="there is no plugin 'adamv' of any kind"):
        named("adamv")
    report = check("adamw")
    assert report.ok
    assert {"rate", "descent", "thawed in another process it goes on alike"} <= set(report.passed)


def test_is_carried_over_in_the_middle_of_accumulating_gradients(tmp_path: Path) -> None:
    plugin, bench = laboratory.PlainDescent, laboratory.BENCHES[0]
    run = trajectories.opened(plugin, bench, laboratory.trial(plugin, {}, bench), 1, tmp_path)
    points = list(trajectories.follow(run))
    assert points[trajectories.HALFWAY - 1].state["gradients"]
    assert any(not point.state["gradients"] for point in points)


# Set by the first process that imports this file, and inherited by the ones it starts.
HOME = os.environ.setdefault("AUTOTUNE_TEST_HOME", str(os.getpid()))


class TakesTheProcessDown(faulty_plugins.CentrePlugin):
    name, summary, reference = "fatal", "ends the process, but not this one", ""

    def predict(self, inputs: torch.Tensor) -> torch.Tensor:
        if str(os.getpid()) != HOME:
            os._exit(7)
        return super().predict(inputs)


def test_a_plugin_that_kills_the_other_process_is_the_only_one_to_blame() -> None:
    centre = type("Centre", (faulty_plugins.CentrePlugin,), {"name": "centre", "summary": "sound"})
    centre.reference = ""
    fatal, sound = check_all([TakesTheProcessDown, centre])
    assert "the process it was carried over to died" in fatal.failures[faulty_plugins.ELSEWHERE]
    assert sound.ok, sound.failures


def test_a_class_of_the_main_script_can_be_checked(tmp_path: Path) -> None:
    """As in a notebook: the other process cannot import it."""
    script = tmp_path / "script.py"
    script.write_text(
        "import torch\n"
        "from autotune.plugins import Optimizer, check\n"
        "class Mine(Optimizer):\n"
        "    name, summary, reference = 'mine', 'plain descent', ''\n"
        "    def build(self, named_parameters):\n"
        "        return torch.optim.SGD([p for _, p in named_parameters], lr=0.1)\n"
        "print(check(Mine).ok)\n"
    )
    out = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=120, check=True
    )
    assert out.stdout.strip() == "True"

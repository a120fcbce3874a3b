"""`tune` works wherever Python runs: a script without a main guard, with closures and lambdas,
a notebook-like session, standard input; and a loaded model is the one that was recorded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

import autotune
from autotune.space import Float, Integer, Plugins, Space

HEAD = """
import torch
from torch import nn
from torch.nn import functional
import autotune
from autotune.space import Float, Integer, Plugins, Space

generator = torch.Generator().manual_seed(0)
inputs = torch.randn(240, 6, generator=generator)
targets = (inputs[:, 0] + 0.5 * inputs[:, 1] > 0).long()
"""

DATA = """
data = autotune.Data(
    train=(inputs[:120], targets[:120]),
    validation=(inputs[120:180], targets[120:180]),
    test=(inputs[180:], targets[180:]),
)
"""

TUNE = """
result = autotune.tune(
    task,
    Space({
        "architecture": {"width": Integer(2, 8, default=4)},
        "batch_size": 32,
        "optimizer": Plugins("optimizer", include=("sgd", "adamw")),
        "schedule": Plugins("schedule", include=("constant",)),
        "adapter": Plugins("adapter", include=("full",)),
    }),
    objectives=["validation_loss", "parameters"],
    budget={"epochs": 6},
    horizon=3,
    search={"policy": "asha", "proposer": "random"},
    workers=1,
    progress=False,
)
model = result.best.load_model()
with torch.inference_mode():
    accuracy = (model(inputs[120:180]).argmax(1) == targets[120:180]).float().mean().item()
print("accuracy", abs(accuracy - result.best.metrics["validation_accuracy"]) < 1e-6)
print("units", result.trials.units, "test", sorted(result.test))
"""

SCRIPT = f"""{HEAD}{DATA}

class Network(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.hidden, self.out = nn.Linear(6, width), nn.Linear(width, 2)

    def forward(self, x):
        return self.out(functional.relu(self.hidden(x)))


def build(architecture):
    return Network(architecture["width"])


print("once")  # a worker that imported the script would print it too
task = autotune.TorchTask(model=build, data=data, loss=functional.cross_entropy)
{TUNE}"""

CLOSURE = f"""{HEAD}{DATA}

def make():
    classes = 2

    def build(architecture):
        width = architecture["width"]
        return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, classes))

    return autotune.TorchTask(
        model=build,
        data=data,
        loss=lambda logits, targets: functional.cross_entropy(logits, targets),
        metrics={{"largest": lambda logits, targets: logits.abs().max().item()}},
    )


print("once")
task = make()
{TUNE}"""


def check(output: str) -> None:
    assert output.count("once") == 1
    assert "accuracy True" in output
    assert "units 6" in output
    assert "test_accuracy" in output


def run(command: list[str], folder: Path, text: str | None = None) -> str:
    ended = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        input=text,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.parametrize("source", [SCRIPT, CLOSURE], ids=["functions", "closures"])
def test_a_plain_script_without_a_main_guard(tmp_path: Path, source: str) -> None:
    (tmp_path / "script.py").write_text(source)
    check(run(["script.py"], tmp_path))
    assert (tmp_path / "autotune_studies" / "study" / "record.sqlite").exists()


def test_standard_input(tmp_path: Path) -> None:
    check(run(["-"], tmp_path, SCRIPT))


NOTEBOOK = """
import sys

def cell(source, session={"__name__": "__main__"}):
    # As a notebook's kernel does: compiled from no file, run in one growing namespace.
    exec(compile(source, f"<ipython-input-{len(session)}>", "exec"), session)

for source in open("cells.txt").read().split("# cell\\n"):
    cell(source)
"""


def test_a_notebook_like_session(tmp_path: Path) -> None:
    cells = SCRIPT.replace("\nclass Network", "\n# cell\nclass Network").replace(
        "\ntask =", "\n# cell\ntask ="
    )
    assert cells.count("# cell") == 2
    (tmp_path / "cells.txt").write_text(cells)
    check(run(["-c", NOTEBOOK], tmp_path))


INTERRUPTED = TUNE.replace("\n", "\n    ").replace(
    "progress=False", "progress=False, listeners=[stop]"
)

RESUMED = f"""{HEAD}{DATA}
import os, signal, sys
task = autotune.TorchTask(
    model=lambda architecture: nn.Linear(6, 2), data=data, loss=functional.cross_entropy
)
print("once")

def stop(trials, event):
    if trials.units == 2 and type(event).__name__ == "Observed":
        os.kill(os.getpid(), signal.SIGINT)

try:
{INTERRUPTED}
except KeyboardInterrupt as error:
    print("stopped:", error)
result = autotune.resume("study", task=task, progress=False)
print("units", result.trials.units)
"""


def test_a_closure_is_resumed_from_python_and_the_command_line_says_so(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(RESUMED)
    output = run(["script.py"], tmp_path)
    assert "autotune.resume(" in output
    assert "units 6" in output
    (tmp_path / "cut.py").write_text(RESUMED.partition("result = autotune.resume")[0])
    run(["cut.py"], tmp_path)
    ended = subprocess.run(
        [sys.executable, "-m", "autotune", "resume"], cwd=tmp_path, capture_output=True, text=True
    )
    assert ended.returncode == 2
    assert "autotune.resume('autotune_studies/study-2', task=task)" in ended.stderr
    assert "Traceback" not in ended.stderr
    status = run(["-m", "autotune", "status"], tmp_path)
    assert "autotune.resume('autotune_studies/study-2', task=task)" in status


class Convolutions(nn.Module):
    """Batch norm and dropout: evaluation mode and buffers have to be right."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(0.3), nn.Flatten()
        )
        self.classifier = nn.Linear(width * 16, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(self.features(images))
        return logits


def pretrained(architecture: dict[str, int]) -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    weights = Convolutions(**architecture).state_dict()
    return {name: value for name, value in weights.items() if not name.startswith("classifier")}


def test_the_accuracy_of_every_loaded_model_is_the_recorded_one(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(300, 1, 6, 6, generator=generator)
    targets = (images.mean((1, 2, 3)) * 9).round().long().clamp(-1, 1) + 1

    def part(first: int, last: int) -> tuple[torch.Tensor, torch.Tensor]:
        return images[first:last], targets[first:last]

    task = autotune.TorchTask(
        model=lambda architecture: Convolutions(**architecture),
        data=autotune.Data(train=part(0, 160), validation=part(160, 230), test=part(230, 300)),
        loss=functional.cross_entropy,
        pretrained=pretrained,
        head=("classifier",),
    )
    space = Space(
        {
            "architecture": {"width": Integer(2, 4, default=3)},
            "batch_size": 32,
            "weight_average_decay": 0.9,
            "optimizer": Plugins("optimizer"),
            "schedule": Plugins("schedule"),
            "adapter": Plugins("adapter"),
            "extra": Float(0.0, 1.0, default=0.5),
        }
    )
    result = autotune.tune(
        task,
        space,
        ["validation_loss", "trainable_parameters"],
        {"epochs": 24},
        horizon=4,
        folder=tmp_path,
        search={"policy": "random_search", "proposer": "sobol"},
        progress=False,
    )
    adapters = {point.configuration["adapter"]["name"] for point in result.points}
    assert len(adapters) >= 3, adapters
    before = torch.get_rng_state()
    for point in result.points:
        model = point.load_model()
        with torch.inference_mode():
            guessed = model(images[160:230]).argmax(1)
        accuracy = (guessed == targets[160:230]).float().mean().item()
        assert accuracy == pytest.approx(point.metrics["validation_accuracy"], abs=1e-6)
    assert torch.equal(torch.get_rng_state(), before)
    best, test = result.best, result.test
    assert best is not None
    assert test is not None
    with torch.inference_mode():
        guessed = best.load_model()(images[230:]).argmax(1)
    accuracy = (guessed == targets[230:]).float().mean().item()
    assert accuracy == pytest.approx(test["test_accuracy"], abs=1e-6)

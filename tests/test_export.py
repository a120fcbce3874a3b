"""The exported script trains the winner again without autotune: the same curve, bit for bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from autotune.execute.environment import environment
from autotune.execute.store import CheckpointStore
from autotune.execute.task_address import load_task
from autotune.export import _chosen, _script, export_script
from autotune.export.sources import copied
from autotune.header import Header, StudyError
from autotune.jobs import trial_seed
from autotune.plugins.discovery import Catalogue
from autotune.plugins.search import (
    Budget,
    Decided,
    Evaluate,
    Evaluated,
    Frozen,
    Objective,
    Observed,
    Start,
)
from autotune.record import Record
from autotune.result import StudyView
from autotune.space import Categorical, Float, Integer, Ordinal, Plugins, Space
from autotune.train import RunContext

ROOT = Path(__file__).parent.parent
DIGITS = ROOT / "examples" / "digits.py"

WITHOUT_AUTOTUNE = """
import sys
from pathlib import Path
from types import SimpleNamespace
folder, root = Path(sys.argv[1]), Path(sys.argv[2])

class Refuse:
    # What an editable installation offers is refused; the stand-in beside the script is not.
    @staticmethod
    def find_spec(name, path=None, target=None):
        top = name.partition(".")[0]
        if top == "autotune_plugins" or (top == "autotune" and "autotune" not in sys.modules
                and not (folder / "autotune").exists()):
            raise ModuleNotFoundError(f"{name} is not to be imported")
        return None

sys.meta_path = [Refuse, *(f for f in sys.meta_path if "editable" not in repr(f))]
sys.path = [str(folder), *(p for p in sys.path if Path(p or ".").resolve() != root)]
sys.argv = [str(folder / "train.py"), "--output", str(folder / "output")]
import runpy
runpy.run_path(sys.argv[0], run_name="__main__")
ours = [m.__file__ for m in list(sys.modules.values()) if getattr(m, "__file__", None)
        and Path(m.__file__).is_relative_to(root) and "examples" not in m.__file__]
assert not ours, ours
"""


@pytest.fixture(autouse=True)
def one_thread():
    """More threads only get into each other's way on models this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


SPACE = Space(
    {
        "architecture": {"width": 8, "depth": 2, "dropout": Float(0.0, 0.5, default=0.2)},
        "batch_size": Ordinal((30, 32, 64), default=32),
        "accumulation_steps": Integer(1, 3, default=1),
        "gradient_clip_norm": Float(0.1, 1000.0, log=True, default=1000.0),
        "mixed_precision": Categorical(("off", "bfloat16"), default="off"),
        "weight_average_decay": Float(0.0, 0.99, default=0.0),
        "augmentation": Float(0.0, 2.0, default=1.0),
        "optimizer": Plugins("optimizer"),
        "schedule": Plugins("schedule"),
        "adapter": Plugins("adapter"),
        "tta": Plugins("tta"),
    }
)


def study(folder: Path, address: str, partial, units: int, horizon: int, space=SPACE) -> StudyView:
    """A study of one trial, trained here as a worker would."""
    resolved = space.resolve(Catalogue())
    whole = resolved.complete(partial)
    configuration, evaluation = resolved.split_configuration(whole)
    objectives = (
        Objective("validation_loss", "minimize", "curve"),
        Objective("shifted_accuracy", "maximize", "evaluation"),
    )
    folder.mkdir(parents=True)
    task = load_task(address)
    run = task.open(configuration, RunContext(trial_seed(5, 0), horizon, "cpu", folder))
    store = CheckpointStore(folder / "checkpoints")
    store.prepare()
    header = Header(
        name='odd """ name \\',
        created="",
        task=address,
        task_name="task",
        unit=task.unit,
        space=resolved,
        resolved=resolved,
        objectives=objectives,
        budget=Budget(trials=1),
        horizon=horizon,
        seed=5,
        workers=1,
        device="cpu",
        first=(),
        search={},
        executor={},
        plugins=(),
        left_out=(),
        fingerprint="",
        versions={"torch": str(torch.__version__)},
    )
    record = Record(folder)
    record.set_meta("header", header.to_plain())
    record.append(Decided(0, Start(0, configuration, horizon, units)))
    for step in range(1, units + 1):
        record.append(Observed(0, step, dict(run.train()), 0.1, float(step)))
    content = {"environment": environment("cpu"), "state": run.freeze()}
    record.append(Frozen(0, units, store.save(0, units, content).name, dict(run.static())))
    scores = dict(run.evaluate(evaluation, "select"))
    record.append(Decided(1, Evaluate(0, units, evaluation)))
    record.append(Evaluated(0, units, evaluation, scores, scores))
    winner = {
        "trial": 0,
        "step": units,
        "evaluation": evaluation,
        "metrics": dict(run.test(evaluation)),
    }
    record.set_meta("winner", winner)
    record.close()
    return StudyView(folder)


def run_script(script: Path) -> dict:
    """Run an exported script in a process that cannot import autotune."""
    environ = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_AUTOTUNE, str(script.parent), str(ROOT)],
        capture_output=True,
        text=True,
        env=environ,
        cwd=script.parent,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads((script.parent / "output" / "curve.json").read_text())


def assert_same(view: StudyView, found: dict) -> None:
    metrics = view.trials[0].metrics
    assert found["curve"] == [metrics[step] for step in sorted(metrics)]
    assert found["test"] == view.result.test


CASES = {
    "adapt": (
        "adapt",
        {
            "optimizer": {"name": "adamw"},
            "schedule": {"name": "cosine"},
            "adapter": {"name": "lora"},
            "tta": {"name": "tent"},
        },
    ),
    "adapt with everything on": (
        "adapt",
        {
            "optimizer": {"name": "sgd"},
            "schedule": {"name": "warmup_stable_decay"},
            "adapter": {"name": "pissa"},
            "tta": {"name": "lame"},
            "batch_size": 30,
            "accumulation_steps": 3,
            "gradient_clip_norm": 0.5,
            "mixed_precision": "bfloat16",
            "weight_average_decay": 0.9,
        },
    ),
    "series": (
        "adapt",
        {
            "optimizer": {"name": "lion"},
            "schedule": {"name": "infinite"},
            "adapter": {"name": "series_bottleneck"},
            "tta": {"name": "batch_norm_statistics"},
        },
    ),
    "from scratch": (
        "from_scratch",
        {
            "optimizer": {"name": "adabelief"},
            "schedule": {"name": "linear_decay"},
            "adapter": {"name": "full"},
            "tta": {"name": "none"},
        },
    ),
}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_script_trains_the_winner_again(case, tmp_path):
    task, partial = CASES[case]
    view = study(tmp_path / "study", f"{DIGITS}:{task}", partial, units=3, horizon=5)
    script = export_script(view, tmp_path / "out")
    assert script == tmp_path / "out" / "train.py"
    assert_same(view, run_script(script))
    model = torch.load(tmp_path / "out" / "output" / "model.pt", weights_only=True)
    assert model
    for path in (tmp_path / "out").rglob("*.py"):
        source = path.read_text()
        assert "autotune_plugins" not in source.replace("# From autotune_plugins", "")
        if path.parent.name != "autotune":
            assert "import autotune" not in source
            assert "from autotune" not in source


def test_a_second_export_replaces_the_first(tmp_path):
    view = study(tmp_path / "study", f"{DIGITS}:from_scratch", {"optimizer": {"name": "sgd"}}, 1, 2)
    first = export_script(view, tmp_path / "out")
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.py")}
    assert export_script(view, str(tmp_path / "out")) == first
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.py")} == before


THIRD_PARTY = """
import math
from collections.abc import Sequence
import torch
from autotune.plugins import Optimizer
from autotune.space import Float, Space
from . import _shared as shared
from .numbers_ import HALF as half, Table

REGISTERED = []
REGISTERED.append("me")


@shared.noted
class Odd(Optimizer):
    name = "odd"
    summary = "Half of SGD."
    reference = "none"

    @classmethod
    def space(cls) -> Space:
        return Space({"learning_rate": Float(1e-3, 1.0, log=True, default=0.1)})

    def build(self, named_parameters):
        from .late import momentum
        assert REGISTERED == ["me"] and math.isfinite(half)
        rate = self.configuration["learning_rate"] * half * Table.ONE
        # A comment that stays.
        return torch.optim.SGD([p for _, p in named_parameters], lr=rate, momentum=momentum())
"""

USERS_TASK = """
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import Dataset
import autotune
from autotune.space import Float, Space
from autotune.train import Data, TorchTask

SPACE = Space({"x": Float(0.0, 1.0)})


class Noisy(Dataset):
    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return torch.randn(6) + index % 3, index % 3


def data(configuration):
    return Data(train=Noisy(50), validation=Noisy(31), test=Noisy(20))


def model(architecture):
    return nn.Sequential(nn.LazyLinear(9), nn.Dropout(0.3), nn.ReLU(), nn.Linear(9, 3))


def margin(outputs, targets):
    return float(outputs.max(1).values.mean())


task = TorchTask(model, data, functional.cross_entropy, metrics={"margin": margin},
                 unit="step", batches_per_unit=7)
"""


def test_a_third_party_plugin_and_its_helpers_are_copied(tmp_path, monkeypatch):
    package = tmp_path / "lib" / "stranger"
    package.mkdir(parents=True)
    files = {
        "__init__.py": "",
        "method.py": THIRD_PARTY,
        "_shared.py": "import functools\ndef noted(cls):\n    return cls\nUNUSED = functools\n",
        "numbers_.py": "HALF = 0.5\n'half of one'\nclass Table:\n    ONE = 1.0\n"
        "def unused():\n    pass\n",
        "late.py": "def momentum():\n    return _value()\ndef _value():\n    return 0.5\n",
    }
    for name, text in files.items():
        (package / name).write_text(text)
    info = tmp_path / "lib" / "stranger-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[autotune.optimizers]\nodd = stranger.method:Odd\n")
    monkeypatch.syspath_prepend(str(tmp_path / "lib"))
    task = tmp_path / "users_task.py"
    task.write_text(USERS_TASK)
    space = Space({"batch_size": 4, "optimizer": Plugins("optimizer", include=("odd",))})
    view = study(tmp_path / "study", f"{task}:task", {}, units=3, horizon=4, space=space)
    script = export_script(view, tmp_path / "out")
    copies = {path.name: path.read_text() for path in (tmp_path / "out" / "methods").iterdir()}
    assert "def space" not in copies["stranger_method.py"]
    assert "# A comment that stays." in copies["stranger_method.py"]
    assert "unused" not in copies["stranger_numbers_.py"]
    found = run_script(script)
    assert_same(view, found)
    assert "margin" in found["curve"][0]


def test_nothing_to_export(tmp_path):
    view = study(tmp_path / "s", f"{DIGITS}:from_scratch", {"optimizer": {"name": "sgd"}}, 1, 2)
    view.header = replace(view.header, task=None)
    with pytest.raises(StudyError, match="handed over as an object"):
        export_script(view, tmp_path / "out")
    view.result.best = None
    with pytest.raises(StudyError, match="no trained trial"):
        export_script(view, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_followed_is_said(tmp_path, monkeypatch):
    package = tmp_path / "foggy"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "star.py").write_text(
        "from foggy.other import *\nimport foggy.other\nA = foggy.other\n"
    )
    (package / "other.py").write_text("B = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(StudyError, match=r"cannot follow 'import foggy\.other'"):
        copied([("foggy.star", "A")], frozenset({"foggy"}), "methods", {})
    with pytest.raises(StudyError, match="'C' in a way that an export cannot follow"):
        copied([("foggy.other", "C")], frozenset({"foggy"}), "methods", {})


def test_what_the_script_cannot_do_is_refused_in_words() -> None:
    """Per-sample gradients, and a rate that follows the batch size."""
    point = SimpleNamespace(
        configuration={"schedule": {"name": "norm_test"}},
        training={"learning_rate_scaling": "linear"},
    )
    with pytest.raises(StudyError, match="'norm_test' needs the gradient of each sample"):
        _chosen(point)
    with pytest.raises(StudyError, match="learning_rate_scaling: the winner has 'linear'"):
        _script(None, point, {}, {})

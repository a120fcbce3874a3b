"""A study file that is right, with a task that must not be imported, for tests that spoil it."""

from __future__ import annotations

from pathlib import Path

TASK = """\
from pathlib import Path

Path(__file__).with_suffix(".imported").touch()
raise RuntimeError("validating a study file imported its task")
"""

STUDY = """\
name: digits
task: tasks/digits.py:task
space:
  architecture:
    width: {type: integer, low: 16, high: 64, log: true, default: 32}
    dropout: {type: float, low: 0.0, high: 0.5, step: 0.1}
  batch_size: {type: ordinal, values: [32, 64, 128], default: 64}
  activation:
    type: categorical
    choices: [relu, gelu]
    prior: {center: gelu, confidence: high}
  gradient_clip_norm: 1.0
  optimizer:
    plugins: optimizer
    exclude: [lion]
    override:
      adamw: {learning_rate: {low: 1e-4, high: 1e-1, log: true}}
  schedule: {plugins: schedule}
  adapter: {plugins: adapter, include: [full, lora]}
  tta: {plugins: tta}
  head:
    type: choice
    options:
      linear: {}
      mlp:
        hidden: {type: integer, low: 8, high: 64}
    default: linear
forbidden:
  - {optimizer: sgd, adapter: [lora]}
  - {optimizer.learning_rate: "> 0.5", batch_size: 32}
objectives:
  - validation_loss
  - shifted_accuracy
  - {name: mine, direction: maximize, kind: curve, bounds: [0, 1]}
budget: {epochs: 300, trials: 80, minutes: 4, evaluations: 40}
horizon: 20
seed: 0
first:
  - optimizer: {name: adamw, learning_rate: 1e-3}
    batch_size: 128
search: {policy: random_search, proposer: random, forecaster: parametric}
executor: {name: local, workers: 2, device: cpu}
"""


def write(folder: Path, text: str | bytes = STUDY, name: str = "study.yaml") -> Path:
    """The study file in `folder`, beside its task."""
    (folder / "tasks").mkdir(exist_ok=True)
    (folder / "tasks" / "digits.py").write_text(TASK)
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def imported(folder: Path) -> bool:
    """Whether the task was imported since."""
    return (folder / "tasks" / "digits.imported").exists()

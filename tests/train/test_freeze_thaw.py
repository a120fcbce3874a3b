"""A thawed run goes on as if nothing had happened, bit for bit."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import train_tasks
from torch import Tensor, nn
from train_tasks import configuration, small_task

from autotune.train import RunContext, StateError
from autotune.train.state import same_bits

CHOICES: dict[str, dict[str, Any]] = {
    "adamw": {},
    "momentum": {"optimizer": {"name": "sgd", "learning_rate": 0.05}},
    "lora": {"adapter": {"name": "lora"}},
    "pissa": {"adapter": {"name": "pissa"}, "schedule": {"name": "warmup_stable_decay"}},
    "bottleneck": {"adapter": {"name": "series_bottleneck"}, "optimizer": {"name": "lion"}},
    "closure": {"optimizer": {"name": "closure"}},
    "growing batch": {"schedule": {"name": "growing"}},
    "adapter with state": {"adapter": {"name": "counting"}},
    "bfloat16": {"mixed_precision": "bfloat16"},
    "float16": {"mixed_precision": "float16"},
}
UNITS = 13  # two epochs of six batches, and one more


def same(first: Any, second: Any) -> bool:
    """Deep equality, tensors by their bits."""
    if isinstance(first, Tensor):
        return isinstance(second, Tensor) and same_bits(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return type(first) is type(second) and (
        first == second or (first != first and second != second)
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("study")


@pytest.mark.parametrize("choice", CHOICES)
def test_a_freeze_at_every_batch_changes_nothing(choice: str, folder: Path) -> None:
    task, chosen = small_task(), configuration(**CHOICES[choice])
    context = RunContext(seed=3, horizon=UNITS, folder=folder)
    straight = task.open(chosen, context)
    curve, states = [], []
    for _ in range(UNITS):
        curve.append(straight.train())
        states.append(straight.freeze())
    # Frozen after every batch, thawed each time after another trial has run here.
    other = task.open(configuration(optimizer={"name": "sgd"}), RunContext(9, 5, folder=folder))
    state = None
    for unit in range(UNITS):
        run = task.open(chosen, context)
        if state is not None:
            run.thaw(state)
        assert run.train() == curve[unit]
        state = run.freeze()
        assert same(state, states[unit])
        if unit % 4 == 0:
            other.train()
    mid_step = [bool(state["gradients"]) or bool(state["pending"]) for state in states]
    assert any(mid_step), "no freeze fell between the batches of one optimizer step"
    assert not all(mid_step)


def test_thawed_in_a_fresh_process(folder: Path, tmp_path: Path) -> None:
    task, chosen = small_task(), configuration(adapter={"name": "pissa"})
    context = RunContext(seed=3, horizon=UNITS, folder=folder)
    run = task.open(chosen, context)
    for _ in range(5):
        run.train()
    torch.save(run.freeze(), tmp_path / "five.pt")
    for _ in range(4):
        run.train()
    script = f"""
import sys, torch
sys.path.insert(0, {str(Path(train_tasks.__file__).parent)!r})
from train_tasks import configuration, small_task
from autotune.train import RunContext
from pathlib import Path
torch.set_num_threads({torch.get_num_threads()})
run = small_task().open({chosen!r}, RunContext(3, {UNITS}, folder=Path({str(folder)!r})))
run.thaw(torch.load({str(tmp_path / "five.pt")!r}, weights_only=True))
for _ in range(4):
    run.train()
torch.save(run.freeze(), {str(tmp_path / "nine.pt")!r})
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
    assert same(torch.load(tmp_path / "nine.pt", weights_only=True), run.freeze())


def test_thawing_leaves_the_checkpoint_alone(folder: Path) -> None:
    task, context = small_task(), RunContext(seed=3, horizon=UNITS, folder=folder)
    run = task.open(configuration(), context)
    run.train()
    run.train()
    state, before = run.freeze(), run.freeze()
    for _ in range(2):
        thawed = task.open(configuration(), context)
        thawed.thaw(state)
        thawed.train()
        thawed.train()
    assert same(state, before)


def test_runs_keep_their_generators_to_themselves(folder: Path) -> None:
    task, context = small_task(), RunContext(seed=3, horizon=UNITS, folder=folder)

    def draws() -> tuple[float, ...]:
        return random.random(), np.random.rand(), torch.rand(()).item()  # noqa: NPY002

    random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
    expected = [draws() for _ in range(4)]
    random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
    run = task.open(configuration(), context)
    found = [draws()]
    run.train()
    found.append(draws())
    state = run.freeze()
    run.evaluate({}, "select"), run.test({}), run.static(), run.model(), run.latency({})
    found.append(draws())
    task.open(configuration(), context).thaw(state)
    found.append(draws())
    assert found == expected


def test_two_runs_taking_turns_equal_two_runs_alone(folder: Path) -> None:
    task = small_task()
    contexts = [RunContext(seed=seed, horizon=6, folder=folder) for seed in (1, 2)]
    alone = []
    for context in contexts:
        run = task.open(configuration(), context)
        alone.append([run.train() for _ in range(4)])
    runs = [task.open(configuration(), context) for context in contexts]
    turns = [[run.train() for run in runs] for _ in range(4)]
    assert [list(curve) for curve in zip(*turns, strict=True)] == alone
    assert alone[0] != alone[1]


def test_measuring_leaves_the_run_as_it_was(folder: Path) -> None:
    task, context = small_task(), RunContext(seed=3, horizon=UNITS, folder=folder)
    chosen = configuration(adapter={"name": "lora"})
    run = task.open(chosen, context)
    for _ in range(3):
        run.train()
    before = run.freeze()
    for evaluation in ({}, {"tta": {"name": "tent"}}, {"tta": {"name": "batch_norm_statistics"}}):
        first = run.evaluate(evaluation, "select")
        assert run.evaluate(evaluation, "select") == first
        run.test(evaluation)
        run.latency(evaluation)
    run.static()
    run.model()
    assert same(run.freeze(), before)


def test_only_what_differs_from_the_pretrained_weights_is_kept(folder: Path) -> None:
    task, context = small_task(), RunContext(seed=3, horizon=UNITS, folder=folder)

    def kept(adapter: str) -> set[str]:
        run = task.open(configuration(adapter={"name": adapter}), context)
        for _ in range(2):
            run.train()
        return set(run.freeze()["model"]["tensors"])

    base = {"body.0.weight", "middle.weight"}
    assert any("lora" in name for name in kept("lora"))
    assert not base & kept("lora")
    assert base <= kept("full")
    # PiSSA takes the principal part out of the base weights: they are stored, not recomputed.
    assert len(kept("pissa")) > len(kept("lora"))
    assert any(name.endswith("weight") for name in kept("pissa") - kept("lora"))


def test_changed_pretrained_weights_are_noticed(tmp_path: Path) -> None:
    chosen = configuration(adapter={"name": "lora"})
    run = small_task().open(chosen, RunContext(seed=3, horizon=4, folder=tmp_path / "one"))
    run.train()

    def other(architecture: Any) -> dict[str, Tensor]:
        return {name: 2 * value for name, value in train_tasks.pretrain(architecture).items()}

    context = RunContext(seed=3, horizon=4, folder=tmp_path / "two")
    stranger = small_task(pretrained=other).open(chosen, context)
    with pytest.raises(StateError, match="pretrained weights are not those"):
        stranger.thaw(run.freeze())


def test_eval_mode_of_a_part_is_kept(folder: Path) -> None:
    class FrozenNorm(train_tasks.SmallNet):
        def __init__(self, width: int) -> None:
            super().__init__(width)
            self.body[1].eval()

    task = small_task(model=lambda architecture: FrozenNorm(**architecture), pretrained=None)
    run = task.open(configuration(), RunContext(seed=1, horizon=4))
    start = run.freeze()["model"]["tensors"]["body.1.running_mean"]
    run.train()
    state = run.freeze()["model"]
    assert "body.1" not in state["training"]
    assert "dropout" in state["training"]
    assert same_bits(state["tensors"]["body.1.running_mean"], start)


def test_a_checkpoint_of_another_format_is_refused(folder: Path) -> None:
    run = small_task().open(configuration(), RunContext(seed=1, horizon=4, folder=folder))
    with pytest.raises(StateError, match="format"):
        run.thaw({"format": 0})


def test_extra_state_and_lazy_buffers_are_kept() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.LazyLinear(3)
            self.seen = 0
            self.register_buffer("mean", None)

        def forward(self, inputs: Tensor) -> Tensor:
            if self.training:
                self.seen += 1
                mean = inputs.flatten(1).mean(0).detach()
                self.mean = mean if self.mean is None else 0.9 * self.mean + 0.1 * mean
            flat = inputs.flatten(1)
            return self.linear(flat if self.mean is None else flat - self.mean) / (1 + self.seen)

        def get_extra_state(self) -> Any:
            return {"seen": self.seen}

        def set_extra_state(self, state: Any) -> None:
            self.seen = state["seen"]

    task = small_task(model=lambda architecture: Counting(), pretrained=None, head=())
    context = RunContext(seed=1, horizon=6)
    run = task.open(configuration(), context)
    curve = [run.train() for _ in range(2)]
    state = run.freeze()
    curve += [run.train() for _ in range(3)]
    thawed = task.open(configuration(), context)
    thawed.thaw(state)
    assert [thawed.train() for _ in range(3)] == curve[2:]

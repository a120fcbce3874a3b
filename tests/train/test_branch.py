"""Runs that go on from another's checkpoint: with a longer horizon, or under another schedule."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from test_freeze_thaw import same
from train_tasks import configuration, small_task

from autotune.plugins import PluginError
from autotune.train import RunContext, TaskError
from autotune.train.trainable import Trainable, as_task

START, HORIZON = 9, 12  # units of one batch; the ninth ends within an optimizer step
COOLDOWN = {
    "name": "warmup_stable_decay",
    "warmup_samples": 1,
    "decay_fraction": 0.5,
    "decay_shape": "1-sqrt",
    "final_factor": 0.0,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("study")


def opened(folder: Path, schedule: dict[str, Any], horizon: int = HORIZON, **further: Any) -> Any:
    chosen = configuration(schedule=schedule, **further)
    return small_task().open(chosen, RunContext(seed=3, horizon=horizon, folder=folder))


def rate(run: Any) -> float:
    group = run._stepper.optimizer.param_groups[0]
    return group["lr"] / group["initial_lr"]


def trained(run: Any, units: int) -> tuple[list[Any], list[float]]:
    """The metrics of that many units, and the factor of the rate after each."""
    curve, rates = [], []
    for _ in range(units):
        curve.append(run.train())
        rates.append(rate(run))
    return curve, rates


@pytest.mark.parametrize(
    "schedule",
    [
        {"name": "constant", "warmup_samples": 40},
        {"name": "infinite", "cooldown_samples": 500, "anneal": {"name": "none"}},
        {"name": "exponential", "decay": 0.7},
        {"name": "warmup_stable_decay", "decay_fraction": 0.25},
    ],
    ids=lambda schedule: schedule["name"],
)
def test_horizon_free_schedules_extend_without_retraining(
    folder: Path, schedule: dict[str, Any]
) -> None:
    """Stopped where the short horizon ends, or, if bound from a share on, at that share."""
    short = opened(folder, schedule, horizon=8)
    units = 6 if schedule["name"] == "warmup_stable_decay" else 8
    trained(short, units)
    longer, whole = (opened(folder, schedule, horizon=24) for _ in range(2))
    longer.thaw(short.freeze())
    trained(whole, units)
    assert trained(longer, 6) == trained(whole, 6)
    assert same(longer.freeze(), whole.freeze())


def test_a_cooldown_branched_off_a_constant_rate_is_the_whole_schedules(folder: Path) -> None:
    """A constant-rate run of one epoch, cooled down over a second, is bit for bit the
    warm-up-stable-decay run that decays over the last half of two epochs."""
    stable = opened(folder, {"name": "constant"}, horizon=100, accumulation_steps=1)
    whole = opened(folder, COOLDOWN, accumulation_steps=1)
    trained(stable, 6), trained(whole, 6)
    assert whole._stepper.samples == 42
    branched = opened(folder, COOLDOWN, accumulation_steps=1)
    branched.branch(stable.freeze())
    assert branched.step == 6
    curve, rates = trained(branched, 6)
    assert (curve, rates) == trained(whole, 6)
    assert rates == pytest.approx([1 - (8 * step / 42) ** 0.5 for step in range(6)], rel=1e-12)
    first, second = branched.freeze(), whole.freeze()
    del first["schedule"], second["schedule"]
    assert same(first, second)


@pytest.mark.parametrize("adapter", [None, {"name": "pissa"}])
def test_a_branched_run_freezes_like_any_other(folder: Path, adapter: Any) -> None:
    """Also in the middle of an optimizer step, and without the run it comes from."""
    further = {} if adapter is None else {"adapter": adapter}
    parent = opened(folder, {"name": "cosine"}, horizon=30, **further)
    trained(parent, START)
    frozen = parent.freeze()
    assert frozen["pending"] or frozen["gradients"]
    straight = opened(folder, COOLDOWN, **further)
    straight.branch(frozen)
    state = straight.freeze()
    for _ in range(HORIZON - START):
        run = opened(folder, COOLDOWN, **further)
        run.thaw(state)
        assert run.train() == straight.train()
        state = run.freeze()
        assert same(state, straight.freeze())
    assert same(frozen, parent.freeze()), "the parent's checkpoint was changed"


def test_a_cooldown_starts_at_the_rate_it_finds_and_never_raises_it(folder: Path) -> None:
    parent = opened(folder, {"name": "cosine", "warmup_fraction": 0.0}, horizon=20)
    trained(parent, 12)
    found = rate(parent)
    assert 0.1 < found < 0.9
    for final, end in ((0.05, 0.05), (0.2, 0.2)):
        run = opened(folder, {**COOLDOWN, "final_factor": final}, horizon=24)
        run.branch(parent.freeze())
        _, rates = trained(run, 12)
        assert rates[0] == pytest.approx(found)
        assert all(after <= before for before, after in pairwise(rates))
        assert rates[-1] >= end
        trained(run, 2)
        assert rate(run) == pytest.approx(end)
    late = opened(folder, {"name": "cosine", "warmup_fraction": 0.0}, horizon=12)
    trained(late, 12)
    assert rate(late) < 0.2
    run = opened(folder, {**COOLDOWN, "final_factor": 0.2}, horizon=24)
    run.branch(late.freeze())
    assert trained(run, 6)[1] == pytest.approx([rate(late)] * 6)


def test_the_infinite_schedule_anneals_from_any_saved_point(folder: Path) -> None:
    """Exponentially from its constant rate, to a hundredth of the base rate unless told."""
    infinite = {"name": "infinite", "cooldown_samples": 500, "constant_factor": 0.5}
    parent = opened(folder, {**infinite, "anneal": {"name": "none"}}, accumulation_steps=1)
    trained(parent, 6)
    found = parent._stepper._control.factor
    run = opened(folder, {**infinite, "anneal": {"name": "none"}}, accumulation_steps=1)
    run.branch(parent.freeze())
    _, rates = trained(run, 6)
    shares = [8 * step / 42 for step in range(6)]
    expected = [found * (0.01 / found) ** share for share in shares]
    assert rates == pytest.approx(expected, rel=1e-12)


def test_what_cannot_take_over_says_so(folder: Path) -> None:
    parent = opened(folder, {"name": "constant"})
    trained(parent, 2)
    with pytest.raises(PluginError, match="'cosine' cannot take over a run from another one"):
        opened(folder, {"name": "cosine"}).branch(parent.freeze())

    class Mine(Trainable):
        def setup(self, configuration: Any, context: Any) -> None: ...

        def step(self) -> dict[str, float]:
            return {"loss": 0.0}

        def state(self) -> dict[str, Any]:
            return {}

        def load(self, state: Any) -> None: ...

    run = as_task(Mine).open({}, RunContext(0, 2))
    with pytest.raises(TaskError, match="cannot be branched off another run's checkpoint"):
        run.branch(run.freeze())

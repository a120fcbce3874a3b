"""Each bundled schedule against torch's schedulers and the papers' formulas written plainly."""

import dataclasses
import itertools
import math

import pytest
import torch

from autotune.plugins import Progress, Signals
from autotune_plugins.schedules.constant import Constant
from autotune_plugins.schedules.cosine import Cosine
from autotune_plugins.schedules.infinite import Infinite
from autotune_plugins.schedules.linear_decay import LinearDecay
from autotune_plugins.schedules.warmup_stable_decay import WarmupStableDecay

BATCH = 10
STEPS = 40
PLUGINS = [Constant, Cosine, LinearDecay, WarmupStableDecay, Infinite]
EXPONENTIAL = {"name": "exponential", "fraction": 0.25, "final_factor": 0.01}


def at(step: int, horizon_steps: int = STEPS) -> Progress:
    return Progress(
        samples=step * BATCH,
        horizon_samples=horizon_steps * BATCH,
        samples_per_epoch=100,
        steps=step,
        batch_size=BATCH,
    )


def factors(schedule, horizon_steps: int = STEPS, steps: int | None = None) -> list[float]:
    count = horizon_steps if steps is None else steps
    return [schedule.control(at(t, horizon_steps), Signals()).factor for t in range(count)]


def torch_factors(make_scheduler, steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make_scheduler(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


def test_constant() -> None:
    assert factors(Constant()) == [1.0] * STEPS


def test_constant_warm_up_is_torchs_linear_one() -> None:
    expected = torch_factors(
        lambda optimizer: torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda t: min(1.0, (t + 1) / 8)
        ),
        STEPS,
    )
    assert factors(Constant({"warmup_samples": 80})) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("final", [0.0, 0.1])
def test_cosine_is_torchs(final: float) -> None:
    expected = torch_factors(
        lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(
            optimizer, T_max=STEPS, eta_min=final
        ),
        STEPS,
    )
    ours = factors(Cosine({"warmup_fraction": 0.0, "final_factor": final}))
    assert ours == pytest.approx(expected, rel=1e-10)


def test_cosine_after_warm_up() -> None:
    ours = factors(Cosine({"warmup_fraction": 0.25, "final_factor": 0.1}))
    for t in range(STEPS):
        if t < 10:
            expected = (t + 1) / 10
        else:
            expected = 0.1 + 0.9 * (1 + math.cos(math.pi * (t - 10) / 30)) / 2
        assert ours[t] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("final", [0.0, 0.2])
def test_linear_decay_is_torchs(final: float) -> None:
    expected = torch_factors(
        lambda optimizer: torch.optim.lr_scheduler.LinearLR(
            optimizer, start_factor=1.0, end_factor=final, total_iters=STEPS
        ),
        STEPS,
    )
    ours = factors(LinearDecay({"warmup_fraction": 0.0, "final_factor": final}))
    assert ours == pytest.approx(expected, rel=1e-10)


def test_linear_decay_after_warm_up() -> None:
    ours = factors(LinearDecay({"warmup_fraction": 0.1, "final_factor": 0.0}))
    expected = [(t + 1) / 4 if t < 4 else 1 - (t - 4) / 36 for t in range(STEPS)]
    assert ours == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("shape", "formula"),
    [
        ("linear", lambda s: 1 - s),
        ("1-sqrt", lambda s: 1 - math.sqrt(s)),
        ("cosine", lambda s: (1 + math.cos(math.pi * s)) / 2),
    ],
)
@pytest.mark.parametrize("final", [0.0, 0.1])
def test_warmup_stable_decay(shape, formula, final) -> None:
    schedule = WarmupStableDecay(
        {
            "warmup_samples": 50,
            "decay_fraction": 0.25,
            "decay_shape": shape,
            "final_factor": final,
        }
    )
    ours = factors(schedule)
    expected = (
        [(t + 1) / 5 for t in range(5)]
        + [1.0] * 25
        + [final + (1 - final) * formula((t - 30) / 10) for t in range(30, 40)]
    )
    assert ours == pytest.approx(expected, rel=1e-10)
    assert schedule.bound_from() == 0.75


def test_a_decay_never_falls_below_its_floor_and_jumps_back() -> None:
    for shape in ("linear", "1-sqrt", "cosine"):
        schedule = WarmupStableDecay(
            {"decay_fraction": 0.5, "decay_shape": shape, "final_factor": 0.1}
        )
        ours = factors(schedule, steps=STEPS + 5)
        assert all(a >= b for a, b in itertools.pairwise(ours))
        assert min(ours) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("shape", "formula"),
    [
        ("linear", lambda s, c: 1 - (1 - c) * s),
        ("cosine", lambda s, c: c + (1 - c) / 2 * (1 + math.cos(math.pi * s))),
        ("inverse_square_root", lambda s, c: 1 / math.sqrt(1 + s * (1 / c**2 - 1))),
    ],
)
def test_infinite(shape, formula) -> None:
    schedule = Infinite(
        {
            "warmup_samples": 40,
            "cooldown_samples": 200,
            "cooldown_shape": shape,
            "constant_factor": 0.4,
            "anneal": {"name": "none"},
        }
    )
    expected = (
        [(t + 1) / 4 for t in range(4)]
        + [formula((t - 4) / 20, 0.4) for t in range(4, 24)]
        + [0.4] * 16
    )
    assert factors(schedule) == pytest.approx(expected, rel=1e-10)
    assert schedule.bound_from() is None


def test_infinite_annealing() -> None:
    settings = {"warmup_samples": 1, "cooldown_samples": 100, "constant_factor": 0.4}
    schedule = Infinite({**settings, "anneal": EXPONENTIAL})
    ours = factors(schedule)
    assert schedule.bound_from() == 0.75
    assert ours[:30] == factors(Infinite({**settings, "anneal": {"name": "none"}}))[:30]
    expected = [0.4 * (0.01 / 0.4) ** ((t - 30) / 10) for t in range(30, 40)]
    assert ours[30:] == pytest.approx(expected, rel=1e-10)
    assert schedule.control(at(STEPS), Signals()).factor == pytest.approx(0.01)


def test_annealing_never_raises_the_rate() -> None:
    schedule = Infinite({"warmup_samples": 100_000, "anneal": {**EXPONENTIAL, "final_factor": 0.1}})
    ours = factors(schedule)
    assert max(ours[30:]) == pytest.approx(ours[30])


@pytest.mark.parametrize(
    "schedule",
    [
        Constant({"warmup_samples": 70}),
        WarmupStableDecay({"warmup_samples": 70}),
        Infinite({"warmup_samples": 70, "cooldown_samples": 100}),
        Infinite({"warmup_samples": 70, "anneal": EXPONENTIAL}),
    ],
    ids=lambda schedule: schedule.name,
)
def test_free_of_the_horizon_until_bound(schedule) -> None:
    bound = schedule.bound_from()
    free = STEPS if bound is None else math.ceil(bound * STEPS)
    assert factors(schedule, STEPS, free) == factors(schedule, 3 * STEPS, free)


@pytest.mark.parametrize("plugin", [Cosine, LinearDecay])
def test_bound_from_the_first_step(plugin) -> None:
    assert plugin().bound_from() == 0.0
    assert factors(plugin(), STEPS, 5) != factors(plugin(), 3 * STEPS, 5)


@pytest.mark.parametrize("plugin", PLUGINS)
def test_depends_on_samples_not_on_steps_or_epochs(plugin) -> None:
    schedule = plugin()
    for t in range(STEPS):
        moved = dataclasses.replace(at(t), steps=7 * t + 3, samples_per_epoch=13)
        assert schedule.control(moved, Signals()) == schedule.control(at(t), Signals())


@pytest.mark.parametrize("plugin", PLUGINS)
def test_pure_bounded_and_stateless(plugin) -> None:
    schedule = plugin()
    forwards = factors(schedule)
    backwards = [schedule.control(at(t), Signals()).factor for t in reversed(range(STEPS))]
    assert forwards == backwards[::-1]
    assert all(0.0 <= factor <= 1.0 for factor in forwards)
    assert forwards[0] > 0
    assert schedule.state_dict() == {}


@pytest.mark.parametrize("plugin", PLUGINS)
def test_default_lies_in_the_space(plugin) -> None:
    space = plugin.space()
    space.validate(space.default())
    assert plugin().configuration == space.default()

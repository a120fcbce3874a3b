"""Each bundled schedule against torch's schedulers and the papers' formulas written plainly."""

import dataclasses
import itertools
import math

import pytest
import torch

from autotune.plugins import Progress, Signals
from autotune_plugins.schedules.constant import Constant
from autotune_plugins.schedules.cosine import Cosine
from autotune_plugins.schedules.exponential import Exponential
from autotune_plugins.schedules.infinite import Infinite
from autotune_plugins.schedules.linear_decay import LinearDecay
from autotune_plugins.schedules.norm_test import NormTest
from autotune_plugins.schedules.one_cycle import OneCycle
from autotune_plugins.schedules.polynomial import Polynomial
from autotune_plugins.schedules.rex import REX
from autotune_plugins.schedules.warmup_stable_decay import WarmupStableDecay

BATCH = 10
STEPS = 60
PLUGINS = [
    Constant,
    Cosine,
    Exponential,
    Infinite,
    LinearDecay,
    NormTest,
    OneCycle,
    Polynomial,
    REX,
    WarmupStableDecay,
]
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
        if t < 15:
            expected = (t + 1) / 15
        else:
            expected = 0.1 + 0.9 * (1 + math.cos(math.pi * (t - 15) / 45)) / 2
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
    expected = [(t + 1) / 6 if t < 6 else 1 - (t - 6) / 54 for t in range(STEPS)]
    assert ours == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("shape", "formula"),
    [
        ("linear", lambda s: 1 - s),
        ("1-sqrt", lambda s: 1 - math.sqrt(s)),
        ("cosine", lambda s: (1 + math.cos(math.pi * s)) / 2),
        ("1-square", lambda s: 1 - s * s),
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
        + [1.0] * 40
        + [final + (1 - final) * formula((t - 45) / 15) for t in range(45, 60)]
    )
    assert ours == pytest.approx(expected, rel=1e-10)
    assert schedule.bound_from() == 0.75


def test_a_decay_never_falls_below_its_floor_and_jumps_back() -> None:
    for shape in ("linear", "1-sqrt", "cosine", "1-square"):
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
        + [0.4] * 36
    )
    assert factors(schedule) == pytest.approx(expected, rel=1e-10)
    assert schedule.bound_from() is None


def test_infinite_annealing() -> None:
    settings = {"warmup_samples": 1, "cooldown_samples": 100, "constant_factor": 0.4}
    schedule = Infinite({**settings, "anneal": EXPONENTIAL})
    ours = factors(schedule)
    assert schedule.bound_from() == 0.75
    assert ours[:45] == factors(Infinite({**settings, "anneal": {"name": "none"}}))[:45]
    expected = [0.4 * (0.01 / 0.4) ** ((t - 45) / 15) for t in range(45, 60)]
    assert ours[45:] == pytest.approx(expected, rel=1e-10)
    assert schedule.control(at(STEPS), Signals()).factor == pytest.approx(0.01)


def test_annealing_never_raises_the_rate() -> None:
    schedule = Infinite({"warmup_samples": 100_000, "anneal": {**EXPONENTIAL, "final_factor": 0.1}})
    ours = factors(schedule)
    assert max(ours[45:]) == pytest.approx(ours[45])


@pytest.mark.parametrize(("cycles", "growth", "first"), [(2, 1, 30), (4, 1, 15), (2, 2, 20)])
def test_cosine_restarts_are_torchs(cycles: int, growth: int, first: int) -> None:
    expected = torch_factors(
        lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(
            optimizer, T_0=first, T_mult=growth, eta_min=0.1
        ),
        STEPS,
    )
    restarts = {"name": "warm", "cycles": cycles, "growth": growth}
    schedule = Cosine({"warmup_fraction": 0.0, "final_factor": 0.1, "restarts": restarts})
    assert factors(schedule) == pytest.approx(expected, rel=1e-10)
    assert schedule.control(at(STEPS), Signals()).factor == pytest.approx(0.1)


@pytest.mark.parametrize("power", [0.5, 0.9, 2.0])
def test_polynomial_is_torchs(power: float) -> None:
    expected = torch_factors(
        lambda optimizer: torch.optim.lr_scheduler.PolynomialLR(
            optimizer, total_iters=STEPS, power=power
        ),
        STEPS,
    )
    settings = {"warmup_fraction": 0.0, "power": power}
    ours = factors(Polynomial({**settings, "final_factor": 0.0}))
    assert ours == pytest.approx(expected, rel=1e-10)
    floored = factors(Polynomial({**settings, "final_factor": 0.2}))
    assert floored == pytest.approx([0.2 + 0.8 * factor for factor in expected], rel=1e-10)


def test_rex_is_the_papers() -> None:
    ours = factors(REX({"warmup_fraction": 0.0}))
    expected = [(1 - t / STEPS) / (1 / 2 + 1 / 2 * (1 - t / STEPS)) for t in range(STEPS)]
    assert ours == pytest.approx(expected, rel=1e-12)
    assert all(ours[t] > 1 - t / STEPS for t in range(1, STEPS)), "it lies above the line"


def test_exponential_is_torchs_at_the_starts_of_epochs() -> None:
    expected = torch_factors(
        lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.8), 6
    )
    schedule = Exponential({"decay": 0.8, "final_factor": 1e-4})
    ours = factors(schedule)
    assert ours[::10] == pytest.approx(expected, rel=1e-12)
    ratios = [after / before for before, after in itertools.pairwise(ours)]
    assert ratios == pytest.approx([0.8**0.1] * (STEPS - 1), rel=1e-10)
    assert min(factors(Exponential({"decay": 0.5, "final_factor": 0.1}))) == 0.1


@pytest.mark.parametrize(("shape", "torchs"), [("cosine", "cos"), ("linear", "linear")])
@pytest.mark.parametrize("phases", [2, 3])
def test_one_cycle_is_torchs(shape: str, torchs: str, phases: int) -> None:
    """Over one step more than ours, torch's corners, each one step early, stand where ours do."""
    rising = 0.25
    steps = STEPS + 1 if phases == 2 else STEPS
    expected = torch_factors(
        lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=1.0,
            total_steps=steps,
            pct_start=(rising * STEPS + 1) / steps,
            anneal_strategy=torchs,
            cycle_momentum=False,
            div_factor=20.0,
            final_div_factor=50.0,
            three_phase=phases == 3,
        ),
        steps,
    )
    schedule = OneCycle(
        {
            "rising_fraction": rising,
            "initial_division": 20.0,
            "final_division": 50.0,
            "shape": shape,
            "phases": phases,
        }
    )
    ours = [*factors(schedule), schedule.control(at(STEPS), Signals()).factor]
    corner = STEPS + 1 if phases == 2 else int(2 * rising * STEPS) + 1
    assert ours[:corner] == pytest.approx(expected[:corner], rel=1e-10)
    assert ours[int(rising * STEPS)] == 1.0
    assert ours[-1] == pytest.approx(1 / (20 * 50), rel=1e-12)


@pytest.mark.parametrize("decay", ["none", "linear", "cosine"])
def test_the_norm_tests_rate(decay: str) -> None:
    schedule = NormTest({"warmup_samples": 50, "decay": decay})
    down = {
        "none": lambda s: 1.0,
        "linear": lambda s: 1 - s,
        "cosine": lambda s: (1 + math.cos(math.pi * s)) / 2,
    }[decay]
    expected = [min(1.0, (t + 1) / 5) * down(t / STEPS) for t in range(STEPS)]
    assert factors(schedule) == pytest.approx(expected, rel=1e-12)
    assert schedule.bound_from() == (None if decay == "none" else 0.0)


@pytest.mark.parametrize(
    "schedule",
    [
        Constant({"warmup_samples": 70}),
        Exponential({"warmup_samples": 70}),
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


@pytest.mark.parametrize("plugin", [Cosine, LinearDecay, OneCycle, Polynomial, REX])
def test_bound_from_the_first_step(plugin) -> None:
    assert plugin().bound_from() == 0.0
    assert factors(plugin(), STEPS, 5) != factors(plugin(), 3 * STEPS, 5)


@pytest.mark.parametrize("plugin", PLUGINS)
def test_depends_on_samples_not_on_steps_or_epochs(plugin) -> None:
    schedule = plugin()
    epoch = 100 if plugin is Exponential else 13  # whose ratio is one per epoch
    for t in range(STEPS):
        moved = dataclasses.replace(at(t), steps=7 * t + 3, samples_per_epoch=epoch)
        one, two = schedule.control(moved, Signals()), schedule.control(at(t), Signals())
        assert (one.factor, one.batch_size) == (two.factor, two.batch_size)


@pytest.mark.parametrize("plugin", PLUGINS)
def test_bounded_and_repeatable(plugin) -> None:
    schedule = plugin()
    forwards = factors(schedule)
    backwards = [schedule.control(at(t), Signals()).factor for t in reversed(range(STEPS))]
    assert forwards == backwards[::-1]
    assert all(0.0 <= factor <= 1.0 for factor in forwards)
    assert forwards[0] > 0


@pytest.mark.parametrize("plugin", PLUGINS)
def test_default_lies_in_the_space(plugin) -> None:
    space = plugin.space()
    space.validate(space.default())
    assert plugin().configuration == space.default()

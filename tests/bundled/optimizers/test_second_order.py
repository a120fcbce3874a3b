"""Optimizers that evaluate the loss again or differentiate it twice, and TAG, against their
formulas with the Hessian written out."""

from functools import cache

import numpy as np
import pytest
import pytorch_optimizer
import torch
from stepping import through_a_file
from torch import nn
from torch.nn import functional

from autotune.plugins.conformance import laboratory, trajectories
from autotune_plugins.optimizers import _foreach
from autotune_plugins.optimizers._curvature import Draws, hessian_times
from autotune_plugins.optimizers.oasis import OASIS
from autotune_plugins.optimizers.polynomial_preconditioning import (
    PolynomialPreconditioner,
    lanczos,
)
from autotune_plugins.optimizers.sam import SAM
from autotune_plugins.optimizers.sania import SANIA, polyak_size
from autotune_plugins.optimizers.sania_hutchinson import HutchinsonSANIA
from autotune_plugins.optimizers.tag import TAG

STEPS = 50
FACTORS = (1.0, 0.5, 2.0, 1.5)
CLOSURES = [SAM, SANIA, HutchinsonSANIA, OASIS, PolynomialPreconditioner]


def network() -> nn.Sequential:
    torch.manual_seed(11)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()


@cache
def batch(step):
    generator = torch.Generator().manual_seed(40 + step)
    inputs = torch.randn(8, 3, dtype=torch.float64, generator=generator)
    return inputs, torch.randint(0, 3, (8,), generator=generator)


def loss_at(flat, step):
    """The network's loss as a function of all its numbers, matrices first as in the groups."""
    w1, w2, b1, b2 = flat.split([12, 12, 4, 3])
    inputs, targets = batch(step)
    hidden = torch.tanh(inputs @ w1.view(4, 3).T + b1)
    return functional.cross_entropy(hidden @ w2.view(3, 4).T + b2, targets)


def flat(model):
    w1, b1, w2, b2 = [p.detach().flatten() for p in model.parameters()]
    return torch.cat([w1, w2, b1, b2])


def slope(point, step):
    return torch.func.grad(loss_at)(point, step)


def hessian(point, step):
    batch(step)  # drawn before the map over directions, which allows no random numbers
    return torch.func.hessian(loss_at)(point, step)


def closure_of(model, step, graph=False):
    def closure():
        model.zero_grad()
        inputs, targets = batch(step)
        loss = functional.cross_entropy(model(inputs), targets)
        loss.backward(create_graph=graph)
        return loss

    return closure


def take_steps(plugin, model, optimizer, steps):
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    for step in steps:
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * FACTORS[step % 4]
        closure = closure_of(model, step, "second_order" in plugin.needs)
        if "loss" in plugin.needs:
            loss = closure().item()
            optimizer.step(lambda loss=loss: loss)
        else:
            optimizer.step(closure)
    model.zero_grad()


def trained(plugin, configuration, steps=STEPS):
    torch.manual_seed(3)
    model = network()
    built = plugin(configuration).build(list(model.named_parameters()))
    torch.manual_seed(3)
    take_steps(plugin, model, built, range(steps))
    return flat(model)


def rates(rate):
    return [(step, rate * FACTORS[step % 4]) for step in range(STEPS)]


def assert_same(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)
    assert (ours - flat(network())).abs().max() > 0.01


def test_sam_equals_the_formula_around_sgd() -> None:
    base = {"name": "sgd", "learning_rate": 0.1, "momentum": 0.8, "weight_decay": 0.02}
    decayed = torch.tensor([0.02] * 24 + [0.0] * 7, dtype=torch.float64)
    point, velocity = flat(network()), None
    for step, rate in rates(0.1):
        g = slope(point, step)
        sharp = slope(point + 0.3 * g / g.norm(), step) + decayed * point
        velocity = sharp if velocity is None else 0.8 * velocity + sharp
        point = point - rate * velocity
    assert_same(trained(SAM, {"rho": 0.3, "base": base}), point)


def test_sam_equals_the_library_around_adamw() -> None:
    theirs = network()
    matrices = [p for p in theirs.parameters() if p.ndim == 2]
    vectors = [p for p in theirs.parameters() if p.ndim == 1]
    oracle = pytorch_optimizer.SAM(
        [
            {"params": matrices, "weight_decay": 0.05},
            {"params": vectors, "weight_decay": 0.0},
        ],
        torch.optim.AdamW,
        rho=0.2,
        lr=0.01,
    )
    for step, rate in rates(0.01):
        for group in oracle.param_groups:
            group["lr"] = rate
        closure = closure_of(theirs, step)
        closure()
        oracle.step(closure)
    base = {
        "name": "adamw",
        "learning_rate": 0.01,
        "beta1": 0.9,
        "beta2": 0.999,
        "epsilon": 1e-8,
        "weight_decay": 0.05,
    }
    ours = trained(SAM, {"rho": 0.2, "base": base})
    # It takes the norm in float32.
    torch.testing.assert_close(ours, flat(theirs), rtol=1e-6, atol=1e-8)


def test_a_sharpness_aware_step_on_large_half_precision_gradients() -> None:
    weight = nn.Parameter(torch.zeros(4, dtype=torch.float16))
    seen = []

    def closure() -> torch.Tensor:
        seen.append(weight.detach().clone())
        weight.grad = torch.full((4,), 60000.0, dtype=torch.float16)
        return torch.zeros(())

    configuration = SAM.space().complete({"rho": 0.5})
    SAM(configuration).build([("weight", weight)]).step(closure)
    assert seen[1].tolist() == pytest.approx([0.25] * 4, abs=1e-3)


@pytest.mark.parametrize("variant", ["adam_sqr", "adagrad_sqr", "adam", "adagrad"])
def test_sania_equals_the_formula(variant) -> None:
    chosen = {"name": variant, "beta2": 0.9} if "adam" in variant else {"name": variant}
    base_rate = 0.1 if variant == "adam_sqr" else 0.4
    configuration = {"variant": chosen, "learning_rate": base_rate, "epsilon": 1e-3}
    point, squares, sizes = flat(network()), 0.0, []
    for step, rate in rates(base_rate):
        g, f = slope(point, step), loss_at(point, step)
        if "adam" in variant:
            squares = 0.9 * squares + 0.1 * g**2
            b = (squares / (1 - 0.9 ** (step + 1))).clamp(min=1e-3)
        else:
            squares = squares + g**2
            b = squares.clamp(min=1e-3)
        b = b if variant.endswith("sqr") else b.sqrt()
        q = (g * g / b).sum()
        sizes.append(1.0 if 2 * f > q else float(1 - (1 - 2 * f / q).sqrt()))
        point = point - rate * sizes[-1] * g / b
    assert min(sizes) < 1.0
    assert_same(trained(SANIA, configuration), point)


@pytest.mark.parametrize("every", [1, 3])
def test_sania_with_hutchinsons_diagonal_equals_the_formula(every) -> None:
    configuration = {"beta2": 0.9, "epsilon": 0.02, "hessian_update_every": every}
    ours = trained(HutchinsonSANIA, {**configuration, "learning_rate": 0.3})
    point, diagonal, sizes = flat(network()), None, []
    torch.manual_seed(3)
    for step, rate in rates(0.3):
        g, f = slope(point, step), loss_at(point, step)
        if step % every == 0:
            parts = [torch.empty(n, dtype=torch.float64).bernoulli_(0.5) for n in (12, 12, 4, 3)]
            z = torch.cat(parts) * 2 - 1
            estimate = z * (hessian(point, step) @ z)
            diagonal = estimate if diagonal is None else 0.9 * diagonal + 0.1 * estimate
        b = diagonal.abs().clamp(min=0.02)
        q = (g * g / b).sum()
        sizes.append(1.0 if 2 * f > q else float(1 - (1 - 2 * f / q).sqrt()))
        point = point - rate * sizes[-1] * g / b
    assert min(sizes) < 1.0
    torch.testing.assert_close(ours, point, rtol=1e-6, atol=1e-9)


def test_polyak_size_stops_at_the_optimum() -> None:
    assert polyak_size(0.0, 1.0) == 0.0
    assert polyak_size(-0.1, 1.0) == 0.0
    assert polyak_size(0.6, 1.0) == 1.0
    assert polyak_size(0.5, 1.0) == pytest.approx(1.0)
    assert polyak_size(0.18, 1.0) == pytest.approx(0.2)


OASIS_SETTINGS = {"initial_step_size": 0.02, "beta2": 0.9, "alpha": 0.05}


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("adaptive", [True, False])
def test_oasis_equals_the_formula(adaptive, every) -> None:
    configuration = {
        **OASIS_SETTINGS,
        "adaptive": adaptive,
        "learning_rate": 0.7 if adaptive else 0.05,
        "hessian_update_every": every,
    }
    ours = trained(OASIS, configuration)
    torch.manual_seed(3)
    point, previous, diagonal, eta, theta = flat(network()), None, None, 0.02, float("inf")
    bounds = 0
    torch.manual_seed(3)
    for step, rate in rates(configuration["learning_rate"]):
        g = slope(point, step)
        if step % every == 0:
            parts = [torch.empty(n, dtype=torch.float64).bernoulli_(0.5) for n in (12, 12, 4, 3)]
            z = torch.cat(parts) * 2 - 1
            estimate = z * (hessian(point, step) @ z)
            diagonal = estimate if diagonal is None else 0.9 * diagonal + 0.1 * estimate
        d = diagonal.abs().clamp(min=0.05)
        if adaptive and previous is not None:
            moved, bent = point - previous, g - slope(previous, step)
            growth = (1 + theta) ** 0.5 * eta
            bound = float((moved**2 * d).sum().sqrt() / (2 * (bent**2 / d).sum().sqrt()))
            bounds += bound < growth
            theta, eta = min(growth, bound) / eta, min(growth, bound)
        previous = point
        point = point - rate * (eta if adaptive else 1.0) * g / d
    assert not adaptive or 0 < bounds < STEPS
    assert_same(ours, point)


@pytest.mark.parametrize("degree", [0, 2, 5])
def test_polynomial_preconditioning_equals_the_formula(degree) -> None:
    configuration = {"degree": degree, "learning_rate": 0.2, "damping": 0.05}
    point = flat(network())
    for step, rate in rates(0.2):
        g, h = slope(point, step), hessian(point, step)
        powers = [g]
        for _ in range(degree):
            powers.append(h @ powers[-1] / powers[-1].norm())
        space, _ = torch.linalg.qr(torch.stack(powers, dim=1))
        values, vectors = torch.linalg.eigh(space.T @ h @ space)
        inner = vectors @ torch.diag(values.abs() + 0.05) @ vectors.T
        point = point - rate * space @ torch.linalg.solve(inner, space.T @ g)
    ours = trained(PolynomialPreconditioner, configuration)
    # The formula's powers are all but parallel at a high degree; Lanczos' vectors are not.
    torch.testing.assert_close(ours, point, rtol=1e-4 if degree == 5 else 1e-8, atol=1e-6)


def test_a_full_polynomial_is_newtons_step() -> None:
    """On a convex quadratic of n dimensions, degree n - 1 reaches the minimum at once."""
    root = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    curvature = root @ root.T + torch.eye(4, dtype=torch.float64)
    target = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    weight = nn.Parameter(torch.zeros(4, dtype=torch.float64))
    configuration = {"degree": 3, "learning_rate": 1.0, "damping": 1e-12}
    optimizer = PolynomialPreconditioner(configuration).build([("weight", weight)])

    def closure():
        weight.grad = None
        loss = (weight - target) @ curvature @ (weight - target) / 2
        loss.backward(create_graph=True)
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(weight.detach(), target)


def test_a_diverged_run_gives_nan_and_raises_nothing() -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = PolynomialPreconditioner().build([("weight", weight)])

    def closure():
        weight.grad = None
        loss = (weight * weight).sum() * float("inf")
        loss.backward(create_graph=True)
        return loss

    optimizer.step(closure)
    assert weight.isnan().all()


def test_lanczos_stops_where_the_space_ends() -> None:
    matrix = torch.diag(torch.tensor([1.0, 1.0, 2.0], dtype=torch.float64))
    start = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64) / 2**0.5
    basis, small = lanczos(lambda vector: matrix @ vector, start, 3)
    assert basis.shape == (2, 3)
    torch.testing.assert_close(torch.linalg.eigvalsh(small), torch.tensor([1.0, 2.0]).double())


def tag_update(tasks, current, g, base, counts):
    """The author's rule for one tensor: (m, v) by task."""
    m, v = tasks[current]
    m = 0.8 * m + 0.2 * g
    v = v + g**2 if base == "adagrad" else 0.9 * v + 0.1 * g**2
    tasks[current] = (m, v)
    if current == 0:
        total = v
    else:
        total = np.exp(-2.0) * v
        for earlier in range(current):
            past, variance = tasks[earlier]
            cosine = (m * past).sum() / np.linalg.norm(m) / np.linalg.norm(past)
            total = total + np.exp(-2.0 * cosine) * variance
    if base != "adam":
        return g / (np.sqrt(total) + 1e-6)
    n = counts[current]
    return (m / (1 - 0.8**n)) / (np.sqrt(total / (1 - 0.9**n)) + 1e-6)


TAG_CONFIGURATION = {"learning_rate": 0.02, "b": 2.0, "beta1": 0.8, "beta2": 0.9, "epsilon": 1e-6}


@pytest.mark.parametrize("base", ["rms", "adam", "adagrad"])
@pytest.mark.parametrize("piece", [12, 8])
def test_tag_equals_the_formula_over_three_tasks(base, piece, monkeypatch) -> None:
    monkeypatch.setattr(_foreach, "PIECE", piece)  # the tensor whole, or in two parts
    shape = (3, 4)
    weight = nn.Parameter(torch.ones(shape, dtype=torch.float64))
    optimizer = TAG({**TAG_CONFIGURATION, "base": base}).build([("weight", weight)])
    generator = torch.Generator().manual_seed(5)
    expected, tasks, counts = np.ones(shape), {}, {}
    for step in range(STEPS):
        task = step // 17
        if step in (17, 34):
            optimizer.begin_task()
        tasks.setdefault(task, (np.zeros(shape), np.zeros(shape)))
        counts[task] = counts.get(task, 0) + 1
        noise = torch.randn(shape, dtype=torch.float64, generator=generator)
        weight.grad = noise + (1 - task)
        optimizer.step()
        expected -= 0.02 * tag_update(tasks, task, weight.grad.numpy(), base, counts)
    torch.testing.assert_close(weight.detach(), torch.tensor(expected), rtol=1e-10, atol=1e-12)


def test_tag_shortens_steps_against_an_earlier_task() -> None:
    lengths = []
    for sign in (1.0, -1.0):
        weight = nn.Parameter(torch.zeros(4))
        optimizer = TAG(TAG_CONFIGURATION).build([("weight", weight)])
        for task_sign in (1.0, sign):
            weight.grad = torch.full((4,), task_sign)
            before = weight.detach().clone()
            optimizer.step()
            optimizer.begin_task()
        lengths.append((weight.detach() - before).norm().item())
    assert lengths[1] < 0.5 * lengths[0]


def test_tag_thaws_bit_for_bit_in_its_second_task() -> None:
    def grown(freeze):
        weight = nn.Parameter(torch.ones(3, 2))
        plugin = TAG({**TAG_CONFIGURATION, "base": "adam"})
        optimizer = plugin.build([("weight", weight)])
        for step in range(8):
            if step == 4:
                optimizer.begin_task()
            if step == freeze:
                state = through_a_file(optimizer.state_dict())
                optimizer = plugin.build([("weight", weight)])
                optimizer.load_state_dict(state)
            weight.grad = torch.sin(torch.arange(6.0).view(3, 2) + step)
            optimizer.step()
        return weight.detach()

    assert torch.equal(grown(6), grown(None))
    assert torch.equal(grown(4), grown(None))


@pytest.mark.parametrize("plugin", CLOSURES)
def test_thaws_bit_for_bit(plugin) -> None:
    def grown(freeze):
        torch.manual_seed(2)
        model = network()
        optimizer = plugin().build(list(model.named_parameters()))
        take_steps(plugin, model, optimizer, range(freeze))
        state = through_a_file(optimizer.state_dict())
        thawed = plugin().build(list(model.named_parameters()))
        thawed.load_state_dict(state)
        take_steps(plugin, model, thawed, range(freeze, 9))
        return flat(model)

    assert torch.equal(grown(1), grown(0))
    assert torch.equal(grown(5), grown(0))


@pytest.mark.parametrize("plugin", CLOSURES)
def test_without_any_gradient_nothing_moves(plugin) -> None:
    model = network()
    before = flat(model)
    loss = plugin().build(list(model.named_parameters())).step(lambda: torch.ones(()))
    assert float(loss) == 1.0
    assert torch.equal(flat(model), before)


@pytest.mark.parametrize("plugin", CLOSURES)
def test_a_rate_of_zero_moves_nothing(plugin) -> None:
    model = network()
    optimizer = plugin().build(list(model.named_parameters()))
    take_steps(plugin, model, optimizer, range(2))
    before = flat(model)
    for group in optimizer.param_groups:
        group["initial_lr"] = 0.0
    take_steps(plugin, model, optimizer, range(2, 5))
    assert torch.equal(flat(model), before)


@pytest.mark.parametrize("plugin", CLOSURES)
def test_says_that_it_needs_a_closure(plugin) -> None:
    optimizer = plugin().build(list(network().named_parameters()))
    with pytest.raises(RuntimeError, match=r"needs step\(closure\); got no closure"):
        optimizer.step()


@pytest.mark.parametrize("plugin", CLOSURES)
def test_lowers_the_loss_in_the_loop_through_attention(plugin, tmp_path) -> None:
    """With accumulated gradients, clipping, dropout, and a bench whose attention has fast
    kernels without second derivatives."""
    bench = laboratory.BENCHES[1]
    # Polyak's step is long for a noisy gradient.
    chosen = {"learning_rate": 0.2} if plugin in (SANIA, HutchinsonSANIA) else {}
    configuration = laboratory.trial(plugin, {**plugin.space().default(), **chosen}, bench)
    run = trajectories.opened(
        plugin, bench, {**configuration, "gradient_clip_norm": 1.0}, 1, tmp_path
    )
    losses = [run.train().get("training_loss") for _ in range(60)]
    losses = [loss for loss in losses if loss is not None]
    assert np.mean(losses[-6:]) < 0.7 * np.mean(losses[:4])


def test_oasis_compares_gradients_under_one_dropout_mask() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 3)).double()
    optimizer = OASIS({"learning_rate": 1.0}).build(list(model.named_parameters()))
    inputs, targets = batch(0)
    masks = []
    model[1].register_forward_hook(lambda module, given, out: masks.append(out == 0))

    def closure():
        model.zero_grad()
        loss = functional.cross_entropy(model(inputs), targets)
        loss.backward(create_graph=True)
        return loss

    for _ in range(3):
        optimizer.step(closure)
    once, second, again, third, third_again = masks
    assert torch.equal(second, again)
    assert torch.equal(third, third_again)
    assert not torch.equal(second, third)
    assert not torch.equal(once, second)


def test_draws_come_again_and_go_on() -> None:
    torch.manual_seed(0)
    draws = Draws([torch.zeros(1)])
    first = torch.rand(3)
    with draws.again():
        assert torch.equal(torch.rand(3), first)
    after = torch.rand(3)
    torch.manual_seed(0)
    torch.rand(3)
    assert torch.equal(torch.rand(3), after)


def test_hessian_of_what_is_straight_is_zero() -> None:
    weight, other = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    slopes = torch.autograd.grad(
        3 * weight.sum() + (other**2).sum(), [weight, other], create_graph=True
    )
    products = hessian_times(slopes, [weight, other], [torch.ones(2), torch.ones(2)])
    assert torch.equal(products[0], torch.zeros(2))
    assert torch.equal(products[1], torch.full((2,), 2.0))
    straight = torch.autograd.grad(3 * weight.sum(), [weight], create_graph=True)
    assert torch.equal(hessian_times(straight, [weight], [torch.ones(2)])[0], torch.zeros(2))

"""Muon, COSMOS and SOAP against torch, the library, and their formulas written out in NumPy."""

import numpy as np
import pytest
import pytorch_optimizer
import torch
from stepping import (
    FACTORS,
    assert_close,
    frozen_at,
    gradient,
    parameters,
    state_bytes,
    take_steps,
    values,
)
from torch import nn

from autotune.plugins import ModelInfo
from autotune_plugins.optimizers import _orthogonal
from autotune_plugins.optimizers._orthogonal import newton_schulz
from autotune_plugins.optimizers.cosmos import COSMOS
from autotune_plugins.optimizers.muon import Muon
from autotune_plugins.optimizers.soap import SOAP

STEPS = 50
PLUGINS = [Muon, COSMOS, SOAP]
MATRICES = {"wide.weight": (5, 9), "tall.weight": (9, 4), "square.weight": (6, 6)}


def gradients_of(name, shapes):
    return [gradient(name, step, shapes).numpy() for step in range(STEPS)]


def rates(rate):
    return [rate * FACTORS[step % 4] for step in range(STEPS)]


def orthogonalised(x):
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / max(np.linalg.norm(x), 1e-7)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if tall else x


def muon(weight, gradients, nesterov):
    buffer = 0.0
    for g, rate in zip(gradients, rates(0.02), strict=True):
        g = g.reshape(len(g), -1)
        buffer = 0.9 * buffer + g
        direction = g + 0.9 * buffer if nesterov else buffer
        size = 0.2 * max(g.shape) ** 0.5
        step = (rate * size * orthogonalised(direction)).reshape(weight.shape)
        weight = weight * (1 - rate * 0.1) - step
    return weight


@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_equals_the_formula(nesterov) -> None:
    shapes = {**MATRICES, "kernel.weight": (3, 2, 2, 2)}
    configuration = {"learning_rate": 0.02, "momentum": 0.9, "nesterov": nesterov}
    named = parameters(shapes)
    start = values(named)
    take_steps(named, Muon(configuration).build(named), range(STEPS), shapes)
    expected = {n: muon(v.numpy(), gradients_of(n, shapes), nesterov) for n, v in start.items()}
    assert_close(values(named), expected)


def test_muon_equals_torch_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which multiplies in bfloat16 on any processor."""
    monkeypatch.setattr(_orthogonal, "has_bfloat16", lambda device: True)
    ours, theirs = parameters(MATRICES, torch.float32), parameters(MATRICES, torch.float32)
    configuration = {"learning_rate": 0.02, "momentum": 0.95, "weight_decay": 0.1}
    oracle = torch.optim.Muon(
        [p for _, p in theirs],
        lr=0.02,
        momentum=0.95,
        weight_decay=0.1,
        adjust_lr_fn="match_rms_adamw",
    )
    take_steps(ours, Muon(configuration).build(ours), range(STEPS), MATRICES)
    take_steps(theirs, oracle, range(STEPS), MATRICES)
    assert_close(values(ours), values(theirs), rtol=1e-5, atol=1e-6)


def test_newton_schulz_nears_the_orthogonal_factor() -> None:
    for shape in ((8, 12), (12, 8)):
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(3)).double()
        sizes = torch.linalg.svdvals(newton_schulz(matrix))
        assert sizes.min() > 0.6
        assert sizes.max() < 1.25
        assert (
            torch.linalg.norm(newton_schulz(matrix.float()).double() - newton_schulz(matrix)) < 0.1
        )


@pytest.mark.parametrize(("fast", "digits"), [(True, 0.1), (False, 1e-4)], ids=["has", "has not"])
def test_newton_schulz_uses_bfloat16_where_the_processor_has_it(monkeypatch, fast, digits) -> None:
    monkeypatch.setattr(_orthogonal, "has_bfloat16", lambda device: fast)
    matrix = torch.randn(24, 16, generator=torch.Generator().manual_seed(3))
    found, exact = newton_schulz(matrix), newton_schulz(matrix.double())
    assert found.dtype == torch.float32
    assert digits / 1e3 < torch.linalg.norm(found.double() - exact) < digits


def cosmos(weight, gradients):
    beta1, beta2, rank, gamma, eps = 0.9, 0.8, 3, 0.3, 1e-6
    mean = variance = 0.0
    size = np.sqrt(weight.size)

    def normalised(x):
        return size * x / (np.linalg.norm(x) + 1e-8)

    basis = spectrum = None
    for t, (g, rate) in enumerate(zip(gradients, rates(0.02 * 0.25), strict=True), start=1):
        mean = beta1 * mean + (1 - beta1) * g
        if basis is None:
            basis = np.linalg.svd(g)[2].T[:, :rank]
            covariance = (1 - beta2) * g.T @ g
        else:
            old = basis
            image = beta2 * old @ spectrum + (1 - beta2) * g.T @ g @ old
            basis = np.linalg.qr(image)[0]
            covariance = beta2 * old @ spectrum @ old.T + (1 - beta2) * g.T @ g
        spectrum = basis.T @ covariance @ basis
        variance = beta2 * variance + (1 - beta2) * (g @ basis) ** 2
        inside = (mean @ basis / (1 - beta1**t)) / (np.sqrt(variance / (1 - beta2**t)) + eps)
        outside = normalised(orthogonalised(mean - mean @ basis @ basis.T))
        weight = weight * (1 - rate * 0.01)
        weight = weight - rate * normalised(inside @ basis.T + gamma * outside)
    return weight


def test_cosmos_equals_the_formula() -> None:
    configuration = {
        "learning_rate": 0.02,
        "learning_rate_ratio": 0.25,
        "rank": 3,
        "beta1": 0.9,
        "beta2": 0.8,
        "gamma": 0.3,
        "epsilon": 1e-6,
        "weight_decay": 0.01,
    }
    named = parameters(MATRICES)
    start = values(named)
    take_steps(named, COSMOS(configuration).build(named), range(STEPS), MATRICES)
    expected = {name: cosmos(v.numpy(), gradients_of(name, MATRICES)) for name, v in start.items()}
    assert_close(values(named), expected, rtol=1e-8, atol=1e-10)


def test_cosmos_adds_no_noise_where_nothing_is_left_outside_its_basis() -> None:
    """At full rank the weight of the Muon part is without effect."""
    ends = []
    for gamma in (0.1, 1.0):
        named = parameters({"tall.weight": (9, 4)})
        configuration = {"learning_rate": 0.05, "rank": 64, "gamma": gamma}
        optimizer = COSMOS(configuration).build(named)
        take_steps(named, optimizer, range(10), {"tall.weight": (9, 4)})
        ends.append(values(named))
    assert_close(ends[0], ends[1])


def soap(weight, gradients, frequency):
    """The paper's algorithm 3 with everything kept in the original coordinates but the
    variance; the columns of a basis sorted before each decomposition, as in the author code."""
    beta1, beta2, eps = 0.9, 0.8, 1e-8
    first, *others = gradients
    left, right = (1 - beta2) * first @ first.T, (1 - beta2) * first.T @ first
    ql, qr = np.linalg.eigh(left)[1][:, ::-1], np.linalg.eigh(right)[1][:, ::-1]
    mean, variance = np.zeros_like(first), np.zeros_like(first)
    for t, (g, rate) in enumerate(zip(others, rates(0.02)[1:], strict=True), start=1):
        turned = ql.T @ g @ qr
        mean = beta1 * mean + (1 - beta1) * g
        variance = beta2 * variance + (1 - beta2) * turned**2
        size = rate * np.sqrt(1 - beta2**t) / (1 - beta1**t)
        direction = (ql.T @ mean @ qr) / (np.sqrt(variance) + eps)
        weight = (weight - size * ql @ direction @ qr.T) * (1 - rate * 0.05)
        left = beta2 * left + (1 - beta2) * g @ g.T
        right = beta2 * right + (1 - beta2) * g.T @ g
        if t % frequency == 0:
            rows = np.argsort(-np.diag(ql.T @ left @ ql), kind="stable")
            columns = np.argsort(-np.diag(qr.T @ right @ qr), kind="stable")
            variance = variance[rows][:, columns]
            ql = np.linalg.qr(left @ ql[:, rows])[0]
            qr = np.linalg.qr(right @ qr[:, columns])[0]
    return weight


SOAP_CONFIGURATION = {
    "learning_rate": 0.02,
    "beta1": 0.9,
    "beta2": 0.8,
    "precondition_frequency": 7,
    "epsilon": 1e-8,
    "weight_decay": 0.05,
}


def test_soap_equals_the_formula_over_several_turns() -> None:
    """Of generic gradients: those of low rank leave eigenvectors open, and here all count."""
    named = parameters(MATRICES)
    start = values(named)
    optimizer = SOAP(SOAP_CONFIGURATION).build(named)
    take_steps(named, optimizer, range(STEPS), MATRICES)
    # Eigenvectors of the rank that the first gradient has are determined up to a sign, which
    # cancels; a wide matrix's other right ones are not.
    square = {"square.weight": start["square.weight"]}
    expected = {n: soap(v.numpy(), gradients_of(n, MATRICES), 7) for n, v in square.items()}
    assert_close({"square.weight": values(named)["square.weight"]}, expected, rtol=1e-8, atol=1e-10)


def test_soap_equals_the_library() -> None:
    """Kernels, vectors and matrices; its decompositions are in float32."""
    ours, theirs = parameters(), parameters()
    groups = [
        {"params": [p for n, p in theirs if p.ndim > 1], "weight_decay": 0.05},
        {"params": [p for n, p in theirs if p.ndim == 1], "weight_decay": 0.0},
    ]
    oracle = pytorch_optimizer.SOAP(
        groups, lr=0.02, betas=(0.9, 0.8), precondition_frequency=7, eps=1e-8
    )
    optimizer = SOAP(SOAP_CONFIGURATION).build(ours)
    take_steps(ours, optimizer, range(7))
    take_steps(theirs, oracle, range(7))
    assert_close(values(ours), values(theirs), rtol=1e-9, atol=1e-11)
    take_steps(ours, optimizer, range(7, STEPS))
    take_steps(theirs, oracle, range(7, STEPS))
    assert_close(values(ours), values(theirs), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("plugin", "configuration"),
    [(Muon, {}), (COSMOS, {"rank": 8}), (SOAP, {"precondition_frequency": 5})],
)
def test_thaws_bit_for_bit_wherever_it_is_frozen(plugin, configuration, dtype) -> None:
    ends = [
        frozen_at(plugin(configuration), freeze, 12, dtype=dtype) for freeze in (0, 1, 5, 6, 11)
    ]
    (first, optimizer), *others = ends
    state = optimizer.state_dict()["state"]
    for weights, thawed in others:
        assert all(torch.equal(value, weights[name]) for name, value in first.items())
        for index, entries in thawed.state_dict()["state"].items():
            assert entries.keys() == state[index].keys()
            for key, value in entries.items():
                assert value.dtype == state[index][key].dtype
                assert torch.equal(value, state[index][key]), key


def test_state_of_half_precision_is_float32() -> None:
    for plugin in PLUGINS:
        named = parameters(dtype=torch.bfloat16)
        optimizer = plugin().build(named)
        take_steps(named, optimizer, range(3))
        for state in optimizer.state.values():
            assert {t.dtype for key, t in state.items() if key != "step"} == {torch.float32}


def test_state_is_as_small_as_the_papers_say() -> None:
    m, n, rank = 24, 40, 8
    shapes = {"wide.weight": (m, n)}
    sizes = {}
    for plugin, configuration in ((Muon, {}), (COSMOS, {"rank": rank}), (SOAP, {})):
        named = parameters(shapes, torch.float32)
        optimizer = plugin(configuration).build(named)
        take_steps(named, optimizer, range(2), shapes)
        sizes[plugin.name] = state_bytes(optimizer, named[0][1])
    assert sizes["muon"] == 4 * m * n
    assert sizes["cosmos"] == 4 * (m * n + (m + n) * rank + rank**2) + 8
    assert sizes["soap"] == 4 * (2 * m * n + 2 * m**2 + 2 * n**2) + 8


def test_muon_serves_a_model_of_kernels_and_cosmos_does_not() -> None:
    info = ModelInfo(False, {"Conv2d": 1}, {"kernel.weight": (3, 2, 2, 2), "kernel.bias": (3,)})
    assert Muon.supports(info) is None
    assert "no weight matrix" in COSMOS.supports(info)
    assert SOAP.supports(info) is None


@pytest.mark.parametrize("plugin", PLUGINS)
def test_a_vanishing_gradient_changes_nothing_into_nan(plugin) -> None:
    named = parameters()
    optimizer = plugin().build(named)
    for _ in range(3):
        for _, parameter in named:
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    assert all(parameter.isfinite().all() for _, parameter in named)


@pytest.mark.parametrize("plugin", PLUGINS)
def test_a_parameter_whose_gradient_comes_late_joins_in(plugin) -> None:
    named = parameters()
    optimizer = plugin({"weight_decay": 0.0} if plugin is COSMOS else {}).build(named)
    take_steps(named[:2], optimizer, range(4))
    late = named[2][1]
    before = late.detach().clone()
    take_steps(named, optimizer, range(4, 7))
    assert not torch.equal(before, late)


@pytest.mark.parametrize("plugin", PLUGINS)
def test_sparse_gradients_are_refused(plugin) -> None:
    table = nn.Embedding(4, 2, sparse=True)
    optimizer = plugin().build(list(table.named_parameters()))
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse gradient of shape"):
        optimizer.step()

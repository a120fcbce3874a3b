"""First-order and layer-wise optimizers, step by step in float64 against rules written plainly,
torch and pytorch_optimizer; and what a rule alone does not show: half precision, freezing."""

from __future__ import annotations

import io
from functools import partial

import numpy as np
import plain_rules
import pytest
import pytorch_optimizer
import torch
from torch import nn

from autotune.plugins import discovery
from autotune.plugins.conformance import check_all
from autotune_plugins.optimizers import _adam, _foreach, _momentum, adafactor, adagrad, lion

NAMES = [
    "sgd", "adamw", "lion", "adabelief", "adabound", "adamod", "adafactor", "adam_cm", "adamp",
    "sgdp", "adaptive_braking", "lamb", "lars", "tvlars", "sgd_sai", "perpgrad", "nadam", "radam",
    "adan", "prodigy", "schedule_free_adamw", "adagrad",
    "adagrad_norm",
]  # fmt: skip
STEPS = 50
SHAPES = {"wide": (3, 700), "tall": (400, 5), "kernel": (6, 3, 3, 3), "vector": (37,)}
FACTORS = [1.0, 0.5, 2.0, 0.7]
"""A schedule as the engine applies it: from outside, to every group's rate."""


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch):
    """So that tensors of this size are cut as large ones are."""
    monkeypatch.setattr(_foreach, "PIECE", 256)
    monkeypatch.setattr(adafactor, "PIECE", 256)


def build(name, parameters, **configuration):
    return discovery.get("optimizer", name)(configuration).build(parameters)


def starts(shapes=SHAPES):
    generator = torch.Generator().manual_seed(0)
    return {
        key: torch.randn(shape, generator=generator, dtype=torch.float64)
        for key, shape in shapes.items()
    }


def gradient(key, step, shape):
    """Noise around a constant slope, of changing size."""
    generator = torch.Generator().manual_seed(1000 * step + sum(map(ord, key)))
    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    return (noise + 0.3) * (1 + step % 7)


def parameters_of(values):
    return [(f"{key}.weight", nn.Parameter(value.clone())) for key, value in values.items()]


def scale_rates(optimizer, factor):
    for group in optimizer.param_groups:
        base = group.setdefault("initial_lr", group["lr"])
        group["lr"] = base * factor


ADAM = {"beta1": 0.8, "beta2": 0.95, "epsilon": 1e-6, "weight_decay": 0.03}
PLAIN_ADAM = {"beta1": 0.8, "beta2": 0.95, "eps": 1e-6}
RADIAL = {"delta": 2.0, "weight_decay_ratio": 0.3}
PLAIN_RADIAL = {"delta": 2.0, "ratio": 0.3}

PLAIN = [
    *(
        (
            "adabound",
            {**ADAM, "learning_rate": 0.01, "final_learning_rate": 0.05, "gamma": 0.05,
             "amsbound": ams},
            {**PLAIN_ADAM, "lr": 0.01, "base": 0.01, "final": 0.05, "gamma": 0.05, "ams": ams},
        )
        for ams in (False, True)
    ),
    (
        "adamod",
        {**ADAM, "learning_rate": 0.01, "beta3": 0.9},
        {**PLAIN_ADAM, "lr": 0.01, "beta3": 0.9},
    ),
    # torch keeps the product of momenta in float32, and so is 1e-7 off
    (
        "nadam",
        {**ADAM, "learning_rate": 0.01, "momentum_decay": 0.01},
        {**PLAIN_ADAM, "lr": 0.01, "psi": 0.01},
    ),
    ("lamb", {**ADAM, "learning_rate": 0.01}, {**PLAIN_ADAM, "lr": 0.01}),
    (
        "lars",
        {"learning_rate": 0.5, "momentum": 0.8, "trust_coefficient": 0.02, "weight_decay": 0.03},
        {"lr": 0.5, "momentum": 0.8, "trust": 0.02},
    ),
    (
        "tvlars",
        {"learning_rate": 0.5, "momentum": 0.8, "trust_coefficient": 0.02, "weight_decay": 0.03,
         "alpha": 0.3, "decay_rate": 0.1, "delay_steps": 20, "floor": 0.05},
        {"lr": 0.5, "momentum": 0.8, "trust": 0.02, "alpha": 0.3, "rate": 0.1, "delay": 20,
         "floor": 0.05},
    ),
    (
        "sgd_sai",
        {"learning_rate": 1e-3, "momentum": 0.8, "weight_decay": 0.03},
        {"lr": 1e-3, "momentum": 0.8, "eps": 1e-8},
    ),
    *(
        (
            "adaptive_braking",
            {"learning_rate": 0.01, "momentum": 0.8, "rho": 0.7, "weight_decay": 0.03,
             "granularity": "filter" if by_filter else "tensor"},
            {"lr": 0.01, "momentum": 0.8, "rho": 0.7, "by_filter": by_filter},
        )
        for by_filter in (False, True)
    ),
    *(
        (
            "perpgrad",
            {**ADAM, "learning_rate": 0.01, "rescale": rescale},
            {**PLAIN_ADAM, "lr": 0.01, "rescale": rescale},
        )
        for rescale in (True, False)
    ),
    *(
        (
            "adamp",
            {**ADAM, **RADIAL, "learning_rate": 0.01, "nesterov": nesterov},
            {**PLAIN_ADAM, **PLAIN_RADIAL, "lr": 0.01, "nesterov": nesterov},
        )
        for nesterov in (True, False)
    ),
    *(
        (
            "sgdp",
            {**RADIAL, "learning_rate": 0.01, "momentum": 0.8, "weight_decay": 0.03,
             "nesterov": nesterov},
            {**PLAIN_RADIAL, "lr": 0.01, "momentum": 0.8, "nesterov": nesterov},
        )
        for nesterov in (True, False)
    ),
    (
        "schedule_free_adamw",
        {**ADAM, "learning_rate": 0.01, "beta1": 0.9},
        {**PLAIN_ADAM, "lr": 0.01, "beta1": 0.9},
    ),
]  # fmt: skip
RULES = {"schedule_free_adamw": plain_rules.schedule_free}


@pytest.mark.parametrize(
    ("name", "configuration", "settings"), PLAIN, ids=[f"{i}-{c[0]}" for i, c in enumerate(PLAIN)]
)
def test_follows_the_rule_as_printed(name, configuration, settings) -> None:
    values = starts()
    parameters = parameters_of(values)
    optimizer = build(name, parameters, **configuration)
    rule = RULES.get(name) or getattr(plain_rules, name)
    rules = {}
    for key, value in values.items():
        decay = 0.03 if value.ndim > 1 else 0.0
        rules[key] = plain_rules.adam_like(rule, value.numpy().copy(), **settings, decay=decay)
        next(rules[key])
    for step in range(STEPS):
        factor = FACTORS[step % 4]
        scale_rates(optimizer, factor)
        for (_, parameter), key in zip(parameters, values, strict=True):
            parameter.grad = gradient(key, step, parameter.shape)
        optimizer.step()
        for (_, parameter), key in zip(parameters, values, strict=True):
            expected = rules[key].send((gradient(key, step, parameter.shape).numpy(), factor))
            np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-10, atol=1e-12)
    assert all(
        (p - values[k]).abs().max() > 1e-4 for (_, p), k in zip(parameters, values, strict=True)
    )


WHOLE = [
    (
        "adam_cm",
        {**ADAM, "learning_rate": 0.01, "capacity": 5, "decay": retention},
        {**PLAIN_ADAM, "lr": 0.01, "capacity": 5, "retention": retention},
    )
    for retention in (0.7, 0.99)
] + [
    (
        "prodigy",
        {**ADAM, "d_coefficient": 2.0, "initial_d": 1e-4, "bias_correction": option,
         "safeguard_warmup": option},
        {**PLAIN_ADAM, "lr": 1.0, "coefficient": 2.0, "d0": 1e-4, "correct": option,
         "safe": option},
    )
    for option in (True, False)
]  # fmt: skip


@pytest.mark.parametrize(("name", "configuration", "settings"), WHOLE)
def test_follows_the_rule_over_all_parameters_at_once(name, configuration, settings) -> None:
    """Rules with one number for the whole model: the plain one sees it as one long vector."""
    values = {"first": starts()["wide"], "second": starts()["tall"]}
    parameters = parameters_of(values)
    optimizer = build(name, parameters, **configuration)
    long = np.concatenate([value.numpy().ravel() for value in values.values()])
    rule = plain_rules.adam_like(getattr(plain_rules, name), long, **settings, decay=0.03)
    next(rule)
    for step in range(STEPS):
        scale_rates(optimizer, FACTORS[step % 4])
        pieces = []
        for (_, parameter), key in zip(parameters, values, strict=True):
            parameter.grad = gradient(key, step, parameter.shape)
            pieces.append(parameter.grad.numpy().ravel().copy())
        optimizer.step()
        expected = rule.send((np.concatenate(pieces), FACTORS[step % 4]))
        found = np.concatenate([p.detach().numpy().ravel() for _, p in parameters])
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)
    if name == "prodigy":
        assert optimizer.param_groups[0]["d"] > 1e-4


LIBRARIES = {
    "radam": lambda groups: torch.optim.RAdam(
        groups, lr=0.01, betas=(0.8, 0.95), eps=1e-6, decoupled_weight_decay=True
    ),
    "adafactor": lambda groups: torch.optim.Adafactor(groups, lr=0.05, beta2_decay=-0.7, d=1.3),
    "adan": lambda groups: pytorch_optimizer.Adan(
        groups, lr=0.01, betas=(0.95, 0.9, 0.98), eps=1e-6, weight_decouple=False, foreach=False
    ),
    "adabelief": lambda groups: pytorch_optimizer.AdaBelief(
        groups, lr=0.01, betas=(0.8, 0.95), eps=1e-8, rectify=False, foreach=False
    ),
    "lion": lambda groups: pytorch_optimizer.Lion(
        groups, lr=0.01, betas=(0.95, 0.98), foreach=False
    ),
}  # fmt: skip
SETTINGS = {
    "radam": {**ADAM, "learning_rate": 0.01},
    "adafactor": {
        "learning_rate": 0.05, "decay_exponent": -0.7, "clip_threshold": 1.3, "weight_decay": 0.03,
    },
    "adan": {
        "learning_rate": 0.01, "beta1": 0.95, "beta2": 0.9, "beta3": 0.98, "epsilon": 1e-6,
        "weight_decay": 0.03,
    },
    "adabelief": {**ADAM, "learning_rate": 0.01, "epsilon": 1e-8},
    "lion": {"learning_rate": 0.01, "beta1": 0.95, "beta2": 0.98, "weight_decay": 0.03},
}  # fmt: skip


@pytest.mark.parametrize("name", LIBRARIES)
def test_equals_a_library(name) -> None:
    values = starts()
    ours, theirs = parameters_of(values), parameters_of(values)
    optimizer = build(name, ours, **SETTINGS[name])
    decayed = [p for _, p in theirs if p.ndim > 1]
    others = [p for _, p in theirs if p.ndim == 1]
    oracle = LIBRARIES[name](
        [{"params": decayed, "weight_decay": 0.03}, {"params": others, "weight_decay": 0.0}]
    )
    for step in range(STEPS):
        for one in (optimizer, oracle):
            scale_rates(one, FACTORS[step % 4])
        for parameters in (ours, theirs):
            for (_, parameter), key in zip(parameters, values, strict=True):
                parameter.grad = gradient(key, step, parameter.shape)
        optimizer.step()
        oracle.step()
        for (_, one), (_, other) in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_is_computed_in_float32_and_rounded_once(name) -> None:
    if name in ("sgd", "adamw"):
        pytest.skip("torch's own")
    values = {key: value.bfloat16() for key, value in starts({"a": (4, 90), "b": (7,)}).items()}
    low = parameters_of(values)
    high = parameters_of({key: value.float() for key, value in values.items()})
    optimizers = [build(name, low), build(name, high)]
    for (_, one), (_, other), key in zip(low, high, values, strict=True):
        one.grad = gradient(key, 0, one.shape).bfloat16()
        other.grad = one.grad.float()
    for optimizer in optimizers:
        optimizer.step()
    for (_, one), (_, other) in zip(low, high, strict=True):
        assert torch.equal(one, other.bfloat16())
        for value in optimizers[0].state[one].values():
            assert value.dtype in (torch.float32, torch.float64)


@pytest.mark.parametrize("name", NAMES)
def test_resumes_bit_for_bit_from_a_file_without_code(name) -> None:
    def run(parameters, optimizer, first, last):
        for step in range(first, last):
            for key, parameter in parameters:
                # the vector joins late, so that counts and memories differ
                if parameter.ndim > 1 or step > 2:
                    parameter.grad = gradient(key, step, parameter.shape).float()
            optimizer.step()

    values = {key: value.float() for key, value in starts().items()}
    whole = parameters_of(values)
    run(whole, build(name, whole), 0, 10)
    first = parameters_of(values)
    optimizer = build(name, first)
    run(first, optimizer, 0, 6)
    file = io.BytesIO()
    torch.save([optimizer.state_dict(), {key: p.detach() for key, p in first}], file)
    file.seek(0)
    state, weights = torch.load(file, weights_only=True)
    second = [(key, nn.Parameter(value)) for key, value in weights.items()]
    resumed = build(name, second)
    resumed.load_state_dict(state)
    run(second, resumed, 6, 10)
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(whole, second, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_leaves_the_gradients_alone(name) -> None:
    parameters = parameters_of(starts())
    optimizer = build(name, parameters)
    kept = []
    for key, parameter in parameters:
        parameter.grad = gradient(key, 0, parameter.shape)
        kept.append(parameter.grad.clone())
    optimizer.step()
    assert all(torch.equal(p.grad, g) for (_, p), g in zip(parameters, kept, strict=True))


def test_only_a_cpus_tensors_are_cut(monkeypatch) -> None:
    monkeypatch.setattr(_foreach, "PIECE", 8)
    counts = [
        len(list(_foreach.cut((torch.empty(4, 4, device=device),)))) for device in ("cpu", "meta")
    ]
    assert counts == [2, 1]


def test_pieces_make_no_difference(monkeypatch) -> None:
    """Elementwise rules and layer-wise ones alike, in whatever layout the weights lie."""
    for name in NAMES:
        results = []
        for size in (64, 1 << 20):
            monkeypatch.setattr(_foreach, "PIECE", size)
            monkeypatch.setattr(adafactor, "PIECE", size)
            parameters = parameters_of(starts())
            turned = nn.Parameter(starts()["tall"].t())
            optimizer = build(name, [*parameters, ("turned.weight", turned)])
            for step in range(4):
                for key, parameter in parameters:
                    parameter.grad = gradient(key, step, parameter.shape)
                turned.grad = gradient("turned", step, turned.shape)
                optimizer.step()
            results.append([*(p.detach() for _, p in parameters), turned.detach()])
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-13, msg=name)


@pytest.mark.parametrize("shape", [(6, 4), (3, 2, 6, 4)])
@pytest.mark.parametrize("size", [1e-12, 1.0, 1e5])
def test_adafactor_on_inputs_and_units_that_are_dead(shape, size) -> None:
    """In float32, where ``1 / 1e-30`` times a large mean overflows."""
    weight = nn.Parameter(torch.ones(shape))
    optimizer = build("adafactor", [("dead.weight", weight)])
    alive = gradient("dead", 0, shape).float()
    alive[..., 0], alive[..., 1, :] = 0.0, 0.0
    for _ in range(3):
        weight.grad = alive * size
        optimizer.step()
    assert weight.isfinite().all()
    moved = (weight - weight.detach()[..., 1:2, :]).abs() > 1e-6
    assert moved.any()
    assert not moved[..., 0].any()
    assert not moved[..., 1, :].any()


@pytest.mark.parametrize(
    "name", ["lamb", "adamp", "sgdp", "lars", "lion", "perpgrad", "prodigy", "adan", "adagrad"]
)
def test_the_fused_kernels_and_the_list_wise_ones_agree(monkeypatch, name) -> None:
    """The former serve a CPU, the latter other devices and layouts."""
    results, fused = [], []
    for allowed in (True, False):
        for module in (_adam, _momentum, adagrad, lion):
            answer = partial(fused_if, allowed, fused)
            monkeypatch.setattr(module, "can_fuse", answer)
        parameters = parameters_of(starts())
        optimizer = build(name, parameters)
        for step in range(6):
            scale_rates(optimizer, FACTORS[step % 4])
            for key, parameter in parameters:
                parameter.grad = gradient(key, step, parameter.shape)
            optimizer.step()
        results.append([parameter.detach() for _, parameter in parameters])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-13)
    assert set(fused) == {True, False}


def fused_if(allowed, told, lists) -> bool:
    told.append(allowed and _foreach.can_fuse(lists))
    return told[-1]


def test_a_scalar_is_trained_by_every_one() -> None:
    """A learned temperature: no layer to scale by, no standard deviation, no direction."""
    for name in NAMES:
        scalar = nn.Parameter(torch.tensor(2.0))
        optimizer = build(name, [("scale", scalar)])
        for _ in range(3):
            scalar.grad = torch.tensor(0.5)
            optimizer.step()
        assert 0 < (2.0 - scalar).item() < 5, name


def state_bytes(name, shape=(400, 300), **configuration) -> float:
    parameters = [("a.weight", nn.Parameter(torch.ones(shape)))]
    optimizer = build(name, parameters, **configuration)
    parameters[0][1].grad = torch.ones(shape)
    optimizer.step()
    size = parameters[0][1].numel()
    return sum(v.numel() * v.element_size() for v in optimizer.state[parameters[0][1]].values()) / (
        size
    )


@pytest.mark.parametrize(
    ("name", "configuration", "claimed"),
    [
        ("adamw", {}, 8),
        ("lion", {}, 4),
        ("sgd_sai", {}, 4),
        ("lars", {}, 4),
        ("lamb", {}, 8),
        ("adafactor", {}, 4 * 700 / 120_000),
        ("adam_cm", {"capacity": 5}, 8 + 5 * 4),
        ("schedule_free_adamw", {}, 8),
        ("prodigy", {}, 16),
    ],
)
def test_keeps_as_much_state_as_its_paper_says(name, configuration, claimed) -> None:
    assert state_bytes(name, **configuration) == pytest.approx(claimed, abs=0.01)


def test_schedule_free_is_judged_by_the_average_and_trains_on_at_the_weights() -> None:
    value = starts()["tall"]
    parameters = parameters_of({"a": value})
    optimizer = build("schedule_free_adamw", parameters)
    rule = plain_rules.adam_like(
        plain_rules.schedule_free, value.numpy(), lr=2.5e-3, beta1=0.9, beta2=0.999, eps=1e-8,
        decay=1e-2,
    )  # fmt: skip
    next(rule)
    parameter = parameters[0][1]
    for step in range(5):
        parameter.grad = gradient("a", step, value.shape)
        optimizer.step()
        rule.send((parameter.grad.numpy(), 1.0))
    training = parameter.detach().clone()
    optimizer.eval()
    averaged = rule.gi_frame.f_locals["memory"]["x"]
    np.testing.assert_allclose(parameter.detach().numpy(), averaged, rtol=1e-10)
    assert not torch.allclose(parameter, training, rtol=1e-6)
    with pytest.raises(RuntimeError, match=r"call train\(\) before"):
        optimizer.step()
    optimizer.train()
    torch.testing.assert_close(parameter.detach(), training, rtol=1e-10, atol=1e-12)


def test_adagrad_norm_adds_up_all_gradients_for_all_parameters() -> None:
    """One parameter has a gradient in every step, one not in the first and one not after it."""
    names = ("always", "late", "early")
    weights = {name: nn.Parameter(torch.zeros(2, dtype=torch.float64)) for name in names}
    optimizer = build("adagrad_norm", list(weights.items()), learning_rate=0.5)
    square, expected = 0.0, dict.fromkeys(names, 0.0)
    for step in range(4):
        idle = {0: "late", 3: ""}.get(step, "early")
        moving = [name for name in names if name != idle]
        for name in names:
            weights[name].grad = torch.full((2,), 3.0).double() if name in moving else None
        optimizer.step()
        square += 2 * 9.0 * len(moving)
        for name in moving:
            expected[name] -= 0.5 * 3.0 / square**0.5
    for name in names:
        assert weights[name].tolist() == pytest.approx([expected[name]] * 2), name


def test_adagrad_norm_of_large_half_precision_gradients() -> None:
    weight = nn.Parameter(torch.zeros(4, dtype=torch.float16))
    weight.grad = torch.full((4,), 60000.0, dtype=torch.float16)
    build("adagrad_norm", [("weight", weight)], learning_rate=0.5).step()
    assert weight.tolist() == pytest.approx([-0.25] * 4)


@pytest.fixture(scope="module")
def reports():
    found = [discovery.get("optimizer", name) for name in NAMES]
    return {report.name: report for report in check_all(found)}


@pytest.mark.parametrize("name", NAMES)
def test_conforms(reports, name) -> None:
    assert reports[name].ok, reports[name].failures
    assert not reports[name].skipped

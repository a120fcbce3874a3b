"""Each bundled optimizer against an independent implementation, step by step in float64."""

import io

import pytest
import pytorch_optimizer
import torch
from torch import nn

from autotune.plugins import PluginError
from autotune_plugins.optimizers._groups import is_decayed, parameter_groups
from autotune_plugins.optimizers.adabelief import AdaBelief
from autotune_plugins.optimizers.adamw import AdamW
from autotune_plugins.optimizers.lion import Lion
from autotune_plugins.optimizers.sgd import SGD

PLUGINS = [SGD, AdamW, Lion, AdaBelief]
STEPS = 25


def network() -> nn.Sequential:
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 5),
    ).double()
    # before a norm its gradient would be nothing but rounding, whose sign Lion would follow
    model[0].bias.requires_grad_(False)
    return model


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    inputs = torch.randn(6, 1, 4, 4, dtype=torch.float64, generator=generator)
    return inputs, torch.randint(0, 5, (6,), generator=generator)


def rate_factor(step: int) -> float:
    """A schedule as the engine applies it: from outside, to every group's rate."""
    return [1.0, 0.5, 0.0, 2.0][step % 4]


def train(model, optimizer, first: int, last: int) -> None:
    base = [group.setdefault("base_lr", group["lr"]) for group in optimizer.param_groups]
    for step in range(first, last):
        for group, rate in zip(optimizer.param_groups, base, strict=True):
            group["lr"] = rate * rate_factor(step)
        inputs, targets = batch(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def groups_by_hand(model: nn.Sequential, weight_decay: float) -> list[dict]:
    """Matrices and kernels are decayed; written out, not computed with the tested function."""
    conv, norm, linear = model[0], model[1], model[4]
    return [
        {"params": [conv.weight, linear.weight], "weight_decay": weight_decay},
        {
            "params": [conv.bias, norm.weight, norm.bias, linear.bias],
            "weight_decay": 0.0,
        },
    ]


def adamw_reference(groups):
    return torch.optim.AdamW(groups, lr=2e-3, betas=(0.8, 0.98), eps=1e-7, foreach=False)


def sgd_reference(momentum, nesterov):
    return lambda groups: torch.optim.SGD(
        groups, lr=0.05, momentum=momentum, nesterov=nesterov, foreach=False, fused=False
    )


def lion_reference(groups):
    return pytorch_optimizer.Lion(groups, lr=1e-3, betas=(0.95, 0.98), foreach=False)


def adabelief_reference(groups):
    return pytorch_optimizer.AdaBelief(
        groups, lr=2e-3, betas=(0.8, 0.98), eps=1e-12, rectify=False, foreach=False
    )


CASES = [
    pytest.param(
        SGD,
        {"learning_rate": 0.05, "momentum": 0.9, "nesterov": nesterov, "weight_decay": 0.03},
        sgd_reference(0.9, nesterov),
        id=f"sgd-nesterov-{nesterov}",
    )
    for nesterov in (True, False)
] + [
    pytest.param(
        SGD,
        {"learning_rate": 0.05, "momentum": 0.0, "nesterov": True, "weight_decay": 0.03},
        sgd_reference(0.0, False),
        id="sgd-without-momentum",
    ),
    pytest.param(
        AdamW,
        {
            "learning_rate": 2e-3,
            "beta1": 0.8,
            "beta2": 0.98,
            "epsilon": 1e-7,
            "weight_decay": 0.03,
        },
        adamw_reference,
        id="adamw",
    ),
    pytest.param(
        Lion,
        {"learning_rate": 1e-3, "beta1": 0.95, "beta2": 0.98, "weight_decay": 0.03},
        lion_reference,
        id="lion",
    ),
    pytest.param(
        AdaBelief,
        {
            "learning_rate": 2e-3,
            "beta1": 0.8,
            "beta2": 0.98,
            "epsilon": 1e-12,
            "weight_decay": 0.03,
        },
        adabelief_reference,
        id="adabelief",
    ),
]


@pytest.mark.parametrize(("plugin", "configuration", "reference"), CASES)
def test_equals_an_independent_implementation(plugin, configuration, reference) -> None:
    ours, theirs = network(), network()
    optimizer = plugin(configuration).build(list(ours.named_parameters()))
    oracle = reference(groups_by_hand(theirs, 0.03))
    start = weights(ours)
    for step in range(STEPS):
        train(ours, optimizer, step, step + 1)
        train(theirs, oracle, step, step + 1)
        # Rounding shows where a gradient is as small as epsilon, on some processors by 2e-12.
        torch.testing.assert_close(weights(ours), weights(theirs), rtol=1e-10, atol=1e-11)
    assert (weights(ours) - start).abs().max() > 1e-3


def test_adabelief_follows_the_paper_by_hand() -> None:
    weight = nn.Parameter(torch.tensor([[1.0, -2.0]], dtype=torch.float64))
    settings = {"learning_rate": 0.1, "beta1": 0.9, "beta2": 0.99, "epsilon": 1e-8}
    optimizer = AdaBelief({**settings, "weight_decay": 0.2}).build([("weight", weight)])
    values, mean, variance = [1.0, -2.0], [0.0, 0.0], [0.0, 0.0]
    for t, gradient in enumerate([(0.3, -0.1), (0.2, 0.4), (-0.5, 0.4)], start=1):
        weight.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
        for i, g in enumerate(gradient):
            mean[i] = 0.9 * mean[i] + 0.1 * g
            variance[i] = 0.99 * variance[i] + 0.01 * (g - mean[i]) ** 2 + 1e-8
            corrected = (variance[i] / (1 - 0.99**t)) ** 0.5 + 1e-8
            values[i] -= 0.1 * 0.2 * values[i]
            values[i] -= 0.1 * (mean[i] / (1 - 0.9**t)) / corrected
        assert weight.detach().tolist()[0] == pytest.approx(values, rel=1e-12)


def test_lion_follows_the_paper_by_hand() -> None:
    weight = nn.Parameter(torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64))
    configuration = {"learning_rate": 0.1, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.5}
    optimizer = Lion(configuration).build([("weight", weight)])
    values, momentum = [1.0, -2.0, 0.5], [0.0, 0.0, 0.0]
    for gradient in [(0.3, -0.1, 0.0), (-0.2, 0.4, 0.0), (0.001, 0.4, 0.0)]:
        weight.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
        for i, g in enumerate(gradient):
            c = 0.9 * momentum[i] + 0.1 * g
            values[i] -= 0.1 * ((c > 0) - (c < 0) + 0.5 * values[i])
            momentum[i] = 0.99 * momentum[i] + 0.01 * g
        assert weight.detach().tolist()[0] == pytest.approx(values, rel=1e-12)


@pytest.mark.parametrize("plugin", PLUGINS)
def test_resumes_bit_for_bit_from_a_file_without_code(plugin) -> None:
    whole = network()
    train(whole, plugin().build(list(whole.named_parameters())), 0, 8)

    first = network()
    optimizer = plugin().build(list(first.named_parameters()))
    train(first, optimizer, 0, 5)
    file = io.BytesIO()
    torch.save({"model": first.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)

    second = network()
    second.load_state_dict(state["model"])
    resumed = plugin().build(list(second.named_parameters()))
    resumed.load_state_dict(state["optimizer"])
    for group in resumed.param_groups:
        group["lr"] = group["base_lr"]
    train(second, resumed, 5, 8)
    assert torch.equal(weights(second), weights(whole))


@pytest.mark.parametrize("plugin", PLUGINS)
def test_step_counts_are_tensors_in_the_state(plugin) -> None:
    model = network()
    optimizer = plugin().build(list(model.named_parameters()))
    train(model, optimizer, 0, 2)
    for state in optimizer.state_dict()["state"].values():
        assert all(value is None or isinstance(value, torch.Tensor) for value in state.values())
    beyond = {key for key in vars(optimizer) if isinstance(vars(optimizer)[key], int | float)}
    assert not {key for key in beyond if not key.startswith("_")}


@pytest.mark.parametrize("plugin", [SGD, AdamW])
def test_fused_kernels_are_used_on_the_cpu(plugin) -> None:
    model = network()
    assert plugin().build(list(model.named_parameters())).defaults["fused"] is True


@pytest.mark.parametrize("plugin", PLUGINS)
def test_parameters_without_gradient_stay(plugin) -> None:
    model = network()
    optimizer = plugin().build(list(model.named_parameters()))
    before = model[4].weight.detach().clone()
    model[0](batch(0)[0]).sum().backward()
    optimizer.step()
    assert torch.equal(model[4].weight, before)


@pytest.mark.parametrize("plugin", PLUGINS)
def test_closure_gives_the_loss_back(plugin) -> None:
    model = network()
    optimizer = plugin().build(list(model.named_parameters()))
    inputs, targets = batch(0)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), targets)
        loss.backward()
        return loss

    assert optimizer.step(closure).item() > 0


def test_what_is_decayed() -> None:
    matrix, vector = nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(3))
    assert is_decayed("layer.weight", matrix)
    assert not is_decayed("norm.weight", vector)
    assert not is_decayed("attention.bias", matrix)
    assert is_decayed("biased.table", matrix)
    groups = parameter_groups([("a.weight", matrix), ("a.bias", vector)], 0.1)
    assert [(group["name"], group["weight_decay"]) for group in groups] == [
        ("decayed", 0.1),
        ("not_decayed", 0.0),
    ]
    assert [group["name"] for group in parameter_groups([("a.bias", vector)], 0.1)] == [
        "not_decayed"
    ]


@pytest.mark.parametrize("plugin", PLUGINS)
def test_nothing_to_train_is_an_error_for_people(plugin) -> None:
    with pytest.raises(PluginError, match="nothing in the model requires a gradient"):
        plugin().build([])


@pytest.mark.parametrize("plugin", [Lion, AdaBelief])
def test_sparse_gradients_are_refused(plugin) -> None:
    table = nn.Embedding(4, 2, sparse=True)
    optimizer = plugin().build(list(table.named_parameters()))
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse gradient of shape"):
        optimizer.step()


@pytest.mark.parametrize("plugin", PLUGINS)
def test_lowers_the_loss_at_its_default(plugin) -> None:
    model = network()
    optimizer = plugin().build(list(model.named_parameters()))
    inputs, targets = batch(0)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("plugin", PLUGINS)
def test_default_lies_in_the_space(plugin) -> None:
    space = plugin.space()
    space.validate(space.default())
    assert plugin().configuration == space.default()

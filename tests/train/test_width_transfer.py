"""muP: rates meant for one width carry over to others."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from test_freeze_thaw import same
from torch import nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

import autotune
from autotune.plugins import discovery
from autotune.space import Ordinal, Plugins, Space
from autotune.train import Data, RunContext, TaskError, TorchTask
from autotune.train.width_transfer import growth, scale_weights

BASE = 32
NARROW, WIDE = 128, 1024
SGD = {"name": "sgd", "learning_rate": 0.1, "momentum": 0.0, "weight_decay": 0.01}
ADAMW = {"name": "adamw", "learning_rate": 0.01, "weight_decay": 0.01}
GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(64, 12, generator=GENERATOR)
TARGETS = (INPUTS[:, 0] * INPUTS[:, 1] > 0).long()


def network(architecture: Any) -> nn.Module:
    width = architecture["width"]
    return nn.Sequential(
        nn.Linear(12, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2)
    )


def task(**changes: Any) -> TorchTask:
    split = (INPUTS, TARGETS)
    return TorchTask(
        **{
            "model": network,
            "data": Data(split, split),
            "loss": functional.cross_entropy,
            "unit": "step",
            **changes,
        }
    )


def opened(
    width: int, optimizer: dict[str, Any], base: int | None = BASE, seed: int = 1, **changes: Any
) -> Any:
    configuration = {"architecture": {"width": width}, "batch_size": 64, "optimizer": optimizer}
    if base is not None:
        configuration["reference_architecture"] = {"width": base}
    return task(**changes).open(configuration, RunContext(seed=seed, horizon=8))


def moved(width: int, optimizer: dict[str, Any], base: int | None, seed: int) -> list[float]:
    """How far the outputs of each layer go in four steps: root mean square."""
    run = opened(width, optimizer, base, seed)

    def layers() -> list[torch.Tensor]:
        values, found = INPUTS, []
        for layer in run._model:
            values = layer(values)
            if isinstance(layer, nn.Linear):
                found.append(values)
        return found

    with torch.no_grad():
        before = layers()
        for _ in range(4):
            run.train()
        return [
            (b - a).square().mean().sqrt().item() for a, b in zip(before, layers(), strict=True)
        ]


@pytest.mark.parametrize("optimizer", [SGD, ADAMW], ids=["sgd", "adamw"])
def test_activations_move_as_far_at_every_width(optimizer: dict[str, Any]) -> None:
    """The coordinate check of Yang et al. (2022, appendix D.1): the slope of how far each layer's
    outputs move over width, on a log scale, is flat; without the transfer some layer's is not.
    Means over seeds."""

    def slopes(base: int | None) -> list[float]:
        found = []
        for seed in range(6):
            narrow, wide = (moved(width, optimizer, base, seed) for width in (NARROW, WIDE))
            found.append([math.log(b / a) for a, b in zip(narrow, wide, strict=True)])
        span = math.log(WIDE / NARROW)
        return [statistics.mean(layer) / span for layer in zip(*found, strict=True)]

    assert max(abs(slope) for slope in slopes(NARROW)) < 0.2
    assert max(abs(slope) for slope in slopes(None)) > 0.4


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        (SGD, {"0.weight": 4, "0.bias": 4, "2.weight": 1, "2.bias": 4, "4.weight": 1 / 4}),
        (ADAMW, {"0.weight": 1, "0.bias": 1, "2.weight": 1 / 4, "4.weight": 1 / 4}),
    ],
    ids=["sgd", "adamw"],
)
def test_rates_are_those_of_the_papers_table(
    optimizer: dict[str, Any], expected: dict[str, float]
) -> None:
    """Four times as wide, table 3: input weights and biases, hidden weights, output weights."""
    run = opened(4 * BASE, optimizer)
    names = {id(parameter): name for name, parameter in run._model.named_parameters()}
    rates, decays = {}, {}
    for group in run._stepper.optimizer.param_groups:
        for parameter in group["params"]:
            rates[names[id(parameter)]] = group["initial_lr"] / optimizer["learning_rate"]
            decays[names[id(parameter)]] = group["initial_lr"] * group["weight_decay"]
    for name, factor in expected.items():
        assert rates[name] == pytest.approx(factor), name
    assert rates["4.bias"] == 1.0
    weights = {decay for name, decay in decays.items() if name.endswith("weight")}
    assert max(weights) == pytest.approx(min(weights)) == optimizer["learning_rate"] * 0.01


def test_output_layers_begin_small_and_biases_as_in_the_reference() -> None:
    plain, scaled = opened(4 * BASE, ADAMW, None), opened(4 * BASE, ADAMW)
    ratios = {
        name: (after / before).mean().item()
        for (name, before), (_, after) in zip(
            plain._model.named_parameters(), scaled._model.named_parameters(), strict=True
        )
    }
    # Torch divides the spread of biases by the root of a layer's inputs.
    changed = {"4.weight": 0.5, "2.bias": 2.0, "4.bias": 2.0}
    assert ratios == pytest.approx({name: changed.get(name, 1.0) for name in ratios})
    same_width = opened(BASE, ADAMW)
    assert same_width.train() == opened(BASE, ADAMW, None).train()


def test_frozen_and_thawed_at_every_step() -> None:
    straight = opened(64, ADAMW)
    frozen = straight.freeze()
    for _ in range(4):
        run = opened(64, ADAMW)
        run.thaw(frozen)
        assert run.train() == straight.train()
        frozen = run.freeze()
        assert same(frozen, straight.freeze())


class Embedded(nn.Module):
    """A table, a convolution and a readout."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(7, width)
        self.convolution = nn.Conv1d(width, 2 * width, 3)
        self.readout = nn.Linear(2 * width, 7, bias=False)


class Set(nn.Module):
    """Layers whose biases the model sets, and one of torch's that has a single output."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.prior = nn.Linear(width, 3)
        self.gates = nn.LSTM(3, width)
        self.norm = nn.LayerNorm(width)
        self.score = nn.Linear(width, 1)
        with torch.no_grad():
            self.prior.bias.fill_(-4.6)
            self.gates.bias_ih_l0[width : 2 * width] = 1.0


def test_biases_that_the_model_sets_stay() -> None:
    torch.manual_seed(0)
    wide, narrow = Set(64), Set(16)
    before = {name: p.detach().clone() for name, p in wide.named_parameters()}
    scale_weights(wide, growth(wide, narrow))
    ratios = {
        name: (p / before[name]).mean().item()
        for name, p in wide.named_parameters()
        if "bias" in name and before[name].any()
    }
    stayed = {"prior.bias": 1.0, "gates.bias_ih_l0": 1.0}
    assert ratios == pytest.approx({**stayed, "gates.bias_hh_l0": 2.0, "score.bias": 2.0})


def test_growth_of_tables_and_kernels() -> None:
    found = growth(Embedded(24), Embedded(8))
    assert {name: (g.inputs, g.outputs) for name, g in found.items()} == {
        "table.weight": (1.0, 3.0),
        "convolution.weight": (3.0, 3.0),
        "convolution.bias": (1.0, 3.0),
        "readout.weight": (3.0, 1.0),
    }


class Turned(nn.Module):
    """Layers whose weights are laid out, or begun, otherwise than a linear layer's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose1d(3, width, 5, bias=False)
        self.hidden = nn.ConvTranspose1d(width, 2 * width, 5, bias=False)
        self.apart = nn.ConvTranspose1d(2 * width, 2 * width, 5, groups=2 * width, bias=False)
        self.down = nn.ConvTranspose1d(2 * width, 3, 5, bias=False)
        self.product = nn.Bilinear(width, width, 2 * width, bias=False)
        self.score = nn.Bilinear(4, width, 1, bias=False)
        self.recurrent = nn.GRU(3, width, bias=False)


def test_growth_of_layers_that_are_laid_out_otherwise() -> None:
    """And they begin with the spread of the table: 1 / inputs of an output layer, 1 / sqrt(inputs)
    of all others."""
    torch.manual_seed(0)
    narrow, wide = Turned(16), Turned(64)
    found = growth(wide, narrow)
    expected = {
        "up.weight": (1.0, 4.0),
        "hidden.weight": (4.0, 4.0),
        "apart.weight": (1.0, 4.0),
        "down.weight": (4.0, 1.0),
        "product.weight": (16.0, 4.0),
        "score.weight": (4.0, 1.0),
        "recurrent.weight_ih_l0": (1.0, 4.0),
        "recurrent.weight_hh_l0": (4.0, 4.0),
    }
    assert {name: (g.inputs, g.outputs) for name, g in found.items()} == expected
    scale_weights(wide, found)
    weights = dict(wide.named_parameters())
    for name, weight in narrow.named_parameters():
        inputs, outputs = expected[name]
        spread = (weights[name].std() / weight.std()).item()
        assert spread == pytest.approx(inputs ** (-1 if outputs == 1 else -0.5), rel=0.2), name


def test_growth_of_a_normed_output_layer() -> None:
    wide, narrow = (
        nn.Sequential(nn.Linear(3, width), weight_norm(nn.Linear(width, 2))) for width in (32, 8)
    )
    found = growth(wide, narrow)["1.parametrizations.weight.original1"]
    assert (found.inputs, found.outputs) == (4.0, 1.0)


class Positioned(nn.Module):
    """What a vision transformer adds to its tokens, in a module of its own and bare; attention."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.ones(5, width))
        self.embedding = nn.Parameter(torch.ones(1, 5, width))
        self.mixing = nn.Parameter(torch.ones(width, width))
        self.attention = nn.MultiheadAttention(width, 1)


def test_growth_of_bare_parameters() -> None:
    model = Positioned(24)
    found = growth(model, Positioned(8))
    assert {name: (g.inputs, g.outputs) for name, g in found.items()} == {
        "token": (1.0, 3.0),
        "positions": (1.0, 3.0),
        "embedding": (1.0, 3.0),
        "mixing": (3.0, 3.0),
        "attention.in_proj_weight": (3.0, 3.0),
        "attention.in_proj_bias": (1.0, 3.0),
        "attention.out_proj.weight": (3.0, 3.0),
        "attention.out_proj.bias": (1.0, 3.0),
    }
    assert found["positions"].rate_factor("elements") == 1.0
    scale_weights(model, found)
    assert model.positions.eq(1).all()
    assert model.embedding.eq(1).all()


def test_optimizers_without_a_rule_are_left_out_of_a_space_with_their_reason(
    tmp_path: Path,
) -> None:
    """Every one that is left trains; the study says why the others are not there."""
    space = Space(
        {
            "architecture": {"width": Ordinal((32, 64))},
            "reference_architecture": {"width": 32},
            "optimizer": Plugins("optimizer"),
        }
    )
    default = space.resolve(discovery.Catalogue()).default()
    catalogue = discovery.Catalogue(task().model_info(default))
    kept = set(catalogue.options("optimizer"))
    ours = {r.name for r in discovery.records("optimizer") if r.distribution == discovery.OURS}
    assert {"sgd", "adamw", "lion", "adamp", "sgdp", "prodigy", "adagrad"} <= kept
    for name in sorted(ours - kept):
        assert "not for it" in str(catalogue.why_not("optimizer", name)), name
    assert ours - kept >= {"muon", "lars", "lamb", "cosmos", "tvlars", "adagrad_norm", "soap"}
    for name in sorted(kept & ours):
        assert math.isfinite(opened(64, {"name": name}).train()["validation_loss"]), name
    result = autotune.tune(
        task(),
        space,
        objectives=["validation_loss"],
        budget={"steps": 2},
        horizon=2,
        folder=tmp_path,
        workers=1,
        final=False,
        progress=False,
    )
    assert ("optimizer", "muon") in {row[:2] for row in result.view.header.left_out}
    wrong = Space({**space.parameters, "adapter": Plugins("adapter")})
    with pytest.raises(TaskError, match="expected neither pretrained weights nor an adapter"):
        autotune.tune(
            task(),
            wrong,
            objectives=["validation_loss"],
            budget={"steps": 2},
            horizon=2,
            folder=tmp_path,
        )


def test_what_cannot_carry_over_says_so() -> None:
    for name in ("muon", "galore", "sgd_sai"):
        with pytest.raises(TaskError, match=f"not for the optimizer '{name}'"):
            opened(64, {"name": name})
    deeper = nn.Sequential(*network({"width": 8}), nn.Linear(2, 2))
    with pytest.raises(TaskError, match=r"'5\.weight' is missing in it"):
        growth(deeper, network({"width": 8}))
    with pytest.raises(TaskError, match="neither pretrained weights nor an adapter"):
        opened(64, SGD, pretrained=lambda architecture: network(architecture).state_dict())

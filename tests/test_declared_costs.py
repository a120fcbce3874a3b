"""What optimizers declare of their cost, what a study makes of it, and that times overrule it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import autotune
from autotune.decide.cost import Costs
from autotune.declared_costs import declared_costs, relative_cost
from autotune.plugins import ModelInfo, StepCost
from autotune.plugins.discovery import Catalogue, get
from autotune.plugins.search import Decided, Observed, Start, known_objectives
from autotune.plugins.trials import Trials
from autotune.space import Ordinal, Plugins, Space

WIDE = ModelInfo(False, {"Linear": 2}, {"a.weight": (1024, 1024), "b.weight": (1024, 512)})
NAMES = ("adamw", "sam", "muon", "galore", "soap")
SPACE = Space(
    {
        "batch_size": Ordinal((32, 64), default=32),
        "optimizer": Plugins("optimizer", include=NAMES),
    }
).resolve(Catalogue(WIDE))
COSTS = declared_costs(SPACE, WIDE, Catalogue(WIDE))


def chosen(name: str) -> dict[str, Any]:
    values = SPACE.parameters["optimizer"].options[name].default()
    return {"batch_size": 32, "optimizer": {"name": name, **values}}


def fed(seconds: dict[str, float], count: int = 0) -> Any:
    """The model of costs after `count` trials of each optimizer at so many seconds a unit."""
    trials, costs = Trials(SPACE, (known_objectives()["validation_loss"],)), Costs()
    for _ in range(count):
        for name, each in seconds.items():
            number = len(trials)
            events: list[Any] = [Decided(number, Start(number, chosen(name), 9, 3))]
            events += [Observed(number, s, {"validation_loss": 1.0}, each) for s in (1, 2, 3)]
            for event in events:
                trials.observe(event)
                costs.observe(event)
    return costs.model(trials, COSTS)


def test_on_wide_matrices_soap_costs_more_than_adamw_before_any_is_timed() -> None:
    model = fed({})
    assert not model.known
    adamw, sam, muon, galore, soap = model.of_new([chosen(name) for name in NAMES])
    assert adamw == pytest.approx(1.0)
    assert sam == pytest.approx(2.0)
    assert soap > 10 * adamw
    assert muon > 10 * adamw
    assert 1.0 < galore < soap


def test_with_some_timed_the_others_cost_what_they_declare_more() -> None:
    model = fed({"adamw": 0.2}, count=2)
    adamw, sam = model.of_new([chosen("adamw"), chosen("sam")])
    assert adamw == pytest.approx(0.2)
    assert sam == pytest.approx(0.4)


def test_measured_seconds_overrule_what_was_declared() -> None:
    """A small model, where a call costs more than its arithmetic: all optimizers alike."""
    model = fed(dict.fromkeys(NAMES, 0.2), count=4)
    found = model.of_new([chosen(name) for name in NAMES])
    assert found == pytest.approx(0.2, rel=0.2)


def test_a_seldom_turned_basis_costs_less() -> None:
    shapes = WIDE.parameter_shapes
    often, seldom = (
        get("optimizer", "soap")({"precondition_frequency": each}).step_cost(shapes).flops
        for each in (1, 100)
    )
    assert often > 2 * seldom


@pytest.mark.parametrize(
    ("name", "configuration", "passes"),
    [
        ("adamw", {}, 1.0),
        ("sania", {}, 1.0),
        ("sam", {}, 2.0),
        ("oasis", {"adaptive": True, "hessian_update_every": 1}, 4.0),
        ("polynomial_preconditioning", {"degree": 2}, 7.0),
    ],
)
def test_passes(name: str, configuration: dict[str, Any], passes: float) -> None:
    cost = get("optimizer", name)(configuration).step_cost(WIDE.parameter_shapes)
    assert cost == StepCost(passes=passes)


def test_muon_by_hand() -> None:
    cost = get("optimizer", "muon")().step_cost({"a.weight": (3, 5), "b.bias": (7,)})
    assert cost == StepCost(flops=5 * (4 * 9 * 5 + 2 * 27))
    info = ModelInfo(False, {}, {"a.weight": (3, 5)}, forward_flops=120.0)
    assert relative_cost(cost, info, 10) == pytest.approx(1 + cost.flops / (3 * 120 * 10))


def test_a_plugin_that_fails_to_say_costs_as_little_as_any(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Any, shapes: Any) -> StepCost:
        raise RuntimeError("no idea")

    monkeypatch.setattr(get("optimizer", "soap"), "step_cost", broken)
    assert declared_costs(SPACE, WIDE, Catalogue(WIDE))["optimizer"]["soap"] == 1.0


def test_a_studys_record_holds_them_with_convolutions_counted_at_every_place(tmp_path: Any) -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Flatten(), nn.Linear(256, 2))
    images, labels = torch.randn(20, 1, 8, 8), torch.arange(20) % 2
    task = autotune.TorchTask(
        model=lambda architecture: model,
        data=autotune.Data(train=(images, labels), validation=(images, labels)),
        loss=functional.cross_entropy,
    )
    info = task.model_info({})
    assert info.forward_flops == 2 * (9 * 4 * 64 + 256 * 2)
    result = autotune.tune(
        task,
        Space({"optimizer": Plugins("optimizer", include=("adamw", "soap"))}),
        ["validation_loss"],
        {"seconds": 0.01},
        horizon=2,
        folder=tmp_path,
        workers=1,
        progress=False,
    )
    costs = autotune.load(result.folder).context.costs["optimizer"]
    assert costs["adamw"] == 1.0
    assert costs["soap"] > 1.0

"""The fidelity benchmark in its quick form, and that it can tell right from wrong."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from autotune.plugins.discovery import get, records
from autotune.space import Categorical, Choice, Float, Space

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import fidelity
from references.problems import PROBLEMS, Problem, Weights
from references.record import Reference


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


BUNDLED = [
    pytest.param(kind, method, id=f"{kind}-{name}")
    for kind in fidelity.KINDS
    for name, method in fidelity.methods(kind).items()
]


@pytest.mark.parametrize(("kind", "method"), BUNDLED)
def test_a_bundled_method_does_what_its_reference_does(kind: str, method: Any) -> None:
    row = fidelity.compare(kind, method, smoke=True)
    assert row.passes, row


def reference_with_rate(name: str, factor: float) -> Reference:
    """The reference of a method, followed at another learning rate."""
    reference = fidelity.reference_of("optimizer", name)

    def trajectory(problem: Problem, h: Mapping[str, Any]) -> Iterator[Weights]:
        changed = {**h, "learning_rate": h["learning_rate"] * factor}
        return reference.trajectory(problem, changed)

    return replace(reference, trajectory=trajectory)


@pytest.mark.parametrize("name", ["lion", "adamw"])
def test_a_rate_off_by_a_billionth_is_seen(name: str) -> None:
    plugin = get("optimizer", name)
    assert fidelity.compare_optimizer(plugin, reference_with_rate(name, 1.0), True).passes
    off = fidelity.compare_optimizer(plugin, reference_with_rate(name, 1 + 1e-9), True)
    assert not off.passes
    assert 1e-10 < off.worst < 1e-7


def test_a_method_without_reference_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fidelity.reference_of("optimizer", "unheard_of") is None
    monkeypatch.setattr(fidelity, "reference_of", lambda kind, name: None)
    (record,) = (record for record in records("optimizer") if record.bare == "lion")
    row = fidelity.compare("optimizer", record, smoke=True)
    assert not row.passes
    assert "no reference" in row.problem


def test_a_reference_that_raises_fails_with_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(problem: Problem, h: Mapping[str, Any]) -> Iterator[Weights]:
        raise RuntimeError("the ninth equation")

    reference = fidelity.reference_of("optimizer", "lion")
    monkeypatch.setattr(
        fidelity, "reference_of", lambda kind, name: replace(reference, trajectory=broken)
    )
    (record,) = (record for record in records("optimizer") if record.bare == "lion")
    row = fidelity.compare("optimizer", record, smoke=True)
    assert not row.passes
    assert "the ninth equation" in row.problem


def test_the_exit_status_tells(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fidelity.main(["--smoke", "--kind", "schedule", "constant"]) == 0
    monkeypatch.setattr(fidelity, "reference_of", lambda kind, name: None)
    assert fidelity.main(["--smoke", "--kind", "schedule", "constant"]) == 1
    assert "schedule constant" in capsys.readouterr().out.splitlines()[-1]


def test_every_value_of_every_hyperparameter_is_tried() -> None:
    space = Space(
        {
            "rate": Float(0.1, 10.0, log=True, default=1.0),
            "mode": Choice({"a": Space({}), "b": Space({"depth": Categorical((1, 2, 3))})}),
        }
    )
    reference = Reference(source="", trajectory=lambda problem, h: iter(()))
    found = dict(fidelity.configurations(space, reference, smoke=False))
    assert set(found) >= {"default", "mode=b", "mode.b.depth=2", "mode.b.depth=3"}
    assert found["mode.b.depth=3"]["mode"] == {"name": "b", "depth": 3}
    assert len([label for label in found if label.startswith("rate=")]) == 2


def test_differences_are_relative_to_the_way_gone() -> None:
    start = {"w": torch.zeros(3, dtype=torch.float64)}
    theirs = [{"w": torch.tensor([0.0, 2.0, 4.0], dtype=torch.float64)}]
    ours = [{"w": torch.tensor([0.0, 2.0, 5.0], dtype=torch.float64)}]
    assert fidelity.apart(ours, theirs, start) == 0.25
    assert fidelity.apart(theirs, theirs, start) == 0.0
    assert fidelity.apart([start], [start], start) == 0.0
    assert fidelity.apart(ours, [start], start) == math.inf
    nan = [{"w": torch.full((3,), math.nan, dtype=torch.float64)}]
    assert fidelity.apart(nan, theirs, start) == math.inf


@pytest.mark.parametrize("name", sorted(PROBLEMS))
def test_a_problem_is_the_same_every_time_and_differentiates(name: str) -> None:
    problem, again = PROBLEMS[name](), PROBLEMS[name]()
    weights = problem.weights()
    assert all(torch.equal(weights[key], again.start[key]) for key in weights)
    gradients = problem.gradients(3, weights)
    moved = {key: w + 1e-6 * gradients[key] for key, w in weights.items()}
    square = sum(float(g.square().sum()) for g in gradients.values())
    rise = (problem.loss(3, moved) - problem.loss(3, weights)) / 1e-6
    assert rise == pytest.approx(square, rel=1e-3)

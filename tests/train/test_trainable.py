"""A user's own loop is frozen and thawed by the engine, its random generators included."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from train_tasks import small_task

from autotune.train import NotFinite, RunContext, StateError, TaskError, Trainable, as_task, task


class Walk(Trainable):
    unit = "step"

    def setup(self, configuration: Mapping[str, Any], context: RunContext) -> None:
        self.speed = configuration["speed"]
        self.place = np.zeros(3)
        self.own = np.random.default_rng(context.seed)
        self.average = torch.zeros(3)

    def step(self) -> Mapping[str, float]:
        noise = np.array([random.random(), np.random.rand(), torch.rand(()).item()])  # noqa: NPY002
        self.place += self.speed * noise * self.own.random()
        self.average = 0.9 * self.average + 0.1 * torch.from_numpy(self.place).float()
        return {"validation_loss": self.place.sum(), "distance": self.average.sum()}

    def state(self) -> Mapping[str, Any]:
        return {
            "place": self.place,
            "average": self.average,
            "own": self.own.bit_generator.state,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        self.place, self.average = state["place"], state["average"]
        self.own.bit_generator.state = state["own"]

    def test(self, evaluation: Mapping[str, Any]) -> Mapping[str, float]:
        return {"test_loss": random.random()}


CHOSEN = {"speed": 0.5}


def test_a_thawed_loop_goes_on(tmp_path: Path) -> None:
    walk = as_task(Walk)
    context = RunContext(seed=1, horizon=9)
    run = walk.open(CHOSEN, context)
    curve = [run.train() for _ in range(6)]
    other = walk.open(CHOSEN, RunContext(seed=2, horizon=9))
    for start in range(6):
        first = walk.open(CHOSEN, context)
        for _ in range(start):
            first.train()
            other.train()
        torch.save(first.freeze(), tmp_path / "state.pt")
        state = torch.load(tmp_path / "state.pt", weights_only=True)
        second = walk.open(CHOSEN, context)
        second.thaw(state)
        assert second.step == start
        assert [second.train() for _ in range(6 - start)] == curve[start:]
    assert type(curve[0]["distance"]) is float
    assert walk.unit == "step"


def test_measuring_draws_from_generators_of_its_own() -> None:
    run = as_task(Walk).open(CHOSEN, RunContext(1, 9))
    alike = as_task(Walk).open(CHOSEN, RunContext(1, 9))
    outside = random.getstate()
    assert run.test({}) == run.test({})
    assert random.getstate() == outside
    assert run.train() == alike.train()
    assert run.evaluate({}, "select") == {}
    assert run.model() is None
    with pytest.raises(TaskError, match="Walk does not define latency"):
        run.latency({})


def test_mistakes_are_named() -> None:
    class Wrong(Walk):
        def step(self) -> Any:
            return next(answers)

        def state(self) -> Any:
            return {"self": [self]}

    answers = iter([3, {"validation_loss": "low"}, {"validation_loss": float("nan")}])
    run = as_task(Wrong).open(CHOSEN, RunContext(1, 9))
    with pytest.raises(TaskError, match=r"Wrong\.step\(\) returned int; expected a mapping"):
        run.train()
    with pytest.raises(TaskError, match="the metric 'validation_loss' returned str"):
        run.train()
    with pytest.raises(NotFinite, match="validation_loss is nan after unit 1"):
        run.train()
    with pytest.raises(StateError, match=r"state\.self\[0\] is of type"):
        run.freeze()


def test_what_can_be_tuned() -> None:
    @task
    def made() -> Any:
        return small_task()

    @task
    def loop() -> Any:
        return Walk

    direct = small_task()
    assert as_task(direct) is direct
    assert type(as_task(made)) is type(direct)
    assert as_task(loop).open(CHOSEN, RunContext(1, 9)).step == 0
    with pytest.raises(TaskError, match=r"mark the function with @autotune\.task"):
        as_task(lambda: small_task())
    with pytest.raises(TaskError, match="give the class, not an object"):
        as_task(Walk())
    with pytest.raises(TaskError, match="3 is no task"):
        as_task(3)

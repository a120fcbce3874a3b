"""What units cost, as a function of the configuration; on recorded times where there are any."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from recorded import CURVES, load
from spaces import TRAINING, context

from autotune.decide import Search
from autotune.decide.cost import ENOUGH, Costs
from autotune.decide.forecasters.parametric import Parametric
from autotune.decide.policies.freeze_thaw import FreezeThaw
from autotune.decide.proposers.random import Random
from autotune.plugins.search import Budget, Decided, Equipped, Frozen, Key, Observed, Start, Thaw
from autotune.plugins.trials import Trials
from autotune.space import Configuration, Float, Ordinal, Space


class Fed:
    """Costs and trials fed with made-up units."""

    def __init__(self, space: Space = TRAINING) -> None:
        self.trials, self.costs = Trials(space, context().objectives), Costs()

    def train(self, configuration: Configuration, seconds: list[float]) -> int:
        number = len(self.trials)
        events: list[Any] = [Decided(number, Start(number, configuration, 60, len(seconds)))]
        events += [
            Observed(number, step, {"validation_loss": 1.0}, each)
            for step, each in enumerate(seconds, 1)
        ]
        for event in events:
            self.trials.observe(event)
            self.costs.observe(event)
        return number


def test_nothing_known_costs_the_same_for_all() -> None:
    fed = Fed()
    generator = np.random.default_rng(0)
    model = fed.costs.model(fed.trials)
    assert model.warm_up == 1.0
    assert set(model.of_new([TRAINING.sample(generator) for _ in range(5)])) == {1.0}


def test_a_few_trials_give_the_typical_cost() -> None:
    fed = Fed()
    generator = np.random.default_rng(0)
    for seconds in (2.0, 3.0, 50.0):
        fed.train(TRAINING.sample(generator), [seconds] * 3)
    assert len(fed.trials) < ENOUGH
    found = fed.costs.model(fed.trials).of_new([TRAINING.sample(generator)])
    assert found[0] == pytest.approx(3.0)


def test_a_trials_own_mean_counts_without_its_first_unit() -> None:
    fed = Fed()
    generator = np.random.default_rng(0)
    for _ in range(3):
        fed.train(TRAINING.sample(generator), [8.0, 2.0, 2.0])
    alone = fed.train(TRAINING.sample(generator), [12.0])
    model = fed.costs.model(fed.trials)
    assert model.warm_up == pytest.approx(4.0)
    assert model.of_trial(0) == pytest.approx(2.0)
    assert model.of_trial(alone) == pytest.approx(3.0), "its only unit was the first"


def test_costs_are_learned_from_the_configuration() -> None:
    """Seconds a unit follow width and batch size; new configurations are told within 15 %."""
    fed = Fed()
    generator = np.random.default_rng(1)

    def true(configuration: Configuration) -> float:
        return float(0.1 * configuration["width"] ** 0.8 * 64 / configuration["batch_size"])

    for _ in range(60):
        configuration = TRAINING.sample(generator)
        noise = np.exp(0.05 * generator.normal(size=4))
        fed.train(configuration, [float(true(configuration) * n) for n in noise])
    new = [TRAINING.sample(generator) for _ in range(100)]
    errors = np.log(fed.costs.model(fed.trials).of_new(new)) - np.log([true(c) for c in new])
    assert np.median(np.abs(errors)) < 0.15
    spread = np.log([true(c) for c in new])
    assert np.median(np.abs(spread - np.median(spread))) > 0.4, "a constant would not do"


@pytest.mark.skipif(not CURVES.is_dir(), reason=f"no recorded curves in {CURVES}")
def test_recorded_times_are_predicted() -> None:
    """LCBench surrogate: from 60 trials of ten units, 40 % less error than the typical cost."""
    name = "lcbench_surrogate_167201"
    with np.load(CURVES / f"{name}.npz", allow_pickle=False) as file:
        seconds = np.diff(file["time"].astype(float), axis=1)
    space, _, _ = load(name, 0)
    seconds = seconds[np.random.default_rng(0).permutation(len(seconds))]
    fed = Fed(space)
    for row in range(60):
        fed.train(space.configuration(row), seconds[row, :10].tolist())
    later = np.log(seconds[60:].mean(axis=1))
    new = [space.configuration(row) for row in range(60, len(seconds))]
    errors = np.abs(np.log(fed.costs.model(fed.trials).of_new(new)) - later)
    constant = np.abs(np.median(np.log(seconds[:60].mean(axis=1))) - later)
    print(
        f"median error of log seconds {np.median(errors):.3f}, of a constant "
        f"{np.median(constant):.3f}"
    )
    assert np.median(errors) < 0.6 * np.median(constant)


CHEAP = Space({"quality": Float(0.0, 1.0), "batch_size": Ordinal((16, 256))})


@pytest.mark.parametrize("budget", [Budget(seconds=80.0), Budget(gpu_seconds=40.0)])
def test_of_two_equals_the_cheaper_is_trained_more(budget: Budget) -> None:
    """Values do not depend on the batch size; a unit at 16 takes eight times as long."""
    spent = {16: 0, 256: 0}
    for seed in (0,):
        found = context(budget, space=CHEAP, workers=1, seed=seed)
        # A short opening race: it goes by values alone, whatever a unit costs.
        whole = Search(found, FreezeThaw({"opening": 4}), Random(), Parametric())
        whole.observe(Equipped(0.5))
        clock = 0.0
        while clock < 80.0:
            decision = _next(whole, found.seed)
            if decision is None:
                break
            number, decided = decision
            whole.observe(Decided(number, decided, clock))
            trial = whole.trials[decided.trial]
            size = int(trial.configuration["batch_size"])
            for step in range(trial.frozen + 1, decided.to + 1):
                clock += 4.0 if size == 16 else 0.5
                spent[size] += 1
                loss = abs(trial.configuration["quality"] - 0.5) + 1.0 / (1 + step)
                whole.observe(
                    Observed(
                        trial.number,
                        step,
                        {"validation_loss": loss},
                        4.0 if size == 16 else 0.5,
                        clock,
                    )
                )
            whole.observe(Frozen(trial.number, decided.to, "checkpoint", at=clock))
        assert clock <= 80.0 * 1.05, "what cannot end in time is not begun"
    assert spent[256] > 3 * spent[16], spent


def _next(whole: Any, seed: int) -> tuple[int, Start | Thaw] | None:
    number = whole.trials.decisions
    decision = whole.decide(Key(seed, number))
    return (number, decision) if isinstance(decision, Start | Thaw) else None

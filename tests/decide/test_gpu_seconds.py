"""Budgets in GPU-seconds: what segments take, times the GPUs that their worker holds."""

from __future__ import annotations

import pytest
from simulator import Simulator, decisions
from spaces import EVALUATION, POLICIES, TRAINING, context, curve, search

from autotune.decide.cost import spare_seconds
from autotune.plugins.search import (
    Budget,
    Decided,
    Equipped,
    Evaluate,
    Evaluated,
    Extended,
    Failed,
    Final,
    Finalists,
    Frozen,
    Key,
    Lost,
    Observed,
    SearchContext,
    Start,
    Thaw,
    known_objectives,
)
from autotune.plugins.trials import Trials


def simulated(found: SearchContext, policy: str, gpus: float = 0.5) -> Simulator:
    simulator = Simulator(search(found, policy), curve)
    simulator.tell(Equipped(gpus))
    simulator.run()
    return simulator


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_they_are_kept(policy: str) -> None:
    """A unit takes a second of half a GPU; two workers train at once."""
    simulator = simulated(context(Budget(gpu_seconds=40.0)), policy)
    trials = simulator.search.trials
    assert 38.0 <= trials.gpu_seconds <= 40.0
    assert trials.units == 2 * trials.gpu_seconds
    assert simulator.reason == "the 40 GPU-seconds of the budget are spent"


def test_evaluation_and_the_final_phase_have_their_parts() -> None:
    shifted = known_objectives()["shifted_accuracy"]
    loss = known_objectives()["validation_loss"]
    found = context(
        Budget(gpu_seconds=100.0, evaluations=20),
        (loss, shifted),
        space=TRAINING,
        evaluation_space=EVALUATION,
        final=Final(candidates=2, seeds=2, share=0.4, cooldown=0.0),
    )
    made = Simulator(search(found, "asha"), curve, lambda a, b: {"shifted_accuracy": 0.5})
    made.tell(Equipped(0.5))
    made.run()
    taken = decisions(made.events)
    assert sum(isinstance(decision, Finalists) for decision in taken) == 1
    assert any(isinstance(d, Start) and d.repeat_of is not None for d in taken)
    assert sum(isinstance(decision, Evaluate) for decision in taken) >= 10
    trials = made.search.trials
    assert trials.gpu_seconds <= 100.0
    assert trials.gpu_seconds == 0.5 * (trials.train_seconds + trials.evaluations)


@pytest.mark.parametrize("policy", ["freeze_thaw", "hyperband"])
def test_a_fold_from_scratch_decides_alike(policy: str) -> None:
    found = context(Budget(gpu_seconds=30.0), final=Final(2, 1, 0.4))
    simulator = simulated(found, policy)
    decided = [(n, e) for n, e in enumerate(simulator.events) if isinstance(e, Decided)]
    for number, event in decided[3::9]:
        fresh = search(found, policy)
        for past in simulator.events[:number]:
            fresh.observe(past)
        assert fresh.decide(Key(found.seed, event.number)) == event.decision


def test_what_was_spent_stays_spent_when_workers_hold_something_else() -> None:
    found = context(Budget(gpu_seconds=10.0))
    trials = Trials(TRAINING, found.objectives)
    configuration = TRAINING.default()
    observed = Observed(0, 1, {"validation_loss": 1.0}, 2.0)
    for event in (
        Equipped(0.25),
        Decided(0, Start(0, configuration, 10, 1)),
        observed,
        Frozen(0, 1, "checkpoint", seconds=3.0),  # it took a second to load and to save
    ):
        trials.observe(event)
    assert trials.gpu_seconds == 0.25 * 3.0
    trials.observe(Equipped(2.0))
    trials.observe(Decided(1, Evaluate(0, 1, {})))
    trials.observe(Evaluated(0, 1, {}, {}, {}, seconds=1.0))
    assert trials.gpu_seconds == 0.25 * 3.0 + 2.0
    assert spare_seconds(found.budget, trials) == (10.0 - 2.75) / 2.0


def test_jobs_that_come_to_nothing_are_paid_for_too() -> None:
    trials = Trials(TRAINING, context(Budget(gpu_seconds=10.0)).objectives)
    for event in (
        Equipped(0.5),
        Decided(0, Start(0, TRAINING.default(), 10, 4)),
        Observed(0, 1, {"validation_loss": 1.0}, 2.0),
        Lost(0, "it said nothing", cause="timeout", seconds=600.0),
        Decided(1, Thaw(0, 4)),
        Failed(0, 0, "out_of_memory", "while it loaded", seconds=60.0),
    ):
        trials.observe(event)
    assert trials.gpu_seconds == 0.5 * (2.0 + 598.0 + 58.0)


def test_they_may_be_added_to_a_study_that_goes_on() -> None:
    simulator = simulated(context(Budget(units=30)), "asha", gpus=1.0)
    assert simulator.search.trials.gpu_seconds == 30.0
    simulator.tell(Extended(Budget(gpu_seconds=50.0), 10, simulator.clock))
    simulator.run()
    assert 48.0 <= simulator.search.trials.gpu_seconds <= 50.0

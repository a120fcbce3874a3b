from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from simulator import Simulator, decisions
from spaces import EVALUATION, KNOWN, LOSS, SPACE, TRAINING, context, curve, search

from autotune.decide.closing import ATTEMPTS, CLOSING_SHARE
from autotune.plugins.search import (
    Budget,
    Decided,
    Evaluate,
    Extended,
    Key,
    Measure,
    Objective,
    Restarted,
    SearchContext,
    Start,
    Stop,
    Thaw,
)
from autotune.space import Space

OBJECTIVES = (
    LOSS,
    KNOWN["shifted_accuracy"],
    KNOWN["trainable_parameters"],
    KNOWN["latency_ms"],
)


def closing_context(budget: Budget, **changes: Any) -> SearchContext:
    values: dict[str, Any] = {"objectives": OBJECTIVES, "evaluation_space": EVALUATION}
    return context(budget, **{**values, **changes})


def evaluation(training: dict[str, Any], chosen: dict[str, Any]) -> dict[str, float]:
    adaptation = chosen.get("adaptation", {"name": "none"})
    gain = {"none": 0.0, "entropy": 0.1, "prior": 0.05}[adaptation["name"]]
    return {"shifted_accuracy": 0.5 + gain, "latency_ms": 1.0 + 10 * gain}


def simulated(found: SearchContext, **how: Any) -> Simulator:
    values = {"static": lambda c: {"trainable_parameters": float(c["width"])}, **how}
    simulator = Simulator(search(found), curve, evaluation, **values)
    simulator.run()
    return simulator


def phases(simulator: Simulator) -> list[str]:
    return [type(decision).__name__ for decision in decisions(simulator.events)]


def test_training_then_evaluations_then_measurements_then_stop() -> None:
    simulator = simulated(closing_context(Budget(units=80, evaluations=20)))
    names = phases(simulator)
    order = [{"Start", "Thaw"}, {"Evaluate"}, {"Measure"}, {"Stop"}]
    places = [next(i for i, some in enumerate(order) if name in some) for name in names]
    assert places == sorted(places)
    count = Counter(names)
    assert count["Evaluate"] == 20
    assert 1 <= count["Measure"] <= 10
    assert simulator.reason == "all 80 units of training are spent"


def test_nothing_to_evaluate_no_closing_phase() -> None:
    simulator = simulated(context(Budget(units=40)))
    assert set(phases(simulator)) == {"Start", "Stop"}


def test_every_option_at_its_default_for_the_best_then_sampled_ones() -> None:
    simulator = simulated(closing_context(Budget(units=100, evaluations=30)))
    asked = [d for d in decisions(simulator.events) if isinstance(d, Evaluate)]
    trials = simulator.search.trials
    best = trials.best[1] if trials.best else -1
    free = trials[best].configuration["optimizer"]["name"] == "one"
    options = [d.evaluation for d in asked if d.trial == best][: 3 if free else 2]
    expected = [EVALUATION.default(), EVALUATION.complete({"adaptation": "entropy"})]
    if free:
        expected.append(EVALUATION.complete({"adaptation": "prior"}))
    assert options == expected
    defaults = [EVALUATION.complete({"adaptation": n}) for n in ("none", "entropy", "prior")]
    assert any(d.evaluation not in defaults for d in asked)
    assert all(d.step == trials[d.trial].frozen for d in asked)


def test_no_duplicate_and_nothing_that_is_forbidden_across_the_levels() -> None:
    simulator = simulated(closing_context(Budget(units=200, evaluations=60)))
    asked = [d for d in decisions(simulator.events) if isinstance(d, Evaluate)]
    assert len({(d.trial, repr(d.evaluation)) for d in asked}) == len(asked) == 60
    for decision in asked:
        training = simulator.search.trials[decision.trial].configuration
        whole = SPACE.join(training, decision.evaluation)
        assert SPACE.forbids(whole) is None


def test_a_default_that_is_forbidden_with_the_trial_is_replaced() -> None:
    space = Space(SPACE.parameters, forbidden=[{"optimizer": "two", "adaptation": "none"}])
    training, evaluations = space.split()
    found = closing_context(
        Budget(units=60, evaluations=30),
        space=training,
        evaluation_space=evaluations,
        first=(training.complete({"optimizer": "two", "width": 40}),),
    )
    simulator = simulated(found)
    asked = [d for d in decisions(simulator.events) if isinstance(d, Evaluate)]
    of_two = [
        d.evaluation["adaptation"]["name"]
        for d in asked
        if simulator.search.trials[d.trial].configuration["optimizer"]["name"] == "two"
    ]
    assert of_two
    assert "none" not in of_two


def test_failing_and_lost_evaluations_do_not_loop() -> None:
    everything = frozenset(range(10, 1000))
    budget = Budget(units=60, evaluations=12)
    failed = simulated(closing_context(budget), fail=everything)
    assert Counter(phases(failed))["Evaluate"] == 12
    lost = simulated(closing_context(budget), lose=everything)
    asked = [d for d in decisions(lost.events) if isinstance(d, Evaluate)]
    tries = Counter((d.trial, repr(d.evaluation)) for d in asked)
    assert len(tries) == 12
    assert max(tries.values()) == ATTEMPTS


def test_a_failed_measurement_does_not_loop() -> None:
    whole = simulated(closing_context(Budget(units=60, evaluations=6)))
    measures = {e.number for e in whole.events if isinstance(e, Decided) and is_measure(e)}
    failed = simulated(closing_context(Budget(units=60, evaluations=6)), fail=frozenset(measures))
    asked = [d for d in decisions(failed.events) if isinstance(d, Measure)]
    assert len({(d.trial, repr(d.evaluation)) for d in asked}) == len(asked)


def is_measure(event: Decided) -> bool:
    return isinstance(event.decision, Measure)


def test_measured_points_were_evaluated_and_undominated_ones_come_first() -> None:
    simulator = simulated(closing_context(Budget(units=100, evaluations=24)))
    taken = decisions(simulator.events)
    asked = [(d.trial, d.step, repr(d.evaluation)) for d in taken if isinstance(d, Evaluate)]
    measured = [d for d in taken if isinstance(d, Measure)]
    assert {(d.trial, d.step, repr(d.evaluation)) for d in measured} <= set(asked)
    # Entropy beats none in accuracy and equals it in all else known by then.
    assert measured[0].evaluation["adaptation"]["name"] == "entropy"


def test_latency_alone_needs_no_stream() -> None:
    found = context(Budget(units=60, evaluations=8), (LOSS, KNOWN["latency_ms"]))
    names = Counter(phases(simulated(found)))
    assert names["Evaluate"] == 0
    assert names["Measure"] == 4


def test_seconds_are_kept_back_for_the_closing_phase() -> None:
    simulator = simulated(closing_context(Budget(seconds=200.0, evaluations=40)))
    decided = [event for event in simulator.events if isinstance(event, Decided)]
    began = next(event.at for event in decided if isinstance(event.decision, Evaluate))
    assert began <= 200 * (1 - CLOSING_SHARE) + 1
    assert simulator.clock <= 202
    names = Counter(phases(simulator))
    assert names["Evaluate"] >= 5
    assert names["Measure"] >= 2


def test_the_best_is_evaluated_and_measured_once_even_if_training_was_late() -> None:
    simulator = simulated(closing_context(Budget(seconds=30.0)), seconds=29.0)
    names = Counter(phases(simulator))
    assert names["Evaluate"] >= 1
    assert names["Measure"] >= 1


def test_the_closing_phase_goes_on_after_a_restart_and_replays() -> None:
    found = closing_context(Budget(units=60, evaluations=10))
    simulator = Simulator(
        search(found),
        curve,
        evaluation,
        static=lambda c: {"trainable_parameters": float(c["width"])},
    )
    decision: Any = None
    while not isinstance(decision, Evaluate):
        number = simulator.search.trials.decisions
        decision = simulator.search.decide(Key(0, number))
        simulator.tell(Decided(number, decision))
        if not isinstance(decision, Evaluate):
            for report in list(simulator.reports(number, decision)):
                simulator.tell(report)
    simulator.tell(Restarted())
    number = simulator.search.trials.decisions
    assert simulator.search.decide(Key(0, number)) == decision
    simulator.run()
    taken = [d for d in decisions(simulator.events) if isinstance(d, Evaluate)]
    assert len(taken) == 10 + 1
    after = decisions(simulator.events)
    assert not any(isinstance(d, Start | Thaw) for d in after[after.index(decision) :])
    again = search(found)
    for event in simulator.events:
        if isinstance(event, Decided):
            assert again.decide(Key(0, event.number)) == event.decision
        again.observe(event)


def test_what_was_lost_is_not_asked_of_a_checkpoint_that_is_gone() -> None:
    """After a restart the study is extended: training goes on, and drops the checkpoint that the
    lost evaluation was of."""
    found = closing_context(Budget(units=60, evaluations=10), workers=1)
    simulator = Simulator(search(found, "asha"), curve, evaluation)
    decision: Any = None
    while not isinstance(decision, Evaluate):
        number = simulator.search.trials.decisions
        decision = simulator.search.decide(Key(0, number))
        simulator.tell(Decided(number, decision))
        if not isinstance(decision, Evaluate):
            for report in list(simulator.reports(number, decision)):
                simulator.tell(report)
    simulator.tell(Restarted())
    simulator.tell(Extended(Budget(units=300, evaluations=10), 40))
    simulator.run()
    trial = simulator.search.trials[decision.trial]
    assert decision.step not in trial.checkpoints, "it was dropped"
    assert any(e.step > decision.step for e in trial.evaluations), "the new one was evaluated"


def test_without_a_finite_value_there_is_nothing_to_evaluate() -> None:
    found = closing_context(Budget(units=30, evaluations=10))
    simulator = Simulator(
        search(found), lambda c, step: {"validation_loss": float("nan")}, evaluation
    )
    simulator.run()
    assert set(phases(simulator)) == {"Start", "Stop"}


@pytest.mark.parametrize("objective", [Objective("mine", "maximize", "evaluation")])
def test_an_objective_of_the_users_own_is_evaluated(objective: Objective) -> None:
    found = context(Budget(units=30, evaluations=3), (LOSS, objective), space=TRAINING)
    simulator = Simulator(search(found), curve, lambda training, chosen: {"mine": 1.0})
    simulator.run()
    assert Counter(phases(simulator))["Evaluate"] == 3
    assert isinstance(decisions(simulator.events)[-1], Stop)

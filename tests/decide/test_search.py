from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
from simulator import Simulator, decisions
from spaces import POLICIES, PROPOSERS, TRAINING, context, curve, search

from autotune.decide.search import FRUITLESS
from autotune.plugins.base import PluginError
from autotune.plugins.search import (
    Budget,
    Decided,
    Evaluate,
    Extended,
    Failed,
    Final,
    Frozen,
    Key,
    Observed,
    Policy,
    Restarted,
    SearchContext,
    Start,
    Stop,
    Thaw,
    Wait,
)
from autotune.space import Categorical, Space


def simulated(
    found: SearchContext, policy: str = "random_search", proposer: str = "random", **how: object
) -> Simulator:
    simulator = Simulator(search(found, policy, proposer), curve, **how)  # type: ignore[arg-type]
    simulator.run()
    return simulator


def starts(simulator: Simulator) -> list[Start]:
    return [d for d in decisions(simulator.events) if isinstance(d, Start)]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("proposer", PROPOSERS)
def test_default_and_users_configurations_come_first(policy: str, proposer: str) -> None:
    own = TRAINING.complete({"width": 17, "optimizer": "two", "batch_size": 64})
    found = context(Budget(units=40), first=(own, TRAINING.default(), own))
    first = starts(simulated(found, policy, proposer))[:2]
    assert [start.configuration for start in first] == [TRAINING.default(), own]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("units", [7, 53, 120])
def test_units_are_spent_to_the_last_and_never_exceeded(
    policy: str, workers: int, units: int
) -> None:
    lost, failed = frozenset(range(3, 100, 7)), frozenset(range(5, 100, 11))
    simulator = simulated(
        context(Budget(units=units), workers=workers), policy, lose=lost, fail=failed
    )
    assert simulator.search.trials.units == units
    assert simulator.reason == f"all {units} units of training are spent"
    observed = {(e.trial, e.step) for e in simulator.events if isinstance(e, Observed)}
    assert len(observed) == units
    assert max(step for _, step in observed) <= 10


@pytest.mark.parametrize("policy", POLICIES)
def test_no_configuration_is_started_twice(policy: str) -> None:
    small = Space({"a": Categorical((1, 2, 3)), "b": Categorical((1, 2))})
    found = context(Budget(units=10_000), space=small, workers=3)
    simulator = Simulator(
        search(found, policy), lambda c, step: {"validation_loss": c["a"] + c["b"] + 1 / step}
    )
    simulator.run()
    every = [(start.configuration["a"], start.configuration["b"]) for start in starts(simulator)]
    assert sorted(every) == sorted(itertools.product((1, 2, 3), (1, 2)))


@pytest.mark.parametrize("policy", POLICIES)
def test_failed_trials_are_never_trained_again_and_running_ones_not_twice(policy: str) -> None:
    failing = frozenset(range(2, 60, 5))
    simulator = simulated(context(workers=3), policy, fail=failing)
    failed: set[int] = set()
    running: set[int] = set()
    for event in simulator.events:
        match event:
            case Decided(decision=Start(trial=trial) | Thaw(trial=trial)):
                assert trial not in failed
                assert trial not in running
                running.add(trial)
            case Frozen(trial=trial):
                running.discard(trial)
            case Failed(trial=trial):
                failed.add(trial)
                running.discard(trial)
            case _:
                pass
    assert failed


def test_a_trial_lost_before_its_first_checkpoint_is_restarted_to_the_same_target() -> None:
    simulator = simulated(context(workers=1), "asha", lose=frozenset({1}))
    _, lost, again = decisions(simulator.events)[:3]
    assert isinstance(lost, Start)
    assert again == Thaw(lost.trial, lost.to)
    assert simulator.search.trials[lost.trial].status in ("frozen", "done")


def test_after_a_restart_all_that_was_in_flight_is_resumed() -> None:
    whole = context(Budget(units=60), workers=3)
    simulator = Simulator(search(whole, "asha"), curve)
    key = itertools.count()
    flying = []
    for _ in range(3):
        number = next(key)
        flying.append(simulator.search.decide(Key(0, number)))
        simulator.tell(Decided(number, flying[-1]))
    simulator.tell(Restarted())
    for before in flying:
        number = next(key)
        decision = simulator.search.decide(Key(0, number))
        assert decision == Thaw(before.trial, before.to)
        simulator.tell(Decided(number, decision))


def test_a_segment_frozen_short_of_its_target_is_resumed() -> None:
    found = search(context(workers=1))
    first = found.decide(Key(0, 0))
    assert isinstance(first, Start)
    found.observe(Decided(0, first))
    found.observe(Observed(0, 1, {"validation_loss": 1.0}, 1.0))
    found.observe(Frozen(0, 1, "checkpoint"))
    assert found.decide(Key(0, 1)) == Thaw(0, 10)


def test_the_trials_limit_ends_a_search_when_its_trials_are_done() -> None:
    for policy in POLICIES:
        simulator = simulated(context(Budget(trials=12)), policy)
        assert len(simulator.search.trials) == 12
    simulator = simulated(context(Budget(trials=12)), "random_search")
    alive = [t for t in simulator.search.trials.all.values() if t.failure is None]
    assert all(trial.status == "done" for trial in alive)


def test_freeze_thaw_stops_by_itself_when_no_trial_is_worth_more() -> None:
    simulator = simulated(context(Budget(trials=15), horizon=30), "freeze_thaw")
    assert simulator.search.trials.units < 15 * 30
    assert simulator.reason is not None
    assert "beat the best" in simulator.reason or "trained to its horizon" in simulator.reason


@pytest.mark.parametrize("policy", POLICIES)
def test_seconds_are_kept(policy: str) -> None:
    simulator = simulated(context(Budget(seconds=100.0)), policy)
    assert 97.0 <= simulator.clock <= 100.0
    assert simulator.reason == "the 100 s of the budget are spent"


def test_the_first_limit_reached_ends_the_search() -> None:
    simulator = simulated(context(Budget(units=1000, seconds=50.0)))
    assert simulator.clock <= 50.0
    assert simulated(context(Budget(units=30, seconds=500.0))).search.trials.units == 30


@pytest.mark.parametrize("policy", POLICIES)
def test_a_task_that_always_fails_ends_the_search(policy: str) -> None:
    simulator = simulated(context(), policy, fail=frozenset(range(10_000)))
    assert len(simulator.search.trials) <= FRUITLESS + 2
    assert simulator.reason is not None
    assert "failed within their first unit" in simulator.reason


@pytest.mark.parametrize("policy", POLICIES)
def test_an_empty_space_holds_one_configuration(policy: str) -> None:
    found = context(space=Space({}), workers=2)
    simulator = Simulator(search(found, policy), lambda c, step: {"validation_loss": 1 / step})
    simulator.run()
    assert [start.configuration for start in starts(simulator)] == [{}]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("proposer", PROPOSERS)
def test_replaying_the_events_gives_the_same_decisions(policy: str, proposer: str) -> None:
    found = context(Budget(units=90), workers=2)
    simulator = simulated(found, policy, proposer, lose=frozenset({4, 9}), fail=frozenset({6, 11}))
    again = search(found, policy, proposer)
    for event in simulator.events:
        if isinstance(event, Decided):
            key = Key(found.seed, event.number)
            assert again.decide(key) == event.decision
            assert again.decide(key) == event.decision, "deciding changed the state"
        again.observe(event)


def test_a_decision_depends_on_the_key() -> None:
    found = search(context())
    found.observe(Decided(0, found.decide(Key(0, 0))))
    one, two = found.decide(Key(0, 1)), found.decide(Key(1, 1))
    assert isinstance(one, Start)
    assert isinstance(two, Start)
    assert one.configuration != two.configuration


class Misbehaving(Policy):
    name = "misbehaving"
    summary = "does what it is told to"
    reference = "none"
    decision: Start | Thaw | Wait | Stop | Evaluate = Wait()

    def decide(self, *_: object) -> Start | Thaw | Wait | Stop:
        return self.decision  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("decision", "message"),
    [
        (Wait(), "waits although nothing is in flight"),
        (Thaw(0, 5), "is failed"),
        (Thaw(1, 2), "where it stands already"),
        (Thaw(7, 5), "is unknown"),
        (Start(5, TRAINING.default(), 10, 1), "expected 2"),
        (Start(2, TRAINING.default(), 10, 1), "a second time"),
        (Start(2, TRAINING.complete({"width": 9}), 10, 0), "to unit 0"),
        (Evaluate(1, 2, {}), "not its business"),
    ],
)
def test_a_policy_that_breaks_the_rules_is_named(decision: Stop, message: str) -> None:
    found = search(context())
    found._policy = Misbehaving()
    found.observe(Decided(0, Start(0, TRAINING.default(), 10, 1)))
    found.observe(Failed(0, 0, "error", "broke"))
    found.observe(Decided(1, Start(1, TRAINING.complete({"width": 8}), 10, 2)))
    found.observe(Observed(1, 1, {"validation_loss": 1.0}, 1.0))
    found.observe(Observed(1, 2, {"validation_loss": 1.0}, 1.0))
    found.observe(Frozen(1, 2, "checkpoint"))
    found._policy.decision = decision  # type: ignore[attr-defined]
    with pytest.raises(PluginError, match=message) as caught:
        found.decide(Key(0, 2))
    assert "'misbehaving'" in str(caught.value)


def test_a_policy_may_not_exceed_the_trials() -> None:
    found = search(context(Budget(trials=1)))
    found._policy = Misbehaving()
    found.observe(Decided(0, Start(0, TRAINING.default(), 10, 1)))
    found._policy.decision = Start(1, TRAINING.complete({"width": 9}), 10, 1)  # type: ignore[attr-defined]
    with pytest.raises(PluginError, match="all 1 are started"):
        found.decide(Key(0, 1))


def test_a_step_beyond_the_horizon_is_clipped() -> None:
    found = search(replace(context(), horizon=4))
    found._policy = Misbehaving()
    found._policy.decision = Start(0, TRAINING.default(), 4, 99)  # type: ignore[attr-defined]
    decision = found.decide(Key(0, 0))
    assert isinstance(decision, Start)
    assert decision.to == 4


# --- another budget ------------------------------------------------------------------------------


class Bound(Simulator):
    """Configurations that train with `one` are bound to their horizon from the first unit."""

    def tell(self, event: Any) -> None:
        if isinstance(event, Decided) and isinstance(event.decision, Start):
            bound = 0.0 if event.decision.configuration["optimizer"]["name"] == "one" else None
            event = replace(event, decision=replace(event.decision, bound_from=bound))
        super().tell(event)


@pytest.mark.parametrize(
    ("policy", "final"),
    [
        ("freeze_thaw", None),
        ("asha", None),
        ("asha", Final(2, 2, 0.4)),
        ("random_search", Final(2, 2, 0.4)),
    ],
)
def test_a_larger_budget_extends_trials_that_know_no_horizon(
    policy: str, final: Final | None
) -> None:
    """After the end: trials go on from where they stand, past the horizon that was; those bound
    to theirs stay there; and the fold is that of the events alone."""
    found = context(Budget(units=80), workers=2, final=final)
    simulator = Bound(search(found, policy), curve)
    simulator.run()
    trials = simulator.search.trials
    ended = {number: trial.last for number, trial in trials.all.items()}
    simulator.tell(Extended(Budget(units=180), 20, simulator.clock))
    simulator.run()
    assert 80 < trials.units <= 180
    assert isinstance(decisions(simulator.events)[-1], Stop)
    longer = [t for t in trials.all.values() if t.last > 10]
    assert longer
    assert all(t.bound_from is None or t.horizon == 20 for t in longer)
    for number, units in ended.items():
        trial = trials[number]
        if trial.status != "failed":
            assert trial.horizon == (20 if trial.bound_from is None else 10)
        assert trial.last >= units
    if policy != "random_search":  # which trains each trial once
        assert any(trial.number in ended for trial in longer)
    again = search(found, policy, past=lambda: simulator.events)  # as from a record
    for event in simulator.events:
        if isinstance(event, Decided):
            taken = again.decide(Key(found.seed, event.number))
            if isinstance(taken, Start):
                assert isinstance(event.decision, Start)
                taken = replace(taken, bound_from=event.decision.bound_from)
            assert taken == event.decision
        again.observe(event)


def test_a_budget_of_trials_counts_the_searchs_own() -> None:
    """What the final phase trained does not count when the study goes on."""
    found = context(Budget(trials=12), workers=1, final=Final(2, 2, 0.9))
    simulator = Simulator(search(found, "random_search"), curve)
    simulator.run()
    trials = simulator.search.trials
    assert (len(trials) - trials.further, trials.further > 0) == (12, True)
    simulator.tell(Extended(Budget(trials=20), 10))
    simulator.run()
    assert len(trials) - trials.further == 20

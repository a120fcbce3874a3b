"""Constraints in the search: what breaks one by what is measured once ends, what breaks one on its
curve stands behind, and the region is proposed less."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
from simulator import Simulator, decisions
from spaces import EVALUATION, LOSS, POLICIES, TRAINING, context, curve, search

from autotune.decide import Search
from autotune.decide.arms.thompson import ThompsonArms
from autotune.decide.forecasters.parametric import Parametric
from autotune.decide.policies.front_rung import FrontRung, epsilon_net
from autotune.decide.policies.rungs import SingleRung
from autotune.decide.proposers.random import Random
from autotune.decide.proposers.tpe import TPE
from autotune.decide.ranking import ranked
from autotune.plugins.constraints import Constraint
from autotune.plugins.search import (
    Budget,
    Decided,
    Final,
    Finalists,
    Key,
    Measure,
    Objective,
    Start,
    Thaw,
)
from autotune.space import Configuration

SMALL = Constraint.parse("parameters <= 2000")
ABLE = Constraint.parse("validation_accuracy >= 0.75")


def parameters(configuration: Configuration) -> Mapping[str, float]:
    return {"parameters": 100.0 * configuration["width"]}


def with_accuracy(configuration: Configuration, step: int) -> Mapping[str, float]:
    """The wider, the better the loss up to a point, and the worse the accuracy."""
    ability = 0.95 - 0.3 * math.log2(configuration["width"] / 8) / 3
    return {
        **curve(configuration, step),
        "validation_accuracy": ability - 0.3 / (1 + step),
    }


def simulated(policy: str, limit: Constraint, **changes: Any) -> Simulator:
    asked = {"budget": Budget(units=150), "horizon": 9, "constraints": (limit,), **changes}
    made = search(context(**asked), policy)
    return Simulator(made, with_accuracy, static=parameters)


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_what_breaks_a_limit_at_the_start_is_trained_no_further(policy: str) -> None:
    simulator = simulated(policy, SMALL, final=Final(candidates=2, seeds=2, share=0.4))
    simulator.run()
    trials = simulator.search.trials
    barred = [trial for trial in trials.all.values() if trial.barred]
    assert len(barred) >= 3
    assert {trial.last for trial in barred} == {1}
    assert all(t.barred == (t.configuration["width"] > 20) for t in trials.all.values())
    assert max(trial.last for trial in trials.all.values()) == 9
    named = [d for d in decisions(simulator.events) if isinstance(d, Finalists)]
    assert named
    assert not any(trials[number].barred for number in named[0].trials)
    assert trials.best is not None
    assert not trials[trials.best[1]].barred
    begun = [
        d.configuration["width"] > 20
        for d in decisions(simulator.events)
        if isinstance(d, Start) and d.repeat_of is None
    ]
    late = begun[len(begun) // 2 :]
    assert sum(late) / len(late) < 0.5 * sum(begun[:8]) / 8


def test_arms_hear_of_it_too() -> None:
    made = Search(
        context(Budget(units=150), horizon=9, constraints=(SMALL,)),
        ThompsonArms({"over": "optimizer"}),
        Random(),
        Parametric(),
    )
    simulator = Simulator(made, with_accuracy, static=parameters)
    simulator.run()
    trials = made.trials.all.values()
    assert {trial.last for trial in trials if trial.barred} == {1}
    assert max(trial.last for trial in trials) == 9


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_what_breaks_a_limit_on_its_curve_stands_behind(policy: str) -> None:
    """Without the constraint the best loss, at a width of 40, has too low an accuracy."""
    spent = Budget(units=80 if policy == "freeze_thaw" else 150)
    simulator = simulated(policy, ABLE, budget=spent)
    simulator.run()
    trials = simulator.search.trials
    assert trials.best is not None
    assert trials.best_violation == 0.0
    assert trials.known(*trials.best[1:])["validation_accuracy"] >= 0.75
    free = Simulator(search(context(spent, horizon=9), policy), with_accuracy)
    free.run()
    assert free.search.trials.best is not None
    assert free.search.trials.known(*free.search.trials.best[1:])["validation_accuracy"] < 0.75
    if policy != "random_search":  # which trains all alike

        def hopeless(run: Simulator) -> float:
            """The share of units beyond the first that went to trials that can never keep it."""
            all_ = run.search.trials.all.values()
            wide = [
                t.last - 1
                for t in all_
                if with_accuracy(t.configuration, 9)["validation_accuracy"] < 0.75
            ]
            return sum(wide) / sum(t.last - 1 for t in all_)

        assert hopeless(simulator) < 0.75 * hopeless(free)


@pytest.mark.parametrize("policy", ["asha", "freeze_thaw", "mo_asha"])
def test_where_nothing_keeps_them_the_least_violating_leads(policy: str) -> None:
    never = Constraint.parse("validation_accuracy >= 0.99")
    simulator = simulated(policy, never, budget=Budget(units=80))
    simulator.run()
    trials = simulator.search.trials
    assert trials.best is not None
    assert trials.best_violation == min(trials.standing(n)[0] for n in trials.all) > 0
    assert trials[trials.best[1]].last == 9


@pytest.mark.parametrize("policy", sorted(POLICIES))
@pytest.mark.parametrize("limit", [SMALL, ABLE])
def test_a_fold_from_scratch_decides_alike(policy: str, limit: Constraint) -> None:
    tasked = context(
        Budget(units=40),
        horizon=9,
        constraints=(limit,),
        final=Final(candidates=2, seeds=1, share=0.4),
        objectives=(LOSS, Objective("parameters", "minimize", "static")),
    )
    simulator = Simulator(search(tasked, policy, "tpe"), with_accuracy, static=parameters)
    simulator.run()
    decided = [(n, e) for n, e in enumerate(simulator.events) if isinstance(e, Decided)]
    for number, event in decided[5::12]:
        fresh = search(tasked, policy, "tpe")
        for past in simulator.events[:number]:
            fresh.observe(past)
        assert fresh.decide(Key(tasked.seed, event.number)) == event.decision


def test_proposals_of_tpe_keep_away() -> None:
    """The wider, the better; but without failures, from which the search would learn by itself."""

    def wide_is_good(configuration: Configuration, step: int) -> Mapping[str, float]:
        return {"validation_loss": 1.0 / configuration["width"], "size": configuration["width"]}

    shares = []
    for limits in ((), (Constraint.parse("size <= 30"),)):
        tasked = context(Budget(trials=30), horizon=1, constraints=limits)
        made = Search(tasked, POLICIES["random_search"](), TPE({"random_share": 0.0}), Parametric())
        Simulator(made, wide_is_good).run()
        begun = [trial.configuration["width"] > 30 for trial in made.trials.all.values()][10:]
        shares.append(sum(begun) / len(begun))
    assert shares[0] > 0.7
    assert shares[1] < 0.4


def test_latency_that_is_only_constrained_is_measured() -> None:
    limit = Constraint.parse("latency_ms <= 3")
    tasked = context(
        Budget(units=40, evaluations=8),
        space=TRAINING,
        evaluation_space=EVALUATION,
        constraints=(limit,),
    )
    made = search(tasked, "asha")

    def evaluated(training: Configuration, evaluation: Configuration) -> Mapping[str, float]:
        return {"latency_ms": training["width"] / 10, "shifted_accuracy": 0.5}

    simulator = Simulator(made, curve, evaluated)
    simulator.run()
    measured = [d for d in decisions(simulator.events) if isinstance(d, Measure)]
    assert measured
    assert all("latency_ms" in made.trials[d.trial].evaluations[-1].select for d in measured)


def test_where_the_best_are_too_slow_the_quick_are_measured() -> None:
    """The wider the better, and the slower; one in four trials can be measured."""

    def wide_is_good(configuration: Configuration, step: int) -> Mapping[str, float]:
        return {"validation_loss": 1.0 / configuration["width"]}

    limit = Constraint.parse("latency_ms <= 1.5")
    tasked = context(Budget(trials=40, evaluations=20), horizon=1, constraints=(limit,))
    made = search(tasked)
    Simulator(made, wide_is_good, lambda training, _: {"latency_ms": training["width"] / 10}).run()
    measured = [t.configuration["width"] for t in made.trials.all.values() if t.evaluations]
    assert len(measured) == 10
    assert sum(width <= 15 for width in measured) >= 4
    best = max(width for width in measured if width <= 15)
    assert best == max(
        t.configuration["width"] for t in made.trials.all.values() if t.configuration["width"] <= 15
    )


def test_rungs_rank_by_violation_first() -> None:
    single = SingleRung(2)
    front = FrontRung(2, epsilon_net)
    for rung, values in ((single, [0.1]), (front, [0.1, 0.1])):
        rung.enter(0, values, 0.5)
        rung.enter(1, [v + 1 for v in values], 0.2)
        rung.enter(2, [v + 2 for v in values])
        rung.enter(3, [v + 3 for v in values])
        order = []
        while (number := rung.promotable()) is not None:
            order.append(number)
            rung.leave(number)
        assert order == [2, 3]
    left = SingleRung(1)
    for number, violation in enumerate((0.5, 0.2, 0.3)):
        left.enter(number, [0.0], violation)
    assert left.promotable() == 1


def test_ranking_puts_the_less_violating_first() -> None:
    rows = [{"validation_loss": loss} for loss in (0.1, 0.2, 0.3, 0.4)]
    assert ranked(rows, [LOSS], LOSS, [0.5, 0.0, 0.1, 0.0]) == [1, 3, 2, 0]
    assert ranked(rows, [LOSS], LOSS, [0.0] * 4) == [0, 1, 2, 3]


def test_a_trial_that_was_barred_stays_so_with_a_longer_horizon() -> None:
    simulator = simulated("asha", SMALL)
    simulator.run()
    trials = simulator.search.trials
    before = [n for n, trial in trials.all.items() if trial.barred]
    trials._extend(27)
    assert all(trials[number].status == "done" for number in before)
    assert not any(isinstance(d, Thaw) and d.trial in before for d in decisions(simulator.events))

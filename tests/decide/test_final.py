"""The final phase: who gets into it, what it may cost, and who wins."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from simulator import Simulator, decisions
from spaces import POLICIES, context, curve, search

from autotune.decide.final import best_run, planned, standings, winner
from autotune.plugins.search import (
    Budget,
    Decided,
    Event,
    Failed,
    Final,
    Finalists,
    Frozen,
    Key,
    Observed,
    Restarted,
    SearchContext,
    Start,
    Stop,
    Thaw,
)
from autotune.plugins.trials import Trials
from autotune.space import Choice, Float, Space

FINAL = Final(candidates=3, seeds=2, share=0.5)


def simulated(found: SearchContext, policy: str = "asha", **how: Any) -> Simulator:
    simulator = Simulator(search(found, policy), curve, **how)
    simulator.run()
    return simulator


def named(simulator: Simulator) -> Finalists:
    (found,) = [d for d in decisions(simulator.events) if isinstance(d, Finalists)]
    return found


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("workers", [1, 3])
def test_finalists_are_finished_and_repeated_within_the_budget(policy: str, workers: int) -> None:
    found = context(Budget(units=200), final=FINAL, workers=workers)
    lost = frozenset(range(3, 300, 7))
    simulator = simulated(found, policy, luck=0.02, lose=lost)
    trials = simulator.search.trials
    finalists = named(simulator)
    assert len(finalists.trials) == 3
    assert trials.units <= 200
    for number in finalists.trials:
        assert trials[number].last == 10 or trials[number].status == "failed"
        repeats = [t for t in trials.all.values() if t.repeat_of == number]
        assert 2 <= len(repeats) <= 4
        assert {t.last for t in repeats} == {trials.best_frozen(number)}
        assert all(t.configuration == trials[number].configuration for t in repeats)
    whole = decisions(simulator.events)
    after = whole[whole.index(finalists) + 1 :]
    assert all(
        d.repeat_of is not None if isinstance(d, Start) else isinstance(d, Thaw | Stop)
        for d in after
    )
    assert 6 <= trials.further <= 12
    assert sum(len(standing.repeats) for standing in standings(trials)) == trials.further
    assert isinstance(whole[-1], Stop)
    assert whole[-1].reason == finalists.reason


def test_the_search_gets_what_is_not_kept() -> None:
    simulator = simulated(context(Budget(units=200), final=FINAL, workers=1))
    at = next(i for i, event in enumerate(simulator.events) if _names(event))
    searched = sum(isinstance(event, Observed) for event in simulator.events[:at])
    assert searched == 200 - 3 * (2 + 1) * 10
    assert named(simulator).reason == (
        "all 200 units of training are spent, 90 of them kept for the final phase"
    )


def _names(event: object) -> bool:
    return isinstance(event, Decided) and isinstance(event.decision, Finalists)


@pytest.mark.parametrize(
    ("units", "expected"),
    [
        (10_000, (3, 3)),
        (600, (3, 3)),
        (599, (3, 2)),
        (449, (2, 2)),
        (300, (2, 2)),
        (299, None),
    ],
)
def test_what_the_budget_pays_for(units: int, expected: tuple[int, int] | None) -> None:
    found = context(Budget(units=units), final=Final(3, 3, 0.2))
    plan = planned(found, Trials(found.space, found.objectives))
    assert (plan and (plan.candidates, plan.seeds)) == expected


def test_one_candidate_or_one_seed_may_be_asked_for() -> None:
    found = context(Budget(units=400), final=Final(1, 1, 0.2))
    plan = planned(found, Trials(found.space, found.objectives))
    assert plan == Final(1, 1, 0.2)


def test_without_units_trials_and_seconds_say_what_can_be_paid_for() -> None:
    found = context(Budget(trials=20), final=Final(3, 3, 0.5))
    assert planned(found, Trials(found.space, found.objectives)) == Final(3, 2, 0.5)
    slow = context(Budget(seconds=300.0), final=Final(3, 3, 0.5), workers=1)
    simulator = simulated(slow, seconds=1.0)
    finalists = named(simulator)
    assert (len(finalists.trials), finalists.seeds) == (3, 3)
    assert "kept for the final phase" in finalists.reason
    trials = simulator.search.trials
    assert 9 <= trials.further <= 18
    assert 250 <= simulator.clock <= 300
    before = next(e.at for e in simulator.events if _names(e))
    assert 180 <= before <= 300 - 9


def test_where_too_little_is_left_there_is_no_final_phase() -> None:
    simulator = simulated(context(Budget(units=100), final=Final(3, 3, 0.2)))
    assert not any(isinstance(d, Finalists) for d in decisions(simulator.events))
    assert simulator.search.trials.units == 100
    assert simulator.reason == "all 100 units of training are spent"
    assert winner(simulator.search.trials) is None


def test_the_mean_over_other_seeds_wins_and_not_the_lucky_value() -> None:
    """Over many studies of noise, what the winner was chosen for is too good, and the mean of
    its repeats is not."""
    lucky, honest = [], []
    for seed in range(12):
        found = context(Budget(units=300), final=Final(3, 3, 0.5), seed=seed, workers=1)

        def flat(configuration: dict[str, Any], step: int) -> dict[str, float]:
            return {"validation_loss": 1.0}

        simulator = Simulator(search(found, "asha"), flat, luck=0.1)
        simulator.run()
        first = winner(simulator.search.trials)
        assert first is not None
        assert first.mean is not None
        lucky.append(first.value - 1.0)
        others = [s.mean for s in standings(simulator.search.trials) if s.mean is not None]
        honest += [mean - 1.0 for mean in others]
        assert first.mean == min(others)
        assert first.standard_error == pytest.approx(0.1 / math.sqrt(3), rel=0.8)
    assert np.mean(lucky) < -0.12
    assert abs(np.mean(honest)) < 0.05


def test_the_checkpoint_handed_out_is_the_winners_best_run() -> None:
    simulator = simulated(context(Budget(units=300), final=FINAL, workers=1), luck=0.05)
    trials = simulator.search.trials
    first, run = winner(trials), best_run(trials)
    assert first is not None
    assert run is not None
    values = {trial: trials.score(trials[trial].metrics[step]) for trial, step in first.runs}
    assert values[run[0]] == min(values.values())
    assert len(first.runs) >= 3


def test_what_finalists_do_not_need_of_the_reserve_pays_for_more_repeats() -> None:
    """Random search trains every trial to its end, so that finishing finalists costs nothing:
    one repeat of each more; but never more than what was kept, or `MORE` times as many."""
    simulator = simulated(context(Budget(units=200), final=FINAL, workers=2), "random_search")
    trials = simulator.search.trials
    assert 190 < trials.units <= 200
    assert {len(standing.repeats) for standing in standings(trials)} <= {2, 3}
    assert trials.further > 2 * 3
    plenty = simulated(context(Budget(trials=40), final=FINAL, workers=2), "random_search")
    assert plenty.search.trials.further == 3 * 3


def test_a_finalist_whose_repeat_fails_does_not_win() -> None:
    found = context(Budget(units=300), final=FINAL, workers=1)
    whole = simulated(found)
    best = standings(whole.search.trials)[0].trial
    of_best = next(
        e.number
        for e in whole.events
        if isinstance(e, Decided) and isinstance(e.decision, Start) and e.decision.repeat_of == best
    )
    again = simulated(found, fail=frozenset({of_best}))
    assert any(isinstance(e, Failed) for e in again.events)
    first = winner(again.search.trials)
    assert first is not None
    assert first.trial != best
    assert next(s for s in standings(again.search.trials) if s.trial == best).failed == 1


@pytest.mark.parametrize("policy", ["asha", "freeze_thaw"])
def test_folding_the_events_anew_takes_the_same_decisions(policy: str) -> None:
    found = context(Budget(units=150), final=FINAL, workers=2)
    simulator = simulated(found, policy, luck=0.02, lose=frozenset({5, 40, 60, 70}))
    again = search(found, policy)
    for event in simulator.events:
        if isinstance(event, Decided):
            assert again.decide(Key(found.seed, event.number)) == event.decision
        again.observe(event)
    assert any(_names(event) for event in simulator.events)


def test_a_driver_that_comes_back_in_the_middle_goes_on_with_the_repeats() -> None:
    found = context(Budget(units=200), final=FINAL, workers=1)
    whole = simulated(found, luck=0.02)
    at = next(i for i, event in enumerate(whole.events) if _names(event))
    for cut in (at + 1, at + 2, at + 25, len(whole.events) - 3):
        resumed = Simulator(search(found, "asha"), curve, luck=0.02)
        for event in whole.events[:cut]:
            resumed.tell(event)
        resumed.tell(Restarted())
        resumed.run()
        finalists = named(resumed)
        assert finalists == named(whole)
        trials = resumed.search.trials
        assert trials.units <= 200
        assert winner(trials) == winner(whole.search.trials)
        frozen = [(e.trial, e.step) for e in resumed.events if isinstance(e, Frozen)]
        assert len(set(frozen)) == len(frozen)


# --- cooldowns and refinement ------------------------------------------------------------------

DERIVED = {"cooldown": {"name": "falling"}, "refinement": {"name": "refined"}}


class Composed(Simulator):
    """Fills in, as a study does, from where on a configuration is bound to its horizon."""

    def tell(self, event: Event) -> None:
        if isinstance(event, Decided) and isinstance(event.decision, Start):
            bound = None if event.decision.configuration["schedule"]["name"] == "constant" else 0.0
            event = replace(event, decision=replace(event.decision, bound_from=bound))
        super().tell(event)


def derived(
    final: Final, first: str, policy: str = "random_search", ends: float = 0.5, **how: Any
) -> Composed:
    """Configurations of one schedule; a cooldown brings 0.2, a refinement ends at `ends`."""

    def values(configuration: dict[str, Any], step: int) -> dict[str, float]:
        level = 1.0 + configuration["rate"] + 1 / step
        name = configuration["schedule"]["name"]
        if name == "refined":
            return {"validation_loss": ends}
        return {"validation_loss": level - 0.2 * (name == "falling")}

    choice = Choice({first: {}})
    space = Space({"rate": Float(0.0, 1.0), "schedule": choice, "record_gradient_norms": True})
    found = context(Budget(units=200), final=final, space=space, derived=DERIVED, workers=2)
    simulator = Composed(search(found, policy), values, **how)
    simulator.run()
    return simulator


@pytest.mark.parametrize("policy", ["random_search", "asha"])
def test_finalists_without_a_horizon_are_cooled_down_and_win(policy: str) -> None:
    """From four fifths of the horizon, or from where they stand beyond; where that is the horizon
    already, as with random search, their repeats are, and the first of them is the candidate."""
    simulator = derived(FINAL, "constant", policy)
    trials = simulator.search.trials
    assert trials.units <= 200
    assert trials.finalists is not None
    for number in trials.finalists.trials:
        (candidate,) = (
            trial
            for trial in trials.all.values()
            if trial.origin is not None
            and trial.repeat_of is None
            and number in (trial.origin.trial, trials[trial.origin.trial].repeat_of)
        )
        assert (candidate.last, candidate.horizon) == (10, 10)
        assert candidate.origin is not None
        assert candidate.origin.step >= 8
    first = winner(trials)
    assert first is not None
    assert first.origin is not None
    assert len(first.repeats) >= 2
    for number, _ in first.repeats:
        repeat = trials[number]
        assert repeat.origin is not None
        source = trials[first.origin.trial]
        base = source.number if source.repeat_of is None else source.repeat_of
        assert trials[repeat.origin.trial].repeat_of == base
        assert repeat.origin.step == first.origin.step


def test_what_is_bound_to_its_horizon_is_not_cooled_down() -> None:
    simulator = derived(FINAL, "cosine", "asha")
    assert simulator.search.trials.cooldowns == {}
    assert winner(simulator.search.trials) is not None


def test_a_finalist_whose_cooldown_fails_is_finished_and_repeated_itself() -> None:
    whole = derived(FINAL, "constant", "asha")
    failing = {
        event.number
        for event in whole.events
        if isinstance(event, Decided)
        and isinstance(event.decision, Start)
        and event.decision.origin is not None
        and event.decision.repeat_of is None
    }
    number = min(failing)
    simulator = derived(FINAL, "constant", "asha", fail=frozenset({number}))
    trials = simulator.search.trials
    (failed,) = [t for t in trials.all.values() if t.origin is not None and t.status == "failed"]
    assert failed.origin is not None
    assert trials[failed.origin.trial].status == "done"
    source = trials[failed.origin.trial]
    base = source.number if source.repeat_of is None else source.repeat_of
    standing = next(s for s in standings(trials) if s.trial == base)
    assert len(standing.repeats) >= 2


@pytest.mark.parametrize(("ends", "wins"), [(0.1, True), (9.0, False)])
def test_the_winner_is_refined_and_wins_if_it_is_better(ends: float, wins: bool) -> None:
    """Twice, the second time from the refined run."""
    final = replace(FINAL, candidates=2, refine=2, share=0.7)
    simulator = derived(final, "cosine", ends=ends)
    trials = simulator.search.trials
    assert trials.units <= 200
    refined = [t for t in trials.all.values() if t.origin is not None and t.repeat_of is None]
    assert [trial.origin.how for trial in refined if trial.origin] == ["refinement"] * 2
    assert refined[1].origin is not None
    assert refined[1].origin.trial == refined[0].number
    first = winner(trials)
    assert first is not None
    assert (first.trial in {trial.number for trial in refined}) == wins
    again = search(simulator.search.context, "random_search")
    for event in simulator.events:
        if isinstance(event, Decided):
            taken = again.decide(Key(0, event.number))
            if isinstance(taken, Start):
                assert isinstance(event.decision, Start)
                taken = replace(taken, bound_from=event.decision.bound_from)
            assert taken == event.decision
        again.observe(event)

"""Every bandit's decisions against its paper's rule, plainly written and computed from scratch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded import CURVES, load, regret
from simulator import Simulator
from spaces import LOSS, POLICIES, TRAINING, context

from autotune.decide import Search
from autotune.decide.forecasters.last_value import LastValue
from autotune.decide.policies.asha import ASHA
from autotune.decide.policies.front_rung import (
    FrontRung,
    _contributions,
    _contributions_in_the_plane,
    epsilon_net,
    hypervolume_contribution,
)
from autotune.decide.policies.hyperband import Hyperband
from autotune.decide.policies.mo_asha import MOASHA
from autotune.decide.policies.pasha import PASHA, agree, noise
from autotune.decide.policies.rungs import Ladder, SingleRung, rung_units
from autotune.decide.proposers.random import Random
from autotune.pareto import hypervolume
from autotune.plugins.search import (
    Budget,
    Decided,
    Evicted,
    Failed,
    Frozen,
    Key,
    Objective,
    Observed,
    Policy,
    SearchContext,
    Start,
    Thaw,
    Wait,
)
from autotune.plugins.trials import Trials
from autotune.space import Configuration

Promotion = tuple[int, int] | None
SIZE = Objective("size", "minimize", "static")
SCORE = Objective("score", "maximize", "curve")


@dataclass
class Run:
    """All that a reference looks at: for every trial its values at every unit (less is better), the
    unit that it is frozen at, the one that it was last sent to, and whether it failed."""

    values: dict[int, dict[int, tuple[float, ...]]]
    frozen: dict[int, int]
    sent: dict[int, int]
    failed: set[int]
    arrivals: list[tuple[int, int]]


def played(
    policy: Policy, found: SearchContext, seed: int, decisions: int, fails: float, levels: int
) -> Iterator[tuple[Run, Any, Trials]]:
    """Before every decision all that has happened, then the decision; segments end in any order.
    Values are drawn from few levels, so that many are equal."""
    rng = np.random.default_rng(seed)
    trials = Trials(found.space, found.objectives)
    state = policy.initial(found)
    run = Run({}, {}, {}, set(), [])

    def tell(event: Any) -> None:
        nonlocal state
        trials.observe(event)
        state = policy.observe(found, state, event, trials)

    def propose(count: int) -> list[Configuration]:
        return [TRAINING.sample(np.random.default_rng(len(trials)))]

    def forecast(queries: Any) -> Any:
        raise AssertionError("a bandit forecasts nothing")

    for number in range(decisions):
        while len(trials.in_flight) == found.workers:
            _end(run, trials, int(rng.choice(list(trials.in_flight))), rng, fails, levels, tell)
        key = Key(found.seed, number)
        decision = policy.decide(found, state, propose, forecast, trials, key)
        yield run, decision, trials
        if isinstance(decision, Wait):
            _end(run, trials, next(iter(trials.in_flight)), rng, fails, levels, tell)
        elif isinstance(decision, Start | Thaw):
            run.sent[decision.trial] = decision.to
            tell(Decided(number, decision))
        else:
            return


def _end(
    run: Run, trials: Trials, number: int, rng: Any, fails: float, levels: int, tell: Any
) -> None:
    """A segment ends, now and then badly."""
    trial = trials[number]
    to = trial.target or 0
    if rng.random() < fails:
        run.failed.add(number)
        tell(Failed(number, trial.frozen, "error", "broke"))
        return
    static = {SIZE.name: float(number % 3)}
    for step in range(trial.frozen + 1, to + 1):
        metrics = {LOSS.name: float(rng.integers(levels)), SCORE.name: float(rng.integers(levels))}
        known = {**metrics, **static}
        run.values.setdefault(number, {})[step] = tuple(
            o.sign * known[o.name] for o in trials.objectives
        )
        tell(Observed(number, step, metrics, 1.0))
    run.frozen[number] = to
    run.arrivals.append((number, to))
    tell(Frozen(number, to, "checkpoint", static))


# --- the papers' rules ------------------------------------------------------------------------


def by_value(run: Run, members: list[int], unit: int) -> list[int]:
    return sorted(members, key=lambda n: (run.values[n][unit], n))


def asha(
    run: Run, units: list[int], reduction: int, own: set[int], top: int, rank: Any = by_value
) -> Promotion:
    """Li et al. 2020, algorithm 2, ``get_job``."""
    for place in range(top - 1, -1, -1):
        unit = units[place]
        members = [n for n in own if run.frozen.get(n, 0) >= unit]
        on_their_way = [n for n in own & run.failed if _reached(run, n, units) == place - 1]
        count = len(members) + len(on_their_way)
        candidates = rank(run, members, unit)[: count // reduction]
        promotable = [n for n in candidates if run.sent[n] == unit and n not in run.failed]
        if promotable:
            return promotable[0], units[place + 1]
    return None


def _reached(run: Run, number: int, units: list[int]) -> int:
    return sum(unit <= run.frozen.get(number, 0) for unit in units) - 1


def by_fronts(order: Any) -> Any:
    """Schmucker et al. 2021: non-dominated sorting, by an epsilon-net within a front."""

    def rank(run: Run, members: list[int], unit: int) -> list[int]:
        left, ranking = sorted(members), []
        while left:
            front = [
                n
                for n in left
                if not any(dominates(run.values[m][unit], run.values[n][unit]) for m in left)
            ]
            ranking += [
                front[i] for i in order(np.array([run.values[n][unit] for n in front]), len(front))
            ]
            left = [n for n in left if n not in front]
        return ranking

    return rank


def dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True)) and one != other


def plain_net(values: np.ndarray, most: int) -> list[int]:
    low, high = values.min(axis=0), values.max(axis=0)
    points = (values - low) / np.where(high > low, high - low, 1.0)
    order = [int(np.argmin(values[:, 0]))]
    while len(order) < len(points):
        left = [i for i in range(len(points)) if i not in order]
        order.append(
            max(left, key=lambda i: min(((points[i] - points[j]) ** 2).sum() for j in order))
        )
    return order


def pasha_top(run: Run, units: list[int]) -> int:
    """Bohdal et al. 2023, algorithm 1 and section 4: the place of the top rung by now."""
    top, tolerance = min(1, len(units) - 1), 0.0
    there: list[int] = []
    for number, unit in run.arrivals:
        if unit != units[top] or top == len(units) - 1:
            continue
        there.append(number)
        distances = [
            abs(run.values[a][unit][0] - run.values[b][unit][0])
            for a, b in combinations(there, 2)
            if criss_cross([run.values[a][u][0] > run.values[b][u][0] for u in range(1, unit + 1)])
        ]
        tolerance = float(np.percentile(distances, 90)) if distances else tolerance
        below = by_value(run, there, units[top - 1])
        same = all(
            abs(run.values[n][units[top - 1]][0] - run.values[at][units[top - 1]][0]) <= tolerance
            for n, at in zip(in_order(run, there, unit), below, strict=True)
        )
        if not same:
            top, there = top + 1, []
    return top


def in_order(run: Run, there: list[int], unit: int) -> list[int]:
    return sorted(there, key=lambda n: run.values[n][unit][0])  # of equals the earlier arrival


def criss_cross(ahead: list[bool]) -> bool:
    """The order of the last unit, at an earlier one the other, before that the first again."""
    other = [place for place, order in enumerate(ahead) if order != ahead[-1]]
    return bool(other) and ahead[-1] in ahead[: other[-1]]


def matches(decision: Any, expected: Promotion, first: int) -> bool:
    if expected is None:
        return isinstance(decision, Start) and decision.to == first
    return decision == Thaw(*expected)


CASES = {
    "seed": st.integers(0, 2**16),
    "horizon": st.sampled_from([1, 2, 9, 20, 27]),
    "reduction": st.sampled_from([2, 3, 4]),
    "workers": st.sampled_from([1, 2, 5]),
    "fails": st.sampled_from([0.0, 0.15]),
    "levels": st.sampled_from([2, 6, 10**6]),
}


def search(found: SearchContext, policy: str) -> Search:
    """With a forecaster that costs nothing: bandits do not ask it."""
    return Search(found, POLICIES[policy](), Random(), LastValue())


FEW = settings(max_examples=15, deadline=None, derandomize=True)


def endless(horizon: int, workers: int, *objectives: Objective) -> SearchContext:
    return replace(context(objectives=objectives or (LOSS,), horizon=horizon), workers=workers)


@FEW
@given(**CASES)
def test_asha_promotes_as_in_its_paper(
    seed: int, horizon: int, reduction: int, workers: int, fails: float, levels: int
) -> None:
    units = rung_units(horizon, reduction)
    found = endless(horizon, workers)
    policy = ASHA({"reduction": reduction})
    for run, decision, trials in played(policy, found, seed, 100, fails, levels):
        expected = asha(run, units, reduction, set(trials.all), len(units) - 1)
        assert matches(decision, expected, units[0])


@FEW
@given(**CASES)
def test_hyperband_works_for_the_bracket_that_was_given_the_least(
    seed: int, horizon: int, reduction: int, workers: int, fails: float, levels: int
) -> None:
    units = rung_units(horizon, reduction)
    found = endless(horizon, workers)
    policy = Hyperband({"reduction": reduction})
    own: list[set[int]] = [set() for _ in units]
    for run, decision, trials in played(policy, found, seed, 100, fails, levels):
        spent = [
            sum(trials[n].last if n in run.failed else run.sent[n] for n in bracket)
            for bracket in own
        ]
        least = spent.index(min(spent))
        ladder = units[least:]
        expected = asha(run, ladder, reduction, own[least], len(ladder) - 1)
        assert matches(decision, expected, ladder[0])
        if isinstance(decision, Start):
            own[least].add(decision.trial)


@FEW
@given(**CASES)
def test_pasha_grows_as_in_its_paper(
    seed: int, horizon: int, reduction: int, workers: int, fails: float, levels: int
) -> None:
    units = rung_units(horizon, reduction)
    found = endless(horizon, workers)
    policy = PASHA({"reduction": reduction})
    for run, decision, trials in played(policy, found, seed, 100, fails, levels):
        expected = asha(run, units, reduction, set(trials.all), pasha_top(run, units))
        assert matches(decision, expected, units[0])


@FEW
@given(three=st.booleans(), within=st.sampled_from(["epsilon_net", "hypervolume"]), **CASES)
def test_mo_asha_promotes_as_in_its_paper(
    three: bool,
    within: str,
    seed: int,
    horizon: int,
    reduction: int,
    workers: int,
    fails: float,
    levels: int,
) -> None:
    units = rung_units(horizon, reduction)
    found = endless(horizon, workers, LOSS, SCORE, *([SIZE] if three else []))
    policy = MOASHA({"reduction": reduction, "within_front": within})
    rank = by_fronts(plain_net if within == "epsilon_net" else hypervolume_contribution)
    for run, decision, trials in played(policy, found, seed, 70, fails, levels):
        expected = asha(run, units, reduction, set(trials.all), len(units) - 1, rank)
        assert matches(decision, expected, units[0])


# --- what the rules are for -------------------------------------------------------------------


def lengths(policy: str, curve: Any, horizon: int = 27) -> list[int]:
    """How long each trial of a search was trained."""
    found = context(Budget(trials=60), horizon=horizon, workers=1)
    simulator = Simulator(search(found, policy), curve)
    simulator.run()
    return [trial.last for trial in simulator.search.trials.all.values()]


def place(configuration: Configuration) -> float:
    return float(TRAINING.encode(configuration)[0].mean())


def stable(configuration: Configuration, step: int) -> Mapping[str, float]:
    return {LOSS.name: place(configuration) + 1 / step}


def turning(configuration: Configuration, step: int) -> Mapping[str, float]:
    """The order is another at every rung."""
    wave = math.sin(1000 * place(configuration) + 37 * math.ceil(math.log(step, 3)))
    return {LOSS.name: 2 + wave + 1 / step}


def test_pasha_stops_growing_where_the_ranking_is_stable() -> None:
    assert max(lengths("asha", stable)) == 27
    assert max(lengths("pasha", stable)) == 3
    assert sum(lengths("pasha", stable)) < 0.7 * sum(lengths("asha", stable))


def test_pasha_grows_to_the_horizon_where_the_ranking_changes() -> None:
    assert max(lengths("pasha", turning)) == 27


def test_noise_is_what_changes_and_changes_back() -> None:
    curves = np.array([[1.0, 1.2, 1.0], [0.9, 1.3, 0.8], [5.0, 4.0, 3.0], [3.5, 3.0, 3.1]])
    assert noise(curves) == pytest.approx(0.2), "the first two; the last two cross once"
    assert noise(curves[2:]) is None
    assert noise(curves[:1]) is None


def test_a_soft_ranking_forgives_what_the_tolerance_does() -> None:
    below, above = np.array([1.0, 1.1, 2.0]), np.array([0.6, 0.5, 1.0])
    assert not agree(below, above, 0.05)
    assert agree(below, above, 0.1 + 1e-12)
    assert agree(below, np.array([0.5, 0.6, 1.0]), 0.0)


def test_equal_trials_are_not_all_promoted() -> None:
    found = endless(9, 1)
    decisions = [d for _, d, _ in played(ASHA(), found, 0, 40, 0.0, 1)]
    starts = sum(isinstance(d, Start) for d in decisions)
    to_second = sum(isinstance(d, Thaw) and d.to == 3 for d in decisions)
    assert 0 < to_second <= starts // 3


@pytest.mark.parametrize("policy", [ASHA, Hyperband, PASHA, MOASHA])
def test_a_trial_whose_checkpoint_is_gone_is_not_promoted(policy: type[Policy]) -> None:
    found, plugin = endless(9, 1), policy()
    trials, state = Trials(found.space, found.objectives), plugin.initial(found)
    for number in range(9):
        configuration = TRAINING.sample(np.random.default_rng(number))
        for event in (
            Decided(number, Start(number, configuration, 9, 1)),
            Observed(number, 1, {LOSS.name: float(number)}, 1.0),
            Frozen(number, 1, f"checkpoint-{number}"),
        ):
            trials.observe(event)
            state = plugin.observe(found, state, event, trials)
    ladder = state.brackets[0] if policy is Hyperband else getattr(state, "ladder", state)
    assert ladder.promotion(trials) == Thaw(0, 3)
    evicted = Evicted(0, 1, "budget")
    trials.observe(evicted)
    plugin.observe(found, state, evicted, trials)
    # Hyperband's first bracket has three of the nine trials, of which one may go on.
    assert ladder.promotion(trials) == (None if policy is Hyperband else Thaw(1, 3))


@pytest.mark.parametrize("rung", [SingleRung, partial(FrontRung, order=epsilon_net)])
def test_a_trial_at_its_end_keeps_no_other_from_going_on(rung: Any) -> None:
    """After a longer horizon, one that was bound to the old one is done at a rung below the top."""
    trials, ladder = Trials(TRAINING, (LOSS,)), Ladder([3, 9, 27], 3, [LOSS], rung)
    for number in range(6):
        configuration = TRAINING.sample(np.random.default_rng(number))
        horizon = 3 if number == 0 else 27
        for event in (
            Decided(number, Start(number, configuration, horizon, 3, 0.5 if number == 0 else None)),
            Observed(number, 3, {LOSS.name: float(number)}, 1.0),
            Frozen(number, 3, "checkpoint"),
        ):
            trials.observe(event)
            ladder.observe(event, trials)
    assert trials[0].status == "done"
    assert ladder.promotion(trials) == Thaw(1, 9), "of six two may go on, and the first is done"


def test_contributions_to_the_hypervolume() -> None:
    rng = np.random.default_rng(0)
    angle = np.sort(rng.uniform(0, math.pi / 2, 12))
    front = np.stack([1 - np.sin(angle), 1 - np.cos(angle)], axis=1)
    front = np.vstack([front, front[:1]])  # twice the same contributes nothing
    assert _contributions_in_the_plane(front) == pytest.approx(_contributions(front), abs=1e-12)
    corners = np.array([[0.0, 1.0], [0.5, 0.5], [1.0, 0.0], [0.9, 0.05]])
    assert hypervolume_contribution(corners, 1)[0] == 1


def test_an_epsilon_net_begins_with_the_best_and_spreads() -> None:
    line = np.array([[x, 1000 * (1 - x)] for x in (0.5, 0.3, 0.0, 1.0, 0.1)])
    assert epsilon_net(line, 5) == [2, 3, 0, 1, 4]
    assert epsilon_net(np.zeros((3, 2)), 3) == [0, 1, 2], "each once, also of equals"


def test_a_missing_objective_is_the_worst_and_a_missing_primary_one_is_never_promoted() -> None:
    rung = FrontRung(3, epsilon_net)
    rung.enter(0, [math.nan, 0.0])
    rung.enter(1, [1.0, math.nan])
    rung.enter(2, [2.0, math.nan])
    assert rung.promotable() == 1
    rung.leave(1)
    for number in (3, 4, 5):
        rung.enter(number, [3.0, 5.0 + number])
    assert rung.promotable() == 3


def test_mo_asha_with_one_objective_is_asha() -> None:
    found = endless(27, 2)
    one = [d for _, d, _ in played(ASHA(), found, 3, 200, 0.1, 10**6)]
    assert one == [d for _, d, _ in played(MOASHA(), found, 3, 200, 0.1, 10**6)]


def test_mo_asha_finds_more_of_the_front_than_asha() -> None:
    """At equal units: accuracy against size, as far as the last unit of each trial."""

    def curve(configuration: Configuration, step: int) -> Mapping[str, float]:
        width = configuration["width"] / 64
        bad = abs(math.log10(configuration["optimizer"]["learning_rate"]) + 2) / 2
        return {LOSS.name: (1 - width) + bad + 1 / step, "cost": width + bad + 1 / step}

    cost = Objective("cost", "minimize", "curve")
    found: dict[str, list[float]] = {"asha": [], "mo_asha": []}
    for seed in range(5):
        for policy, volumes in found.items():
            asked = context(Budget(units=200), (LOSS, cost), horizon=27, workers=1, seed=seed)
            simulator = Simulator(search(asked, policy), curve)
            simulator.run()
            trials = simulator.search.trials.all.values()
            points = [[t.metrics[t.last][name] for name in (LOSS.name, "cost")] for t in trials]
            volumes.append(hypervolume(points, (2.0, 2.0)))
    assert np.mean(found["mo_asha"]) > np.mean(found["asha"]), found


@pytest.mark.skipif(not CURVES.is_dir(), reason=f"no recorded curves in {CURVES}")
@pytest.mark.parametrize("policy", ["asha", "hyperband", "pasha", "mo_asha"])
def test_no_bandit_is_worse_than_random_search_on_recorded_tables(policy: str) -> None:
    ours, random = [], []
    for table in ("lcbench_surrogate_168868", "taskset_patch32_GRU64_avg_bs128"):
        for seed in range(4):
            ours.append(ended(table, seed, policy))
            random.append(ended(table, seed, "random_search"))
    assert np.mean(ours) < np.mean(random), (ours, random)


@cache
def ended(table: str, seed: int, policy: str) -> float:
    """Regret at the end of a search that pays for eight full trainings."""
    space, curves, objective = load(table, seed)
    horizon = curves.shape[1]
    found = context(
        Budget(units=8 * horizon), (objective,), space=space, horizon=horizon, seed=seed, workers=1
    )

    def curve(configuration: Configuration, step: int) -> Mapping[str, float]:
        return {"value": float(curves[space.row(configuration), step - 1])}

    simulator = Simulator(search(found, policy), curve)
    simulator.run()
    values = [e.metrics["value"] for e in simulator.events if isinstance(e, Observed)]
    return float(regret(np.array(values), curves, objective.sign)[-1])

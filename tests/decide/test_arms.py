"""Arm bandits against plain forms of their papers' rules, and on drifting and switching arms."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from simulator import Simulator
from spaces import SPACE, TRAINING, context

from autotune.decide import Search
from autotune.decide.arms.bandit import Bandit, drawn
from autotune.decide.arms.exp3 import EXP3, EXP3Arms
from autotune.decide.arms.families import Families
from autotune.decide.arms.stabl import StABL, StABLArms
from autotune.decide.arms.thompson import Thompson, ThompsonArms
from autotune.decide.configurations import identity
from autotune.decide.forecasters.last_value import LastValue
from autotune.decide.proposers.random import Random
from autotune.decide.proposers.tpe import TPE
from autotune.plugins.base import PluginError
from autotune.plugins.search import Budget, Decided, Start, Thaw
from autotune.space import Choice, Configuration, Float, Space

ARMS = (ThompsonArms, EXP3Arms, StABLArms)


# --- the rules ------------------------------------------------------------------------------


def test_exp3_follows_the_papers_rule_in_every_batch() -> None:
    arms, batch = 3, 7
    bandit, generator = EXP3(arms, batch), np.random.default_rng(0)
    state = bandit.initial()
    gamma = min(1.0, math.sqrt(arms * math.log(arms) / ((math.e - 1) * batch)))
    assert bandit.gamma == gamma < 1
    weights = [1.0] * arms
    for round_ in range(40):
        if round_ % batch == 0:
            weights = [1.0] * arms
        expected = [(1 - gamma) * w / sum(weights) + gamma / arms for w in weights]
        assert bandit.probabilities(state) == pytest.approx(expected, rel=1e-12)
        arm, reward = int(generator.integers(arms)), float(generator.random())
        bandit.rewarded(state, bandit.pulled(state, arm, range(bandit.arms)), reward)
        weights[arm] *= math.exp(gamma * reward / expected[arm] / arms)


def test_exp3_drops_what_arrives_after_a_restart() -> None:
    bandit = EXP3(2, batch=3)
    state = bandit.initial()
    late = bandit.pulled(state, 1, range(bandit.arms))
    for _ in range(3):
        bandit.pulled(state, 0, range(bandit.arms))
    bandit.rewarded(state, late, 1.0)
    assert bandit.probabilities(state) == pytest.approx([0.5, 0.5])
    bandit.rewarded(state, bandit.pulled(state, 1, range(bandit.arms)), 1.0)
    assert bandit.probabilities(state)[1] > 0.5


@pytest.mark.parametrize("bandit", [EXP3(3), StABL(3)])
def test_where_an_arm_cannot_be_pulled_the_probability_is_that_among_the_others(
    bandit: Bandit,
) -> None:
    state, generator = bandit.initial(), np.random.default_rng(0)
    for arm, reward in ((0, 1.0), (0, 1.0), (2, 0.2), (1, 0.9), (0, 0.8)):
        bandit.rewarded(state, bandit.pulled(state, arm, range(3)), reward)
    plain = bandit.probabilities(state)  # type: ignore[attr-defined]
    played = [next(a for a in bandit.choose(state, generator) if a != 0) for _ in range(4000)]
    counted = np.bincount(played, minlength=3) / len(played)
    pull = bandit.pulled(state, 1, [1, 2])
    assert pull.probability == pytest.approx(counted[1], abs=0.03)
    assert pull.probability == pytest.approx(plain[1] / (plain[1] + plain[2]))
    assert abs(pull.probability - plain[1]) > 0.1


def test_thompson_forgets_by_its_discount() -> None:
    bandit = Thompson(2, discount=0.9)
    state = bandit.initial()
    history = [(0, 1.0), (1, 0.25), (0, 0.0), (1, 1.0)]
    for arm, reward in history:
        bandit.rewarded(state, bandit.pulled(state, arm, range(bandit.arms)), reward)
    for arm in range(2):
        ages = [(len(history) - 1 - i, r) for i, (a, r) in enumerate(history) if a == arm]
        assert state.gains[arm] == pytest.approx(sum(0.9**age * r for age, r in ages))
        assert state.losses[arm] == pytest.approx(sum(0.9**age * (1 - r) for age, r in ages))


def test_draws_have_the_probabilities_given() -> None:
    generator, wanted = np.random.default_rng(1), np.array([0.6, 0.3, 0.1])
    first = [drawn(wanted, generator)[0] for _ in range(4000)]
    assert np.bincount(first) / 4000 == pytest.approx(wanted, abs=0.03)
    assert sorted(drawn(wanted, generator)) == [0, 1, 2]


def test_stabl_learns_from_the_second_pull_without_bias() -> None:
    bandit, generator = StABL(3), np.random.default_rng(2)
    state = bandit.initial()
    for _ in range(50):
        bandit.rewarded(
            state, bandit.pulled(state, int(generator.integers(3)), range(bandit.arms)), 0.7
        )
    played = bandit.probabilities(state)
    before = state.logarithms.copy()
    bandit.rewarded(state, bandit.pulled(state, 0, range(bandit.arms)), 0.0)
    assert (state.logarithms == before).all(), "the first of a round is only played"
    explored = bandit.probabilities(state)
    assert explored == pytest.approx(0.5 * played + 0.5 / 3)
    assert explored.min() >= 0.5 / 3
    # The learner with the longest memory moves by its step size times an estimate whose mean, over
    # the arms that may be pulled, is the vector of losses.
    losses = np.array([0.2, 0.5, 0.9])
    moved = np.zeros(3)
    for arm, probability in enumerate(explored):
        copy = bandit.initial()
        copy.logarithms, copy.trust = state.logarithms.copy(), state.trust.copy()
        copy.pulls, copy.learned = state.pulls, state.learned
        bandit.rewarded(copy, bandit.pulled(copy, arm, range(bandit.arms)), 1.0 - losses[arm])
        moved += probability * (copy.logarithms[-1] - state.logarithms[-1])
    length = 2 ** (len(state.trust) - 1)
    size = bandit.step_size * math.sqrt(math.log(3) / (3 * length))
    assert (state.learned + 1) % length, "it does not begin anew here"
    assert moved == pytest.approx(-size * losses, rel=1e-9)


# --- what they are for ----------------------------------------------------------------------


def regret(
    bandit: Bandit, means: np.ndarray, seed: int, delay: int = 0, pulls: int = 1
) -> np.ndarray:
    """Of the first pull of every round, against the best arm of that round. Rewards are coins, and
    arrive `delay` pulls late."""
    generator = np.random.default_rng(seed)
    state, waiting, lost = bandit.initial(), deque[Any](), np.zeros(len(means))
    for round_, worth in enumerate(means):
        for pull in range(pulls):
            arm = bandit.choose(state, generator)[0]
            reward = float(generator.random() < worth[arm])
            waiting.append((bandit.pulled(state, arm, range(bandit.arms)), reward))
            if len(waiting) > delay:
                bandit.rewarded(state, *waiting.popleft())
            if pull == 0:
                lost[round_] = worth.max() - worth[arm]
    return lost


def drifting(rounds: int) -> np.ndarray:
    """Two arms that swing against each other one and a half times, whatever the rounds: a constant
    budget of variation, as in section 5 of Besbes et al."""
    first = 0.5 + 0.3 * np.sin(3 * np.pi * np.arange(rounds) / rounds)
    return np.stack([first, 1.0 - first], 1)


@pytest.mark.parametrize("delay", [0, 20])
def test_restarts_make_the_regret_of_drifting_arms_sublinear(delay: int) -> None:
    def total(rounds: int, batch: int) -> float:
        runs = [regret(EXP3(2, batch), drifting(rounds), seed, delay) for seed in range(2)]
        return float(np.mean([run.sum() for run in runs]))

    def best_batch(rounds: int) -> int:
        return math.ceil((2 * math.log(2)) ** (1 / 3) * (rounds / 1.8) ** (2 / 3))

    few, many = 2_000, 16_000
    restarted = [total(rounds, best_batch(rounds)) for rounds in (few, many)]
    never = [total(rounds, 10**9) for rounds in (few, many)]
    growth = [math.log(b / a, many / few) for a, b in (restarted, never)]
    assert growth[0] < 0.85 < growth[1], "T^(2/3) and batches that grow, against T"
    assert restarted[1] < 0.5 * never[1]


def test_forgetting_helps_thompson_sampling_with_drifting_arms() -> None:
    means = drifting(4_000)
    forgets = np.mean([regret(Thompson(2, 0.98), means, s, 10).sum() for s in range(2)])
    keeps = np.mean([regret(Thompson(2, 1.0), means, s, 10).sum() for s in range(2)])
    assert forgets < 0.5 * keeps


def test_stabls_regret_on_every_interval_is_of_the_order_of_its_root() -> None:
    """Arms that switch every so many rounds. Divided by sqrt(n |I|) the regret on the intervals
    between switches may grow like a logarithm only, whatever their length: one bandit serves all.
    EXP3's grows with sqrt(|I|), by which it is 4 times as large at 16 times the length."""
    arms, rounds = 5, 4096

    def scaled(bandit: Bandit, length: int, pulls: int) -> float:
        means = np.full((rounds, arms), 0.3)
        for interval in range(rounds // length):
            best = (3 * interval + interval // 2) % arms
            means[interval * length : (interval + 1) * length, best] = 0.8
        lost = regret(bandit, means, 0, pulls=pulls).reshape(-1, length).sum(1)
        return float(lost[1:].mean() / math.sqrt(arms * length))

    stabl = [scaled(StABL(arms), length, 2) for length in (64, 256, 1024)]
    exp3 = [scaled(EXP3(arms, 10**9), length, 1) for length in (64, 256, 1024)]
    assert stabl[-1] < 2.0 * stabl[0]
    assert exp3[-1] > 3.0 * exp3[0]
    assert stabl[-1] < 0.5 * exp3[-1]


# --- families and the policies --------------------------------------------------------------


def test_the_choice_that_is_shared() -> None:
    plugins = {"a": {"rate": Float(0.0, 1.0)}, "b": {}}
    space = Space(
        {
            "shape": Choice({"round": {}, "square": {"side": Float(0.0, 1.0)}}),
            "adapter": Choice(plugins, kind="adapter"),
            "optimizer": Choice(plugins, kind="optimizer"),
        }
    )
    for preferred, path in (("adapter", "adapter"), ("optimizer", "optimizer")):
        found = Families.found(space, preferred)
        assert found is not None
        assert space.slots[found.slot].path == path
    fallen_back = Families.found(space, "schedule")
    assert fallen_back is not None
    assert space.slots[fallen_back.slot].path == "optimizer"
    plain = Families.found(Space({"shape": space.parameters["shape"]}), "optimizer")
    assert plain is not None
    assert plain.options == ("round", "square")
    assert Families.found(Space({"rate": Float(0.0, 1.0)}), "optimizer") is None
    with pytest.raises(PluginError, match="none with two options"):
        ThompsonArms().initial(context(space=Space({"rate": Float(0.0, 1.0)})))


def test_new_members_are_of_the_family_and_allowed() -> None:
    families = Families.found(TRAINING, "optimizer")
    assert families is not None
    told, generator = context(), np.random.default_rng(0)
    parent = {
        "width": 8,
        "activation": "relu",
        "batch_size": 64,
        "optimizer": {
            "name": "two",
            "learning_rate": 0.3,
            "inner": {"name": "decayed", "decay": 0.7},
        },
    }
    encoded = [TRAINING.encode(parent)[0]]
    for arm, option in enumerate(families.options):

        def propose(count: int) -> list[Configuration]:
            return [TRAINING.sample(generator) for _ in range(count)]

        parents = encoded if option == "two" else []
        found = families.proposed(arm, 40, propose, told, parents, set(), lambda c: True, generator)
        assert len(found) == 40
        for configuration in found:
            TRAINING.validate(configuration)
            assert configuration["optimizer"]["name"] == option
    started = {identity(c) for c in found}
    again = families.proposed(
        arm, 40, lambda n: found[:n], told, encoded, started, lambda c: True, generator
    )
    assert not {identity(c) for c in again} & started or again == found[: len(again)]


def made(policy: Any, told: Any, proposer: Any = None) -> Search:
    return Search(told, policy, proposer or Random(), LastValue())


def uneven(configuration: Mapping[str, Any], step: int) -> Mapping[str, float]:
    """Option two is better, whatever else is chosen; the rest matters a little."""
    offset = 0.0 if configuration["optimizer"]["name"] == "two" else 0.5
    return {"validation_loss": offset + 0.1 * math.log(configuration["width"]) + 1.0 / step}


@pytest.mark.parametrize("policy", ARMS)
@pytest.mark.parametrize("workers", [1, 4])
def test_the_budget_goes_to_the_better_family(policy: Any, workers: int) -> None:
    told = context(Budget(units=600), workers=workers)
    simulator = Simulator(made(policy(), told), uneven, lose=frozenset({3, 10}))
    simulator.run()
    units = {"one": 0, "two": 0}
    for trial in simulator.search.trials.all.values():
        units[trial.configuration["optimizer"]["name"]] += trial.last
    assert sum(units.values()) == 600
    # StABL gives a quarter of every second pull to each arm, whatever it knows.
    assert units["two"] > (1.5 if policy is StABLArms else 2.0) * units["one"] > 0


@pytest.mark.parametrize("policy", ARMS)
def test_a_family_that_fails_is_left(policy: Any) -> None:
    def curve(configuration: Mapping[str, Any], step: int) -> Mapping[str, float]:
        if configuration["optimizer"]["name"] == "one":
            return {"validation_loss": math.nan}
        return uneven(configuration, step)

    simulator = Simulator(made(policy(), context(Budget(units=300))), curve)
    simulator.run()
    trials = simulator.search.trials.all.values()
    failed = sum(trial.failure is not None for trial in trials)
    assert 0 < failed < (0.48 if policy is StABLArms else 0.35) * len(trials)


def test_what_was_pulled_without_a_choice_had_probability_one() -> None:
    """The default comes first whatever is drawn; and once no trial may be started, a family that
    has none to promote cannot be pulled."""
    noted: list[tuple[float, bool]] = []

    class Noting(EXP3Arms):
        def observe(self, context: Any, state: Any, event: Any, trials: Any) -> Any:
            decision = event.decision if isinstance(event, Decided) else None
            new = isinstance(decision, Start | Thaw) and decision.trial not in state.pulls
            ready = [inside.promotion(trials) is not None for inside in state.inside]
            state = super().observe(context, state, event, trials)
            if new:
                forced = decision.trial == 0 or (len(trials) == 12 and not any(ready))
                noted.append((state.pulls[decision.trial].probability, forced))
            return state

    told = context(Budget(trials=12), workers=1)
    Simulator(made(Noting(), told), uneven).run()
    forced = [probability for probability, alone in noted if alone]
    free = [probability for probability, alone in noted if not alone]
    assert len(forced) >= 2
    assert set(forced) == {1.0}
    assert min(free) < 0.9


@pytest.mark.parametrize("policy", ARMS)
def test_a_region_that_fails_is_left_in_every_family(policy: Any) -> None:
    """A third of the space: after five failures at most a twentieth of what is begun."""

    def curve(configuration: Mapping[str, Any], step: int) -> Mapping[str, float]:
        if configuration["width"] > 32:
            return {"validation_loss": math.nan}
        return uneven(configuration, step)

    simulator = Simulator(made(policy(), context(Budget(units=250), workers=1)), curve)
    simulator.run()
    failed = [trial.failure is not None for trial in simulator.search.trials.all.values()]
    assert len(failed) > 50
    assert sum(failed) <= 5 + 0.05 * len(failed)


def test_what_the_user_wants_first_is_first_whatever_its_family() -> None:
    generator = np.random.default_rng(5)
    wanted = tuple(TRAINING.sample(generator) for _ in range(4))
    simulator = Simulator(made(EXP3Arms(), context(Budget(trials=8), first=wanted)), uneven)
    simulator.run()
    started = [
        e.decision.configuration
        for e in simulator.events
        if isinstance(e, Decided) and isinstance(e.decision, Start)
    ]
    assert started[:5] == [TRAINING.default(), *wanted]
    assert any(isinstance(e.decision, Thaw) for e in simulator.events if isinstance(e, Decided))


def test_the_studys_own_proposer_is_asked() -> None:
    asked = []

    class Asked(TPE):
        def propose(self, *arguments: Any) -> Any:
            found = super().propose(*arguments)
            asked.extend(found)
            return found

    simulator = Simulator(made(ThompsonArms(), context(Budget(trials=30)), Asked()), uneven)
    simulator.run()
    shared = {c["width"] for c in asked}
    mine = [t.configuration["width"] for t in simulator.search.trials.all.values()]
    assert sum(width in shared for width in mine) > 0.8 * len(mine)
    assert SPACE.split()[0].slots == TRAINING.slots

"""Regions that fail are proposed less and less; the rest is not starved."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from simulator import Simulator

from autotune.decide import Search, build_search
from autotune.decide.avoidance import Avoidance
from autotune.decide.search import FRUITLESS
from autotune.plugins.discovery import Catalogue
from autotune.plugins.search import (
    Budget,
    Decided,
    Event,
    Failed,
    Frozen,
    Key,
    Objective,
    Observed,
    SearchContext,
    Start,
    Thaw,
)
from autotune.plugins.trials import Trials
from autotune.space import Categorical, Choice, Configuration, Float, Integer, Space

Region = Callable[[Configuration], bool]

LOSS = Objective("loss", "minimize", "curve")
SPACE = Space(
    {
        **{f"x{index}": Float(0.0, 1.0) for index in range(6)},
        "rate": Float(1e-5, 1.0, log=True),
        "width": Integer(8, 256, log=True),
        "optimizer": Categorical(("sgd", "adam", "lion", "muon"), default="adam"),
        "model": Choice(
            {
                "plain": Space({"depth": Integer(1, 8)}),
                "convolution": Space({"kernel": Integer(1, 9), "groups": Integer(1, 4)}),
            }
        ),
    }
)
REGIONS: dict[str, Region] = {
    "one of many dimensions": lambda c: c["width"] > 64,
    "a category": lambda c: c["optimizer"] == "lion",
    "a corner of two dimensions": lambda c: c["rate"] > 0.01 and c["width"] > 45,
    "a dimension of one option": lambda c: c["model"].get("kernel", 0) > 5,
}


def story(trials: Trials, configuration: Configuration, fails: bool) -> list[Event]:
    number = len(trials)
    begun = Decided(number, Start(number, configuration, 9, 1))
    if fails:
        return [begun, Failed(number, 0, "out_of_memory", "too large")]
    return [begun, Observed(number, 1, {"loss": 1.0}, 1.0), Frozen(number, 1, "somewhere")]


def tell(avoidance: Avoidance, trials: Trials, configuration: Configuration, fails: bool) -> None:
    for event in story(trials, configuration, fails):
        trials.observe(event)
        avoidance.observe(event, trials)


def learned(fails: Region, seed: int, failures: int) -> tuple[Avoidance, Trials]:
    """After random trials until so many have failed."""
    trials, avoidance = Trials(SPACE, (LOSS,)), Avoidance(SPACE, seed)
    generator = np.random.default_rng(seed)
    while len(avoidance.failed) < failures:
        configuration = SPACE.sample(generator)
        tell(avoidance, trials, configuration, fails(configuration))
    return avoidance, trials


def shares(fails: Region, seed: int) -> tuple[float, float]:
    """After five failures: the region's share of what is kept, and what of the rest is kept."""
    avoidance, trials = learned(fails, seed, 5)
    probe = [SPACE.sample(np.random.default_rng([seed, n])) for n in range(400)]
    kept = avoidance.kept(probe, trials)
    bad = sum(map(fails, kept))
    return bad / len(kept), (len(kept) - bad) / sum(not fails(c) for c in probe)


@pytest.mark.parametrize("region", REGIONS)
def test_after_five_failures_a_region_is_a_twentieth_of_the_proposals(region: str) -> None:
    found = np.array([shares(REGIONS[region], seed) for seed in range(6)])
    assert found[:, 0].mean() < 0.05
    assert found[:, 1].mean() > 0.7, "what works is not starved"


def test_failures_by_chance_thin_no_region() -> None:
    found = []
    for seed in range(4):
        avoidance, trials = learned(lambda c: zlib.crc32(str(c["x0"]).encode()) % 5 == 0, seed, 8)
        probe = [SPACE.sample(np.random.default_rng([seed, n])) for n in range(200)]
        kept = avoidance.kept(probe, trials)
        assert len(kept) > 100
        found.append(sum(c["x1"] > 0.5 for c in kept) / len(kept))
    assert abs(float(np.mean(found)) - 0.5) < 0.12


def search(policy: str, proposer: str, seed: int) -> Search:
    context = SearchContext(SPACE, Space({}), (LOSS,), 3, Budget(units=10_000), seed)
    parts = {"policy": policy, "proposer": proposer, "forecaster": "pfn"}
    return build_search(context, {k: {"name": v} for k, v in parts.items()}, Catalogue().get)


@pytest.mark.parametrize(
    ("policy", "proposer", "seeds"),
    [
        ("random_search", "random", 2),
        ("random_search", "sobol", 2),
        ("random_search", "tpe", 1),
        ("freeze_thaw", "tpe", 1),
    ],
)
def test_every_proposer_and_freeze_thaw_itself_leave_the_region(
    policy: str, proposer: str, seeds: int
) -> None:
    fails = REGIONS["one of many dimensions"]

    def curve(configuration: Configuration, step: int) -> dict[str, float]:
        if fails(configuration):
            return {"loss": math.nan}
        return {"loss": (configuration["x1"] - 0.5) ** 2 + math.exp(-step)}

    inside: list[bool] = []
    for seed in range(seeds):
        searching = search(policy, proposer, seed)
        simulator = Simulator(searching, curve)
        failures, after = 0, 0
        while after < 30:
            decision = searching.decide(Key(seed, searching.trials.decisions))
            simulator.tell(Decided(searching.trials.decisions, decision))
            if isinstance(decision, Start) and failures >= 5:
                inside.append(fails(decision.configuration))
                after += 1
            for report in list(simulator.reports(-1, decision)):
                simulator.tell(report)
                failures += isinstance(report, Failed)
    assert sum(inside) / len(inside) <= 0.05


def test_the_rules_do_not_depend_on_when_they_were_asked_for() -> None:
    fails = REGIONS["a category"]
    probe = [SPACE.sample(np.random.default_rng(n)) for n in range(50)]
    asked, trials = Avoidance(SPACE, 3), Trials(SPACE, (LOSS,))
    generator = np.random.default_rng(3)
    for _ in range(60):
        configuration = SPACE.sample(generator)
        tell(asked, trials, configuration, fails(configuration))
        asked.kept(probe, trials)
    assert asked.kept(probe, trials) == learned_again(trials, 3).kept(probe, trials)


def learned_again(trials: Trials, seed: int) -> Avoidance:
    avoidance, again = Avoidance(SPACE, seed), Trials(SPACE, (LOSS,))
    for trial in trials.all.values():
        tell(avoidance, again, trial.configuration, trial.status == "failed")
    return avoidance


def test_a_trial_that_fails_later_counts_once_its_failure_is_looked_at() -> None:
    """The 17th failure is not looked at; it is of a trial that was fine, which it stays so long."""
    probe = [SPACE.sample(np.random.default_rng(n)) for n in range(50)]
    fails, trials = REGIONS["a category"], Trials(SPACE, (LOSS,))
    early, late = Avoidance(SPACE, 3), Avoidance(SPACE, 3)
    generator = np.random.default_rng(3)
    while len(early.failed) < 16:
        configuration = SPACE.sample(generator)
        for event in story(trials, configuration, fails(configuration)):
            trials.observe(event)
            early.observe(event, trials)
            late.observe(event, trials)
    before = early.risk(trials)(probe)
    again = early.fine[0]
    for event in (Decided(len(trials), Thaw(again, 2)), Failed(again, 1, "out_of_memory", "late")):
        trials.observe(event)
        early.observe(event, trials)
        late.observe(event, trials)
    assert early.risk(trials)(probe).tolist() == before.tolist()
    assert late.risk(trials)(probe).tolist() == before.tolist()


def test_where_everything_fails_something_is_still_proposed() -> None:
    searching = search("random_search", "random", 0)
    simulator = Simulator(searching, lambda configuration, step: {"loss": math.nan})
    simulator.run()
    assert len(searching.trials) == FRUITLESS, "the search gives up, not the proposals"


def test_without_failures_nothing_is_touched() -> None:
    avoidance, trials = Avoidance(SPACE, 0), Trials(SPACE, (LOSS,))
    asked: list[int] = []

    def draw(count: int) -> list[Configuration]:
        asked.append(count)
        return [SPACE.sample(np.random.default_rng(n)) for n in range(count)]

    assert avoidance.drawn(draw, 3, trials) == draw(3)
    assert asked == [3, 3]

from __future__ import annotations

import logging
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import qmc
from simulator import Simulator
from spaces import PROPOSERS, TRAINING, context, curve, search

from autotune.decide.proposers.random import Random
from autotune.decide.proposers.sobol import Sobol
from autotune.decide.proposers.tpe import TPE
from autotune.plugins.search import Budget, Decided, Failed, Key, Observed, SearchContext, Start
from autotune.plugins.trials import Trials
from autotune.space import Categorical, Float, Prior, Space

CUBE = Space({f"x{i}": Float(0.0, 1.0) for i in range(5)} | {"c": Categorical(("a", "b", "c"))})


def observed(found: SearchContext, count: int, proposer: Any) -> tuple[Any, Trials]:
    """State and trials after `count` random trials of three units, every fifth failed."""
    trials, state = Trials(found.space, found.objectives), proposer.initial(found)
    generator = np.random.default_rng(3)
    for number in range(count):
        configuration = found.space.sample(generator)
        events: list[Any] = [Decided(number, Start(number, configuration, found.horizon, 3))]
        if number % 5 == 4:
            events.append(Failed(number, 0, "not_finite", "diverged"))
        else:
            value = configuration["optimizer"]["learning_rate"]
            events += [
                Observed(number, s, {"validation_loss": value + 1 / s}, 1.0) for s in (1, 2, 3)
            ]
        for event in events:
            trials.observe(event)
            state = proposer.observe(state, event, trials)
    return state, trials


@pytest.mark.parametrize("name", PROPOSERS)
@pytest.mark.parametrize("count", [0, 3, 40])
def test_proposals_are_allowed_different_and_a_function_of_the_key(name: str, count: int) -> None:
    found, proposer = context(), PROPOSERS[name]()
    state, trials = observed(found, count, proposer)
    key = Key(0, 17)
    proposed = proposer.propose(found, state, trials, key, 12)
    assert len(proposed) == 12
    assert len({repr(configuration) for configuration in proposed}) == 12
    for configuration in proposed:
        TRAINING.validate(configuration)
    assert proposer.propose(found, state, trials, key, 12) == proposed
    other = proposer.propose(found, state, trials, Key(0, 18), 12)
    assert (other == proposed) == (name == "sobol")


def test_random_follows_priors_in_the_share_that_is_stated() -> None:
    space = Space({"x": Float(0.0, 1.0, prior=Prior(0.2, "high"))})
    found = context(space=space)
    near = []
    for share in (0.0, 1.0):
        proposer = Random({"prior_share": share})
        proposed = proposer.propose(found, None, Trials(space, found.objectives), Key(0, 0), 400)
        near.append(np.mean([abs(c["x"] - 0.2) < 0.125 for c in proposed]))
    assert near[0] == pytest.approx(0.25, abs=0.08)
    assert near[1] > 0.6


def test_sobol_is_the_sequence_without_what_is_forbidden() -> None:
    found = context(seed=5)
    proposed = Sobol().propose(found, None, Trials(TRAINING, found.objectives), Key(5, 0), 40)
    sequence = qmc.Sobol(len(TRAINING.slots), scramble=True, rng=5).random(128)
    decoded = [TRAINING.decode(point) for point in sequence]
    allowed = [
        configuration for configuration in decoded if TRAINING.forbids(configuration) is None
    ]
    assert proposed == allowed[:40]
    assert len(allowed) < len(decoded)


def test_sobol_fills_the_space_evenly() -> None:
    found = context(space=CUBE)
    proposed = Sobol().propose(found, None, Trials(CUBE, found.objectives), Key(0, 0), 64)
    for index in range(5):
        bins = Counter(int(8 * configuration[f"x{index}"]) for configuration in proposed)
        assert set(bins.values()) == {8}


def test_tpe_finds_what_random_draws_do_not() -> None:
    def loss(configuration: Any, step: int) -> dict[str, float]:
        away = sum((configuration[f"x{i}"] - 0.3) ** 2 for i in range(5))
        return {"validation_loss": away + 0.3 * (configuration["c"] != "b")}

    best: dict[str, list[float]] = {"tpe": [], "random": []}
    for name, seed in [(name, seed) for name in best for seed in range(2)]:
        found = context(Budget(trials=70), space=CUBE, horizon=2, seed=seed)
        simulator = Simulator(search(found, "random_search", name), loss)
        simulator.run()
        assert simulator.search.trials.best is not None
        best[name].append(simulator.search.trials.best[0])
    assert max(best["tpe"]) < 0.5 * min(best["random"])


def test_tpe_state_is_only_appended_to_and_proposing_leaves_it() -> None:
    found, proposer = context(), TPE()
    state, trials = observed(found, 30, proposer)
    before = {rung: list(study.trials) for rung, study in state.studies.items()}
    assert {rung: len(rows) for rung, rows in before.items()} == {2: 30, 4: 6, 8: 6, 10: 6}
    proposer.propose(found, state, trials, Key(0, 1), 5)
    assert {rung: study.trials for rung, study in state.studies.items()} == before
    event = Observed(29, 3, {"validation_loss": 9.0}, 1.0)
    state = proposer.observe(state, event, trials)
    assert {rung: study.trials for rung, study in state.studies.items()} == before
    failed = [row for row in before[2] if np.isinf(row.value)]
    assert len(failed) == 6
    names = {slot.name for slot in TRAINING.slots}
    assert all(set(row.params) <= names for row in before[2])
    assert any(set(row.params) != names for row in before[2]), "inactive parameters are left out"


def test_tpe_sees_trials_that_were_appended_after_it_was_asked() -> None:
    found, proposer = context(), TPE({"random_share": 0.0})
    early, trials = observed(found, 20, proposer)
    proposer.propose(found, early, trials, Key(0, 1), 3)
    late, _ = observed(found, 40, proposer)
    fresh = proposer.propose(found, late, trials, Key(0, 2), 3)
    generator = np.random.default_rng(3)
    configurations = [found.space.sample(generator) for _ in range(40)]
    for number in range(20, 40):
        event: Any = Decided(number, Start(number, configurations[number], found.horizon, 3))
        trials.observe(event)
        if number % 5 == 4:
            early = proposer.observe(early, Failed(number, 0, "not_finite", "diverged"), trials)
            continue
        value = configurations[number]["optimizer"]["learning_rate"]
        for step in (1, 2, 3):
            event = Observed(number, step, {"validation_loss": value + 1 / step}, 1.0)
            early = proposer.observe(early, event, trials)
    assert proposer.propose(found, early, trials, Key(0, 2), 3) == fresh


def test_tpe_is_quiet(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    with caplog.at_level(logging.DEBUG):
        simulator = Simulator(search(context(Budget(units=60)), "random_search", "tpe"), curve)
        simulator.run()
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err == ""


def test_optuna_is_imported_only_when_tpe_is_used() -> None:
    code = (
        "import sys; import autotune.decide; from autotune.decide.proposers.tpe import TPE;"
        "TPE.space(); sys.exit('optuna' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_small_spaces_run_dry_without_an_error() -> None:
    small = Space({"a": Categorical((1, 2))})
    found = replace(context(), space=small)
    for name in PROPOSERS:
        simulator = Simulator(
            search(found, "asha", name), lambda c, s: {"validation_loss": c["a"] / s}
        )
        simulator.run()
        assert len(simulator.search.trials) == 2

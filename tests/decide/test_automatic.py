from __future__ import annotations

import math

import pytest
from spaces import LOSS, TRAINING, context

from autotune.decide.automatic import chosen_policy, configurations
from autotune.decide.final import FinalPhase, kept_at_first
from autotune.plugins.discovery import Catalogue
from autotune.plugins.search import Budget, Final, Objective
from autotune.plugins.trials import Trials
from autotune.space import Categorical, Choice, Float, Integer, Ordinal, Space

SMALL = Space({"a": Categorical(("x", "y")), "b": Integer(1, 5), "c": 7})
OTHER = Objective("perplexity", "minimize", "curve")
SIZE = Objective("size", "minimize", "static")


@pytest.mark.parametrize(
    ("space", "objectives", "horizon", "budget", "policy", "why"),
    [
        (TRAINING, (LOSS,), 20, Budget(units=600), "freeze_thaw", "forecast"),
        (TRAINING, (LOSS,), 20, Budget(seconds=60.0), "freeze_thaw", "forecast"),
        (
            TRAINING,
            (LOSS, SIZE),
            20,
            Budget(units=600),
            "freeze_thaw",
            "front of validation",
        ),
        (TRAINING, (LOSS,), 2, Budget(units=600), "freeze_thaw", "forecast"),
        (TRAINING, (LOSS,), 1, Budget(units=600), "random_search", "nothing to freeze"),
        (TRAINING, (LOSS, OTHER), 1, Budget(trials=60), "random_search", "nothing to freeze"),
        (
            TRAINING,
            (LOSS, OTHER),
            20,
            Budget(units=600),
            "freeze_thaw",
            "loss, perplexity, and",
        ),
        (TRAINING, (LOSS, OTHER), 20, Budget(units=100_000), "mo_asha", "about 100,000 segments"),
        (TRAINING, (LOSS, SIZE), 20, Budget(trials=10_000), "mo_asha", "about 100,000 segments"),
        (TRAINING, (LOSS,), 20, Budget(units=100_000), "asha", "about 100,000 segments"),
        (TRAINING, (LOSS,), 20, Budget(trials=10_000), "asha", "about 100,000 segments"),
        (TRAINING, (LOSS,), 20, Budget(units=900, trials=10_000), "freeze_thaw", "forecast"),
        (SMALL, (LOSS,), 20, Budget(units=200), "random_search", "each of the 10 config"),
        (SMALL, (LOSS,), 20, Budget(trials=10), "random_search", "each of the 10 config"),
        (SMALL, (LOSS,), 20, Budget(units=199), "freeze_thaw", "forecast"),
        (SMALL, (LOSS,), 20, Budget(units=200, trials=9), "freeze_thaw", "forecast"),
        (SMALL, (LOSS,), 20, Budget(units=200, seconds=9.0), "freeze_thaw", "forecast"),
    ],
)
def test_what_suits_a_study(
    space: Space,
    objectives: tuple[Objective, ...],
    horizon: int,
    budget: Budget,
    policy: str,
    why: str,
) -> None:
    name, reason = chosen_policy(space, objectives, horizon, budget)
    assert name == policy
    assert why in reason
    assert name in Catalogue().names("policy")


def test_what_the_final_phase_takes_is_not_there_to_train_all() -> None:
    """Of 200 units for 10 configurations of 20 each, two finalists with two repeats keep 120."""
    final = Final(candidates=2, seeds=2, share=0.6)
    told = context(Budget(units=200), horizon=20, final=final)
    kept = FinalPhase(told).kept(Trials(told.space, told.objectives))
    assert kept == kept_at_first(final, told.budget, 20) == 120
    assert chosen_policy(SMALL, (LOSS,), 20, told.budget, final)[0] == "freeze_thaw"
    more = Budget(units=200 + kept_at_first(final, Budget(units=320), 20))
    assert chosen_policy(SMALL, (LOSS,), 20, more, final)[0] == "random_search"


def test_evaluation_choices_are_no_configurations_to_train() -> None:
    adaptation = Choice({"none": {}, "entropy": {"rate": Float(0.0, 1.0)}}, evaluation=True)
    space = Space({**SMALL.parameters, "adaptation": adaptation})
    assert chosen_policy(space, (LOSS,), 20, Budget(units=200))[0] == "random_search"


def test_configurations_are_counted_along_the_tree() -> None:
    assert configurations(Space({})) == 1
    assert configurations(SMALL) == 10
    tree = {"plain": {}, "wide": {"width": Ordinal((8, 16, 32))}}
    assert configurations(Space({"head": Choice(tree), "inner": SMALL})) == 40
    assert math.isinf(configurations(Space({"head": Choice({"x": {"rate": Float(0, 1)}})})))

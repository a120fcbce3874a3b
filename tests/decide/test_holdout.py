"""Thresholdout: its rule, its budget, and the paper's experiment."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from spaces import context

from autotune.decide.holdout import Guard, Thresholdout, training_side
from autotune.plugins.constraints import Constraint
from autotune.plugins.search import Holdout, Objective, Observed

Array = NDArray[np.float64]
SAMPLES, FEATURES = 2000, 3000


def test_agreement_is_answered_by_training_and_costs_nothing() -> None:
    mechanism = Thresholdout(Holdout(threshold=0.1, noise=0.001, budget=3), seed=0)
    for question in range(200):
        answer, counts = mechanism.ask(0.8, 0.8 - 0.05, question)
        assert (answer, counts) == (0.8, False)
    assert mechanism.spent == 0


def test_disagreement_is_answered_by_the_hold_out_with_noise_and_counts() -> None:
    noise = 0.01
    mechanism = Thresholdout(Holdout(threshold=0.05, noise=noise, budget=10_000), seed=0)
    answers = []
    for question in range(2000):
        answer, counts = mechanism.ask(5.0, 0.5, question)
        assert counts
        answers.append(answer)
        mechanism.spent += 1
    away = np.array(answers) - 0.5
    assert abs(away.mean()) < 0.001
    # Laplace: the mean distance is the scale.
    assert np.abs(away).mean() == pytest.approx(noise, rel=0.1)


def test_the_threshold_is_noisy_and_drawn_anew_after_every_answer_that_counts() -> None:
    mechanism = Thresholdout(Holdout(threshold=0.05, noise=0.01, budget=10_000), seed=0)
    verdicts = []
    for question in range(1000):
        _, counts = mechanism.ask(0.55, 0.5, question)
        verdicts.append(counts)
        mechanism.spent += counts
    assert 0.35 < np.mean(verdicts) < 0.65
    # Lap(2 noise) + Lap(4 noise): 3 in 1000 are further than 0.2 from the threshold.
    far = [mechanism.ask(0.5 + 0.25 + 0.05, 0.5, 5000 + q)[1] for q in range(300)]
    assert np.mean(far) > 0.97


def test_when_the_budget_is_spent_nothing_is_told() -> None:
    mechanism = Thresholdout(Holdout(threshold=0.01, noise=0.0001, budget=5), seed=1)
    told = []
    for question in range(8):
        answer, counts = mechanism.ask(0.9, 0.5, question)
        mechanism.spent += counts
        told.append(answer)
    assert np.isfinite(told[:5]).all()
    assert np.isnan(told[5:]).all()
    assert mechanism.spent == 5


def accuracy(signs: Array, chosen: NDArray[np.bool_], x: Array, y: Array) -> float:
    return float(np.mean(np.sign(x[:, chosen] @ signs[chosen] + 1e-12) == y))


def test_the_papers_experiment() -> None:
    """No feature tells anything about the label. Whoever chooses those that agree with the label
    on training samples and on the hold-out finds the classifier of them good on the hold-out,
    and it is not; through Thresholdout, it is seen to be worth nothing (section 'Experiments')."""
    generator = np.random.default_rng(0)

    def draw() -> tuple[Array, Array]:
        x = generator.standard_normal((SAMPLES, FEATURES))
        return x, generator.choice([-1.0, 1.0], SAMPLES)

    (x, y), (held_x, held_y), (fresh_x, fresh_y) = draw(), draw(), draw()
    training, held_out = x.T @ y / SAMPLES, held_x.T @ held_y / SAMPLES
    mechanism = Thresholdout(Holdout(threshold=0.12, noise=0.01, budget=500), seed=0)

    def naive(trained: float, held: float, question: int) -> float:
        return held

    def guarded(trained: float, held: float, question: int) -> float:
        answer, counts = mechanism.ask(trained, held, question)
        mechanism.spent += counts
        return answer

    def analyst(look: Callable[[float, float, int], float]) -> tuple[float, float]:
        """What the analyst believes of the classifier, and what it does on fresh samples."""
        seen = np.array(
            [look(t, h, i) for i, (t, h) in enumerate(zip(training, held_out, strict=True))]
        )
        least = 1 / math.sqrt(SAMPLES)
        chosen = (np.abs(training) > least) & (np.abs(seen) > least) & (training * seen > 0)
        signs = np.sign(training)
        scores = [accuracy(signs, chosen, a, b) for a, b in ((x, y), (held_x, held_y))]
        return look(scores[0], scores[1], FEATURES), accuracy(signs, chosen, fresh_x, fresh_y)

    believed, true = analyst(naive)
    assert believed > 0.65
    assert true < 0.54
    believed, true = analyst(guarded)
    assert abs(believed - true) < 0.06
    assert 0 < mechanism.spent < 0.08 * FEATURES


ACCURACY = Objective("validation_accuracy", "maximize", "curve")


def observed(step: int, held: float, trained: float, trial: int = 0) -> Observed:
    metrics = {
        "validation_accuracy": held,
        "training_accuracy": trained,
        "validation_loss": 0.7,
        "learning_rate": 0.1,
    }
    return Observed(trial, step, metrics, 1.0, 2.0)


def test_observations_hold_the_answers_and_keep_the_rest_aside() -> None:
    holdout = Holdout(threshold=0.05, noise=0.001, budget=2)
    guard = Guard(context(objectives=(ACCURACY,), holdout=holdout))
    agreed = guard.guarded(observed(1, 0.80, 0.81))
    assert agreed.metrics == {
        "training_accuracy": 0.81,
        "learning_rate": 0.1,
        "validation_accuracy": 0.81,
    }
    assert agreed.held_out == {"validation_accuracy": 0.80, "validation_loss": 0.7}
    assert agreed.paid == 0
    guard.observe(agreed)
    fitted = guard.guarded(observed(2, 0.80, 0.99))
    assert fitted.paid == 1
    assert fitted.metrics["validation_accuracy"] == pytest.approx(0.80, abs=0.02)
    guard.observe(fitted)
    # The same unit, trained again after a loss: the same answer, for nothing.
    again = guard.guarded(observed(2, 0.80, 0.99))
    assert again.metrics == fitted.metrics
    assert again.paid == 0
    guard.observe(again)
    guard.observe(guard.guarded(observed(3, 0.80, 0.99)))
    assert math.isnan(guard.guarded(observed(4, 0.80, 0.99)).metrics["validation_accuracy"])


def test_what_is_only_constrained_is_guarded_too() -> None:
    limits = (Constraint.parse("f1 >= 0.8"), Constraint.parse("training_f1 >= 0.5"))
    holdout = Holdout(threshold=0.05, noise=0.001, budget=2)
    guard = Guard(context(objectives=(ACCURACY,), holdout=holdout, constraints=limits))
    raw = observed(1, 0.80, 0.81)
    f1 = {"f1": 0.70, "training_f1": 0.71}
    answer = guard.guarded(replace(raw, metrics={**raw.metrics, **f1}))
    assert answer.metrics["f1"] == 0.71
    assert answer.held_out["f1"] == 0.70
    assert guard.missing({**raw.metrics, "f1": 0.70}) == ["training_f1"]
    assert guard.missing(raw.metrics) == [], "one that is measured once is no look"


def test_the_answers_do_not_depend_on_when_the_fold_was_made() -> None:
    holdout = Holdout(threshold=0.05, noise=0.02, budget=50)
    found = context(objectives=(ACCURACY,), holdout=holdout)
    guard, events = Guard(found), []
    generator = np.random.default_rng(0)
    looks = [observed(s, h, h + d) for s, (h, d) in enumerate(generator.random((60, 2)) / 8, 1)]
    for look in looks:
        events.append(guard.guarded(look))
        guard.observe(events[-1])
    for cut in (0, 17, 40):
        resumed = Guard(found)
        for event in events[:cut]:
            resumed.observe(event)
        assert resumed.guarded(looks[cut]) == events[cut]


def test_names_of_the_training_side() -> None:
    assert training_side("validation_loss") == "training_loss"
    assert training_side("f1") == "training_f1"
    assert Guard(context(objectives=(ACCURACY,), holdout=Holdout())).missing({"f1": 1.0}) == [
        "training_accuracy"
    ]

"""Freeze-thaw for several objectives: what it aims at, and that it finds a front."""

from __future__ import annotations

import numpy as np
import pytest
from simulator import Simulator

from autotune.decide import Search, build_search
from autotune.decide.front import Aim, Front, Line, searched
from autotune.pareto import hypervolume, non_dominated
from autotune.plugins.discovery import Catalogue
from autotune.plugins.search import (
    Budget,
    Decided,
    Event,
    Frozen,
    Objective,
    Observed,
    Query,
    SearchContext,
    Start,
)
from autotune.plugins.trials import Trials
from autotune.space import Configuration, Float, Space

ACCURACY = Objective("accuracy", "maximize", "curve", bounds=(0.0, 1.0))
LOSS = Objective("loss", "minimize", "curve")
SIZE = Objective("size", "minimize", "static")
LATENCY = Objective("latency", "minimize", "evaluation")
SPACE = Space({"size": Float(0.0, 1.0), "rate": Float(0.0, 1.0)})


def context(*objectives: Objective, units: int = 120) -> SearchContext:
    return SearchContext(SPACE, Space({}), objectives, 9, Budget(units=units), 0)


def curve(configuration: Configuration, step: int) -> dict[str, float]:
    """Large models get farther; the rate has to fit."""
    best = 0.5 + 0.4 * configuration["size"] - (configuration["rate"] - 0.3) ** 2
    accuracy = best * (1.0 - np.exp(-step / 3))
    return {"accuracy": float(accuracy), "loss": float(1.0 - accuracy + configuration["rate"])}


def static(configuration: Configuration) -> dict[str, float]:
    return {"size": float(np.exp(6.0 * configuration["size"]))}


def search(policy: str, *objectives: Objective) -> Search:
    parts = {"policy": policy, "proposer": "random", "forecaster": "last_value"}
    named = {part: {"name": name} for part, name in parts.items()}
    return build_search(context(*objectives), named, Catalogue().get)


def front_of(trials: Trials) -> float:
    points = []
    for trial in trials.all.values():
        if trial.static:
            accuracy = max(values["accuracy"] for values in trial.metrics.values())
            points.append([-accuracy, np.log(trial.static["size"]) / 6.0])
    return hypervolume(points, [-0.3, 1.0])


def test_what_is_searched_for_is_what_training_changes_or_decides() -> None:
    assert searched(context(LATENCY, SIZE, ACCURACY, LOSS)) == (ACCURACY, LOSS, SIZE)


def told(front: Front, trials: Trials, number: int, accuracies: list[float], size: float) -> None:
    configuration = {"size": number / 10, "rate": 0.5}
    events: list[Event] = [Decided(number, Start(number, configuration, 9, len(accuracies)))]
    events += [
        Observed(number, step, {"accuracy": value}, 1.0)
        for step, value in enumerate(accuracies, start=1)
    ]
    events.append(Frozen(number, len(accuracies), "somewhere", {"size": size}))
    for event in events:
        trials.observe(event)
        front.observe(event, trials)


def test_the_fold_keeps_the_points_that_no_other_dominates() -> None:
    trials = Trials(SPACE, (ACCURACY, SIZE))
    front = Front((ACCURACY, SIZE))
    generator = np.random.default_rng(0)
    points = []
    for number in range(10):
        accuracies, size = generator.random(3), float(generator.integers(1, 6))
        told(front, trials, number, accuracies.tolist(), size)
        points += [[-value, size] for value in accuracies]
    expected = np.unique(np.array(points)[non_dominated(points)], axis=0)
    assert np.unique(front.points, axis=0) == pytest.approx(expected)
    assert len(front.owners) == len(front.points)


def test_a_candidate_that_is_too_large_for_a_place_beyond_the_front_promises_nothing() -> None:
    trials = Trials(SPACE, (ACCURACY, SIZE))
    front = Front((ACCURACY, SIZE))
    for number, (accuracy, size) in enumerate([(0.9, 10.0), (0.5, 10.0), (0.7, 1.0)]):
        told(front, trials, number, [0.1, accuracy], size)
    aim = Aim(front, trials, np.random.default_rng(0))

    class Certain:
        """The best value so far of each of three trials is where it stays."""

        def probability_below(self, threshold: float) -> np.ndarray:
            return (np.array([-0.95, -0.5, -0.8]) < threshold).astype(float)

    promise = aim.promise(aim.static([0, 1, 2], []), [Certain()])  # type: ignore[list-item]
    assert promise[0] > 0
    assert promise[1] == 0, "trial 0 is as small and better"
    assert promise[2] > 0


def test_what_is_measured_once_is_seen_logarithmically_where_it_is_positive() -> None:
    line = Line.of(np.array([[1.0, -3.0], [100.0, 1.0], [np.nan, 0.0]]))
    assert line(np.array([[10.0, -1.0]])) == pytest.approx(np.array([[0.5, 0.5]]))


@pytest.mark.parametrize("objectives", [(ACCURACY, SIZE), (ACCURACY, LOSS, SIZE)])
def test_every_objective_has_a_part_in_the_front(objectives: tuple[Objective, ...]) -> None:
    several = search("freeze_thaw", *objectives)
    Simulator(several, curve, static=static).run()
    alone = search("freeze_thaw", ACCURACY)
    Simulator(alone, curve, static=static).run()
    assert front_of(several.trials) > front_of(alone.trials)


def test_another_curve_objective_is_forecast_by_its_own_fold() -> None:
    searching = search("freeze_thaw", ACCURACY, LOSS)
    Simulator(searching, curve).run()
    numbers = [n for n, t in searching.trials.all.items() if t.status == "frozen"][:3]
    queries = [Query(searching.trials[n].frozen, trial=n) for n in numbers]
    for objective in (ACCURACY, LOSS):
        forecast = searching._forecast(queries, objective.name)
        last = [
            objective.sign * searching.trials[n].metrics[searching.trials[n].frozen][objective.name]
            for n in numbers
        ]
        assert forecast.quantile(0.5) == pytest.approx(last, abs=0.2)

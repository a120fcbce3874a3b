"""The final phase and the stop by utility in whole studies: recorded, resumed, shown."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from studies import check_repeats, check_replay, space, tune, untimed
from study_tasks import Quick

import autotune
from autotune.asked import as_final, as_utility
from autotune.cli import main
from autotune.decide.final import best_run
from autotune.execute.recorded_table import RecordedTable
from autotune.header import Header, StudyError
from autotune.jobs import trial_seed
from autotune.plugins.search import Decided, Final, Finalists, Objective, Start, Utility
from autotune.record import FOLDER
from autotune.report import write_report
from autotune.result import StudyView
from autotune.space import Float, Space
from autotune.study import Interrupted

FINAL = {"candidates": 2, "seeds": 2, "share": 0.6}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> autotune.Result:
    folder = tmp_path_factory.mktemp("studies")
    return tune(folder, budget={"epochs": 80, "evaluations": 8}, final=FINAL, name="final")


def test_repeats_are_the_same_configuration_on_another_seed(finished: autotune.Result) -> None:
    trials = finished.trials
    assert trials.units <= 80
    assert trials.further == 6
    for standing in finished.standings:
        own = trials[standing.trial]
        values = set()
        for number, value in standing.repeats:
            assert trials[number].configuration == own.configuration
            assert trials[number].repeat_of == standing.trial
            values.add(value)
        # Another seed, another curve: the task adds noise from its own generator.
        assert len(values) == 3
        assert standing.value not in values
    assert trial_seed(0, 1) != trial_seed(0, 2)


def test_the_winner_is_handed_out_and_evaluated(finished: autotune.Result) -> None:
    first, best = finished.winner, finished.best
    assert first is not None
    assert best is not None
    means = [standing.mean for standing in finished.standings]
    assert first.mean == min(mean for mean in means if mean is not None)
    assert (best.trial, best.step) == best_run(finished.trials)
    assert (best.trial, best.step) in first.runs
    assert "shifted_accuracy" in best.metrics
    assert finished.test is not None
    other = {n for n, t in finished.trials.all.items() if t.repeat_of is not None} - {best.trial}
    assert not any(point.trial in other for point in finished.pareto)
    model = best.load_model()
    assert model.bias.item() == best.metrics["validation_loss"]  # type: ignore[union-attr, operator]


def test_every_decision_of_the_record_is_taken_again(finished: autotune.Result) -> None:
    assert check_replay(finished.view) > 10
    named = [e.decision for e in finished.view.events if isinstance(e, Decided)]
    assert sum(isinstance(decision, Finalists) for decision in named) == 1


def test_people_see_mean_and_spread(
    finished: autotune.Result, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(finished.folder.parent)
    first = finished.winner
    assert first is not None
    assert main(["best", "--folder", folder, "--study", "final"]) == 0
    said = capsys.readouterr().out
    assert f"its configuration (trial {first.trial}) on 3 other seeds: validation_loss" in said
    assert main(["best", "--json", "--folder", folder, "--study", "final"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert [entry["trial"] for entry in plain["finalists"]] == [
        standing.trial for standing in finished.standings
    ]
    assert plain["finalists"][0]["mean"] == first.mean
    page = write_report(finished.view, finished.report).read_text()
    assert "Final phase: the best on other seeds" in page
    assert "mean on 3 other seeds" in page


def test_header_and_study_file_say_it(finished: autotune.Result) -> None:
    header = finished.view.header
    assert header.final == Final(2, 2, 0.6)
    assert Header.from_plain(json.loads(json.dumps(header.to_plain()))) == header
    text = (finished.folder / "study.yaml").read_text()
    assert "candidates: 2" in text


@pytest.mark.parametrize("after", [9])
def test_a_study_interrupted_in_the_final_phase_goes_on_with_it(
    tmp_path: Path, finished: autotune.Result, after: int
) -> None:
    left = [after]

    def interrupt(trials: Any, event: Any) -> None:
        if trials.finalists is not None:
            left[0] -= 1
            if left[0] == 0:
                signal.raise_signal(signal.SIGINT)

    options: dict[str, Any] = {"budget": {"epochs": 80, "evaluations": 8}, "final": FINAL}
    with pytest.raises(Interrupted):
        tune(tmp_path, name="final", listeners=[interrupt], **options)
    result = autotune.resume("final", folder=tmp_path, progress=False)
    assert result.standings == finished.standings
    assert result.test == finished.test
    assert check_replay(result.view) > 10
    assert check_repeats(result.view) == 0


def table(by_seed: bool) -> RecordedTable:
    generator = np.random.default_rng(0)
    rates = np.linspace(0.1, 1.0, 20)
    falls = 0.3 + np.exp(-np.arange(1, 7) / 2)
    seeds = rates[:, None, None] * falls[None, None, :]
    seeds = seeds + 0.2 * generator.standard_normal((20, 5, 1))
    return RecordedTable(
        rows=rates[:, None],
        names=("rate",),
        log=(False,),
        curves=np.median(seeds, axis=1),
        draws=seeds if by_seed else None,
    )


@pytest.mark.parametrize("by_seed", [True, False])
def test_recorded_tables_with_and_without_seeds(tmp_path: Path, by_seed: bool) -> None:
    def run(executor: str) -> autotune.Result:
        return autotune.tune(
            table(by_seed),
            Space({"rate": Float(0.1, 1.0)}),
            [Objective("validation_loss", "minimize", "curve")],
            {"epochs": 90},
            horizon=6,
            folder=tmp_path / executor,
            executor=executor,
            workers=1,
            search={"policy": "random_search", "proposer": "random"},
            final=FINAL,
            progress=False,
        )

    replayed = run("replay")
    first = replayed.winner
    assert first is not None
    assert (first.standard_error or 0.0) > 0 if by_seed else first.standard_error < 1e-12
    if by_seed:
        assert run("local").standings == replayed.standings
    else:
        assert {value for _, value in first.repeats} == {first.value}


def test_utility_ends_the_search_and_says_why(tmp_path: Path) -> None:
    result = tune(
        tmp_path,
        Quick(),
        objectives=["validation_loss"],
        space=Space({"learning_rate": Float(1e-4, 1.0, log=True, default=0.01)}),
        budget={"epochs": 200},
        search={"policy": "asha", "proposer": "random"},
        utility={"improvement": 0.5, "epochs": 1},
        final=False,
    )
    assert result.trials.units < 200
    assert result.reason is not None
    assert "no further training is expected to pay" in result.reason
    assert result.view.header.utility == Utility(improvement=0.5, units=1.0)
    assert result.standings == []
    check_replay(result.view)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"percent": 1, "epochs": 30}, (Utility(percent=1.0, units=30.0), "epoch")),
        ({"improvement": 0.1, "steps": 30}, (Utility(improvement=0.1, units=30.0), "step")),
        ({"percent": 1, "minutes": 2}, (Utility(percent=1.0, seconds=120.0), None)),
        (None, (None, None)),
    ],
)
def test_ways_to_state_a_utility(given: Any, expected: Any) -> None:
    assert as_utility(given) == expected


@pytest.mark.parametrize(
    "given",
    [
        {"percent": 1},
        {"epochs": 3},
        {"percent": 1, "improvement": 1, "epochs": 1},
        3,
        {"percent": 0, "epochs": 1},
        {"percent": "1", "epochs": 1},
        {"percent": 1, "miles": 1},
    ],
)
def test_other_utilities_are_refused(given: Any) -> None:
    with pytest.raises(StudyError, match="utility: "):
        as_utility(given)


def test_ways_to_state_a_final_phase() -> None:
    assert as_final(True) == Final()
    assert as_final(False) is None
    assert as_final({"seeds": 5}) == Final(3, 5, 0.2)
    for wrong in ({"seed": 5}, {"seeds": 0}, {"share": 1.0}, {"candidates": 2.5}, "yes"):
        with pytest.raises(StudyError, match="final: "):
            as_final(wrong)  # type: ignore[arg-type]


def test_a_utility_in_another_unit_than_the_tasks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="utility: is in steps, but the task counts epochs"):
        tune(tmp_path, utility={"percent": 1, "steps": 3})
    assert not (tmp_path / FOLDER).exists()


def test_without_a_final_phase_nothing_is_different(tmp_path: Path) -> None:
    small = tune(tmp_path / "a", Quick(), space=space())
    off = tune(tmp_path / "b", Quick(), space=space(), final=False)
    assert untimed(small.view.events) == untimed(off.view.events)
    assert isinstance(small.view, StudyView)
    starts = [e for e in small.view.events if isinstance(e, Decided)]
    assert all(s.decision.repeat_of is None for s in starts if isinstance(s.decision, Start))

"""The command line, end to end and in the face of mistakes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from studies import ADDRESS, space, tune
from study_tasks import Quick

import autotune
from autotune.cli import main
from autotune.plugins.search import Failed

STUDY_FILE = f"""\
name: quick
task: {ADDRESS}
space:
  learning_rate: {{type: float, low: 1.0e-4, high: 1.0, log: true, default: 0.01}}
  width: {{type: integer, low: 1, high: 16, default: 4}}
  smoothing: {{type: float, low: 0.0, high: 1.0, default: 0.5, evaluation: true}}
  mood: good
objectives: [validation_loss, shifted_accuracy, parameters, latency_ms]
horizon: 6
budget: {{epochs: 24, evaluations: 6}}
search: {{policy: asha, proposer: random}}
executor: {{name: local, workers: 1}}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quick.yaml").write_text(STUDY_FILE)
    return tmp_path


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A folder in which `autotune run quick.yaml` has run, and what it printed."""
    folder = tmp_path_factory.mktemp("studied")
    (folder / "quick.yaml").write_text(STUDY_FILE)
    ended = subprocess.run(
        [sys.executable, "-m", "autotune", "run", "quick.yaml"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert ended.returncode == 0, ended.stderr
    return folder, ended.stdout, ended.stderr


def test_run_ends_with_everything_one_wants_to_know(studied: tuple[Path, str, str]) -> None:
    folder, out, err = studied
    study = folder / "autotune_studies" / "quick"
    best = autotune.load(study).result.best
    assert best is not None
    assert "all 24 units of training are spent" in out
    assert "learning_rate" in out
    assert "test_loss" in out
    assert "Pareto front" in out
    assert f"report       {Path('autotune_studies') / 'quick' / 'report.html'}" in out
    assert str(Path("autotune_studies") / "quick" / "checkpoints" / best.checkpoint) in out
    assert (study / "checkpoints" / best.checkpoint).exists()
    assert "plotly" in (study / "report.html").read_text()
    assert "study 'quick' in autotune_studies/quick" in err
    assert "epochs" in err


@pytest.fixture
def there(studied: tuple[Path, str, str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """In the folder of the finished study; importing its task is an error."""
    monkeypatch.chdir(studied[0])

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("the task was imported")

    monkeypatch.setattr("autotune.begin.load_task", refuse)
    monkeypatch.setattr("autotune.execute.task_address.load_task", refuse)
    return studied[0] / "autotune_studies" / "quick"


def test_status(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status"]) == 0
    out = capsys.readouterr().out
    assert "state   ended: all 24 units of training are spent" in out
    assert "24 of 24 epochs" in out
    assert main(["status", "--json", "--study", "quick"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["finished"]
    assert not facts["running"]
    assert facts["spent"]["epochs"] == 24
    assert sum(facts["trials"].values()) == facts["spent"]["trials"]


def test_best_and_pareto_for_programs(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = autotune.load(there).result
    assert result.best is not None
    assert main(["best", "--json"]) == 0
    best = json.loads(capsys.readouterr().out)
    assert best["configuration"] == result.best.configuration
    assert best["metrics"] == result.best.metrics
    assert best["test"] == result.test
    assert main(["pareto", "--json"]) == 0
    front = json.loads(capsys.readouterr().out)
    assert [point["trial"] for point in front] == [point.trial for point in result.pareto]
    assert all(set(point["metrics"]) > {"latency_ms", "shifted_accuracy"} for point in front)


def test_best_and_pareto_for_people(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["best"]) == 0
    out = capsys.readouterr().out
    assert "validation_loss" in out
    assert "(test split)" in out
    assert "on the part that no choice has seen" in out
    assert main(["pareto"]) == 0
    assert "parameters" in capsys.readouterr().out


def test_report_goes_where_it_is_told(
    there: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", "--output", str(tmp_path / "x" / "r.html")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "x" / "r.html")
    assert (tmp_path / "x" / "r.html").stat().st_size > 100_000


def test_a_loop_of_the_users_own_is_not_exported(
    there: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export"]) == 2
    assert "trains in a loop of its own" in capsys.readouterr().err


def test_the_study_file_as_run_runs(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(there / "study.yaml")]) == 0
    assert "valid; study 'quick'" in capsys.readouterr().out


def test_resuming_a_finished_study_shows_it_again(
    studied: tuple[Path, str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(studied[0])
    assert main(["resume"]) == 0
    assert "Pareto front" in capsys.readouterr().out


def test_auto_picks_a_policy_and_says_why(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = STUDY_FILE.replace("policy: asha, ", "").replace("horizon: 6", "horizon: 1")
    (here / "short.yaml").write_text(text.replace("epochs: 24, evaluations: 6", "epochs: 3"))
    why = "a trial is trained for one unit"
    assert main(["validate", "short.yaml"]) == 0
    assert f"policy random_search: {why}" in capsys.readouterr().out
    assert main(["run", "short.yaml"]) == 0
    assert f"policy random_search: {why}" in capsys.readouterr().err
    header = autotune.load("quick").header
    assert (header.search["policy"], why in header.policy_reason) == ({"name": "random_search"}, 1)
    assert main(["status"]) == 0
    assert f"policy  random_search (auto: {why}" in capsys.readouterr().out
    assert main(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["policy"]["name"] == "random_search"
    assert why in (here / "autotune_studies" / "quick" / "report.html").read_text()


def test_options_override_the_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["run", "quick.yaml", "--quiet", "--seed", "5", "--workers", "2", "--name", "mine"]
    assert main([*command, "--budget", "epochs=4", "evaluations=1", "--folder", "other"]) == 0
    assert capsys.readouterr().err == ""
    header = autotune.load("mine", "other").header
    assert (header.seed, header.workers) == (5, 2)
    assert (header.budget.units, header.budget.evaluations) == (4, 1)
    assert main([*command, "--folder", "other"]) == 2
    assert "autotune resume --study mine" in capsys.readouterr().err
    assert main(["status", "--folder", "other"]) == 0
    assert "mine" in capsys.readouterr().out


def test_running_twice_makes_two_studies(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = ["run", "quick.yaml", "--quiet", "--budget", "epochs=2", "evaluations=1"]
    assert main(short) == 0
    assert main(short) == 0
    names = {path.name for path in (here / "autotune_studies").iterdir()}
    assert names == {"quick", "quick-2"}
    capsys.readouterr()
    assert main(["status"]) == 0  # of the newest
    assert "quick-2" in capsys.readouterr().out


def test_a_limit_is_dropped_by_none(here: Path) -> None:
    limits = ["--budget", "epochs=none", "trials=2", "evaluations=1"]
    assert main(["run", "quick.yaml", "--quiet", *limits]) == 0
    view = autotune.load("quick")
    assert view.header.budget.units is None
    assert len(view.trials) == 2


def test_nothing_trained_is_exit_code_1_with_the_error_in_full(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "quick.yaml").write_text(STUDY_FILE.replace("mood: good", "mood: raise"))
    assert main(["run", "quick.yaml", "--quiet"]) == 1
    err = capsys.readouterr().err
    assert "all 5 trials so far have failed" in err
    assert "the user's model is broken" in err
    assert main(["best"]) == 1
    assert main(["pareto"]) == 1
    assert main(["status"]) == 0
    view = autotune.load("quick")
    assert sum(isinstance(event, Failed) for event in view.events) == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "quick.yml"], "did you mean"),
        (["run", "quick.yaml", "--budget", "epochs"], "expected a limit such as epochs=300"),
        (["run", "quick.yaml", "--budget", "epochs=many"], "expected a limit such as epochs=300"),
        (["run", "quick.yaml", "--budget", "epoch=3"], "no limit 'epoch'"),
        (["run", "quick.yaml", "--budget", "steps=3"], "is in steps, but the task counts epochs"),
        (["run", "quick.yaml", "--budget", "epochs=none"], "at least one of epochs"),
        (["run", "quick.yaml", "--workers", "0"], "workers: is 0"),
        (["run", "quick.yaml", "--budget", "epochs=2", "epochs=5"], "epochs is given twice"),
        (["run", "quick.yaml", "--budget", "evaluations=-4"], "evaluations is -4"),
        (["run", "quick.yaml", "--budget", "minutes=9.9e999"], "out of all proportion"),
        (["run", "quick.yaml", "--executor", "locale"], "did you mean 'local'"),
        (["run", "quick.yaml", "--executor", "local", "--ray-address", "a:1"], "expected ray"),
        (["run", "quick.yaml", "--name", "a/b"], "cannot name a study"),
        (["run", "quick.yaml", "--seed", "-3"], "seed: is -3"),
        (["run", "quick.yaml", "--folder", "quick.yaml"], "no study can be kept"),
        (["run"], "which study file?"),
        (["resume"], "there are no studies in autotune_studies"),
        (["status", "--study", "x"], "there is no study 'x'"),
        (["best", "--folder", "nowhere"], "there are no studies in nowhere"),
        (["nonsense"], "invalid choice"),
        (["export"], "there are no studies"),
        (["plugins"], "required: COMMAND"),
        (["plugins", "list", "--kind", "optimiser"], "there is no plugin kind 'optimiser'"),
        (["plugins", "show", "admw"], "did you mean 'adamw'"),
        ([], "required: COMMAND"),
    ],
)
def test_mistakes_are_one_message_and_exit_code_2(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("missing.py:task", "missing.py"),
        ("broken.py:task", "ZeroDivisionError"),
        ("other.py:task", "other.py has no 'task'"),
        ("other.py:number", "number"),
    ],
)
def test_a_task_that_cannot_be_had_is_a_mistake(
    here: Path, capsys: pytest.CaptureFixture[str], task: str, message: str
) -> None:
    (here / "broken.py").write_text("1 / 0")
    (here / "other.py").write_text("number = 3")
    (here / "quick.yaml").write_text(STUDY_FILE.replace(ADDRESS, task))
    assert main(["run", "quick.yaml"]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
    assert not (here / "autotune_studies").exists()


def test_a_closed_pipe_is_no_error(studied: tuple[Path, str, str]) -> None:
    command = f"{sys.executable} -m autotune best --json --folder autotune_studies | true"
    ended = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], cwd=studied[0], capture_output=True, text=True
    )
    assert ended.stderr == ""
    assert ended.returncode == 0


def test_an_unfinished_study_is_shown_as_such(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[dict[str, Any]] = []

    def look(trials: Any, event: Any) -> None:
        if trials.units == 5 and not seen:
            capsys.readouterr()
            assert main(["status", "--json"]) == 0
            seen.append(json.loads(capsys.readouterr().out))
            assert main(["status"]) == 0
            assert f"running (process {os.getpid()})" in capsys.readouterr().out
            assert main(["report"]) == 0
            raise RuntimeError("a listener's error ends the driver")

    with pytest.raises(RuntimeError):
        tune(here / "autotune_studies", Quick(), space=space(), listeners=[look])
    assert seen[0]["running"]
    assert seen[0]["spent"]["epochs"] in (4, 5), "the last may be on its way to the disk"
    capsys.readouterr()
    assert main(["status"]) == 0
    assert "interrupted; its task was handed over as an object" in capsys.readouterr().out
    assert main(["resume"]) == 2
    assert (
        "from Python: autotune.resume('autotune_studies/study', task=task)"
        in capsys.readouterr().err
    )


def test_plugins_are_listed_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "list", "--kind", "optimizer", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {"sgd", "adamw", "lion", "adabelief"} <= {row["name"] for row in rows}
    assert main(["plugins", "list"]) == 0
    assert "freeze_thaw" in capsys.readouterr().out
    assert main(["plugins", "show", "adamw"]) == 0
    assert "learning_rate" in capsys.readouterr().out
    assert main(["plugins", "check", "schedule:constant"]) == 0

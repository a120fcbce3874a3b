"""The loop: what it records, in which order, and that it ends well whatever happens."""

from __future__ import annotations

import json
import math
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from studies import (
    ADDRESS,
    OBJECTIVES,
    SEARCH,
    check_repeats,
    check_replay,
    moods,
    space,
    tune,
    untimed,
)
from study_tasks import Quick, QuickRun

import autotune
import autotune.api
from autotune.execute.local import Local
from autotune.execute.store import CheckpointStore
from autotune.header import StudyError
from autotune.jobs import trial_seed
from autotune.plugins.execution import Job
from autotune.plugins.search import (
    Decided,
    Evaluate,
    Evaluated,
    Failed,
    Frozen,
    Lost,
    Measure,
    Observed,
    Restarted,
    Start,
    Stop,
    Thaw,
)
from autotune.record import RecordError
from autotune.space import Choice, Plugins, Space
from autotune.study import Interrupted
from autotune.task_faults import NothingWorks


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> autotune.Result:
    return tune(tmp_path_factory.mktemp("studies"), Quick(), workers=2)


def test_a_decision_is_recorded_before_what_comes_of_it(finished: autotune.Result) -> None:
    decided: set[Any] = set()
    for event in finished.view.events:
        match event:
            case Decided(decision=Start(trial=trial) | Thaw(trial=trial)):
                decided.add(trial)
            case Observed(trial=trial):
                assert trial in decided
            case Frozen(trial=trial):
                decided.remove(trial)
            case Decided(decision=Evaluate() | Measure() as decision):
                decided.add((decision.trial, json.dumps(decision.evaluation)))
            case Evaluated():
                decided.remove((event.trial, json.dumps(event.evaluation)))
    assert not decided
    last = finished.view.events[-1]
    assert isinstance(last, Decided)
    assert isinstance(last.decision, Stop)


def test_what_is_carried_out_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    carried = []
    submit = Local.submit

    def looked_at(executor: Local, job: Job) -> None:
        events = autotune.load("study", tmp_path).events
        carried.append((job.identifier, [e.number for e in events if isinstance(e, Decided)][-1]))
        submit(executor, job)

    monkeypatch.setattr(Local, "submit", looked_at)
    tune(tmp_path, workers=2, budget={"epochs": 12, "evaluations": 1})
    *carried, (test, last) = carried
    assert len(carried) > 5
    assert all(identifier == number for identifier, number in carried)
    assert test == last + 1, "the winner's look at the test split is no decision"


def test_the_budget_is_spent_and_not_exceeded(finished: autotune.Result) -> None:
    trials = finished.trials
    assert trials.units == 30
    assert trials.in_flight == {}
    assert all(trial.last <= 6 for trial in trials.all.values())
    evaluated = [e for e in finished.view.events if isinstance(e, Evaluated)]
    assert sum("shifted_accuracy" in e.select for e in evaluated) == 6
    assert sum("latency_ms" in e.select for e in evaluated) == 3


def test_a_measurement_runs_alone(finished: autotune.Result) -> None:
    flying = 0
    measuring = False
    for event in finished.view.events:
        match event:
            case Decided(decision=Measure()):
                assert not measuring
                measuring = True
            case Decided(decision=Start() | Thaw() | Evaluate()):
                assert not measuring
                flying += 1
            case Evaluated() if "latency_ms" in event.select:
                assert flying == 0
                measuring = False
            case Frozen() | Evaluated():
                flying -= 1


def test_the_best_is_the_best_and_its_model_is_the_recorded_one(
    finished: autotune.Result,
) -> None:
    best = finished.best
    assert best is not None
    frozen = [(e.trial, e.step) for e in finished.view.events if isinstance(e, Frozen)]
    losses = [finished.trials[t].metrics[s]["validation_loss"] for t, s in frozen]
    assert best.metrics["validation_loss"] == min(losses)
    model = best.load_model()
    assert model.bias.item() == best.metrics["validation_loss"]  # type: ignore[union-attr, operator]
    assert not model.training
    assert finished.test == {"test_loss": pytest.approx(best.metrics["validation_loss"] + 0.01)}
    assert set(best.configuration) == {"learning_rate", "width", "smoothing"}
    others = [p for p in finished.points if (p.trial, p.step) == (best.trial, best.step)]
    known = [p.metrics["shifted_accuracy"] for p in others if "shifted_accuracy" in p.metrics]
    assert best.metrics["shifted_accuracy"] == max(known)
    assert best.reported["shifted_accuracy"] == pytest.approx(
        best.metrics["shifted_accuracy"] - 0.01
    )


def test_every_point_loads_and_nothing_else_is_kept(finished: autotune.Result) -> None:
    kept = {stored.name for stored in CheckpointStore(finished.folder / "checkpoints").list()}
    assert kept == {point.checkpoint for point in finished.points}
    frozen = {e.checkpoint for e in finished.view.events if isinstance(e, Frozen)}
    assert kept < frozen  # thawed trials have left checkpoints that nothing needs
    for point in {point.checkpoint: point for point in finished.points}.values():
        model = point.load_model()
        assert model.bias.item() == point.metrics["validation_loss"]  # type: ignore[union-attr, operator]


def test_the_front_has_every_objective_and_no_dominated_point(finished: autotune.Result) -> None:
    assert finished.pareto
    for point in finished.pareto:
        assert set(OBJECTIVES) <= set(point.metrics)
    for point in finished.pareto:
        for other in finished.pareto:
            worse = [
                o.sign * (other.metrics[o.name] - point.metrics[o.name]) - 0.02 * o.alone
                for o in finished.view.context.objectives
            ]
            assert not (max(worse) <= 0 and min(worse) < -0.02)


def test_curves_are_those_of_the_trials(finished: autotune.Result) -> None:
    steps, values = finished.curves[0]["validation_loss"]
    assert steps == list(range(1, len(steps) + 1))
    assert all(math.isfinite(value) for value in values)


def test_a_view_tells_the_same_without_the_task(finished: autotune.Result) -> None:
    view = autotune.load(finished.folder)
    assert view.events == finished.view.events
    assert view.finished
    best = view.result.best
    assert best is not None
    assert best == finished.best
    with pytest.raises(StudyError, match=r"load_model\(task=task\)"):
        best.load_model()
    assert best.load_model(Quick()).bias.item() == best.metrics["validation_loss"]  # type: ignore[union-attr, operator]


def test_replaying_the_events_takes_the_same_decisions(finished: autotune.Result) -> None:
    assert check_replay(finished.view) > 15
    assert check_repeats(finished.view) == 0


def test_two_runs_write_the_same_events(tmp_path: Path) -> None:
    first, second = tune(tmp_path / "a"), tune(tmp_path / "b")
    assert untimed(first.view.events) == untimed(second.view.events)
    other = tune(tmp_path / "c", seed=1)
    assert untimed(other.view.events) != untimed(first.view.events)


def test_seeds_of_trials_differ_and_stay() -> None:
    seeds = {trial_seed(study, trial) for study in range(20) for trial in range(20)}
    assert len(seeds) == 400
    assert trial_seed(0, 0) == trial_seed(0, 0)
    assert all(0 <= seed < 2**31 for seed in seeds)


# --- names ----------------------------------------------------------------------------------


def test_names_are_unique(tmp_path: Path) -> None:
    small = {"budget": {"epochs": 1}, "objectives": ["validation_loss"], "space": plain()}
    names = [tune(tmp_path, name="mine", **small).folder.name for _ in range(3)]
    assert names == ["mine", "mine-2", "mine-3"]
    with pytest.raises(StudyError, match=r"name: '\.\./x' cannot name"):
        tune(tmp_path, name="../x", **small)


def plain() -> Space:
    """Without anything to evaluate."""
    return Space({name: p for name, p in space().parameters.items() if name != "smoothing"})


def test_a_study_killed_before_it_began_gives_its_name_back(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "record.sqlite").touch()
    small = {"budget": {"epochs": 1}, "objectives": ["validation_loss"], "space": plain()}
    with pytest.raises(StudyError, match="nothing was recorded"):
        autotune.resume("mine", folder=tmp_path)
    assert tune(tmp_path, name="mine", **small).folder.name == "mine"


# --- what users get wrong -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objectives": ["validation_los"]}, "objectives: 'validation_los' is not one"),
        ({"objectives": ["parameters"]}, "at least one must be a curve"),
        ({"objectives": ["validation_loss", "validation_loss"]}, "stands twice"),
        ({"objectives": [{"name": "x", "direction": "minimize", "kind": "curve", "y": 1}]}, "y"),
        ({"budget": {"epoch": 3}}, "no limit 'epoch'"),
        ({"budget": {"epochs": 3, "steps": 4}}, "either epochs or steps"),
        ({"budget": {"epochs": 2.5}}, "epochs is 2.5; expected a whole number"),
        ({"budget": {"epochs": 0}}, "is 0; expected a whole number above 0"),
        ({"budget": {"evaluations": 3}}, "expected at least one of"),
        ({"budget": {"steps": 3}}, "is in steps, but the task counts epochs"),
        ({"budget": 3}, "expected a mapping"),
        ({"horizon": 0}, "horizon: is 0"),
        ({"workers": True}, "workers: is True"),
        ({"seed": -1}, "seed: is -1"),
        ({"search": {"politics": "x"}}, "there is no part 'politics'"),
        ({"search": {"policy": "ash"}}, "did you mean 'asha'"),
        ({"search": {"policy": {"name": "asha", "nonsense": 1}}}, "nonsense"),
        ({"search": {"policy": {"name": "auto", "reduction": 4}}}, "takes no hyperparameters"),
        ({"executor": "loca"}, "did you mean 'local'"),
        ({"executor": {"threads": 1}}, r"executor: is {'threads': 1}; expected a name, or a"),
        ({"search": {"policy": {"eta": 3}}}, r"search: policy: is {'eta': 3}; expected a name"),
        ({"search": "asha"}, "search: is 'asha'; expected a mapping of its parts"),
        ({"executor": {"name": "local", "nonsense": 1}}, "no option 'nonsense'"),
        ({"first": [{"width": 99}]}, r"first\[0\]: width"),
        ({"task": 3}, "expected a TorchTask"),
        ({"task": "nowhere.py:x"}, "there is no file"),
        ({"space": Space({"optimizer": Plugins("optimiser")})}, "optimiser"),
        ({"folder": Path("/proc/1/x")}, "no study can be kept"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    folder = options.pop("folder", tmp_path / "studies")
    with pytest.raises(Exception, match=message) as caught:
        tune(folder, **options)
    assert type(caught.value).__name__ in (
        "StudyError",
        "PluginError",
        "TaskError",
        "SpaceError",
        "RecordError",
    )
    assert autotune.api.studies(tmp_path / "studies") == []


class Unlucky(Quick):
    def model_info(self, configuration: Any) -> Any:
        raise ZeroDivisionError("in the user's factory")


def test_a_model_that_cannot_be_made_shows_where(tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"(?s)default configuration.*Traceback.*user's factory"):
        tune(tmp_path, Unlucky())
    assert list(tmp_path.iterdir()) == []


# --- failures of trials ---------------------------------------------------------------------


def test_a_nan_ends_its_trial_and_not_the_study(tmp_path: Path) -> None:
    result = tune(tmp_path, space=space(mood=moods("nan")), seed=3)
    failed = [e for e in result.view.events if isinstance(e, Failed)]
    assert failed
    assert {e.cause for e in failed} == {"not_finite"}
    assert all(e.step == 1 for e in failed)
    for event in failed:
        trial = result.trials[event.trial]
        assert trial.status == "failed"
        assert trial.configuration["mood"] == "nan"
    assert result.best is not None
    assert result.best.configuration["mood"] == "good"
    assert check_replay(result.view) > 0


def test_a_raising_model_ends_its_trial_and_not_the_study(tmp_path: Path) -> None:
    result = tune(tmp_path, space=space(mood=moods("raise")), seed=3)
    failed = [e for e in result.view.events if isinstance(e, Failed)]
    assert failed
    assert {e.cause for e in failed} == {"error"}
    assert all("the user's model is broken" in e.message for e in failed)
    assert result.best is not None


def test_if_nothing_works_the_first_error_is_shown_in_full(tmp_path: Path) -> None:
    with pytest.raises(NothingWorks) as caught:
        tune(tmp_path, space=space(mood="raise"))
    message = str(caught.value)
    assert "all 5 trials so far have failed" in message
    assert 'ValueError("the user\'s model is broken")' in message
    assert "study_tasks.py" in message
    view = autotune.load("study", tmp_path)
    assert len(view.trials) == 5
    assert view.result.best is None


def test_a_killed_worker_costs_a_segment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUICK_FLAG", str(tmp_path / "flag"))
    result = tune(tmp_path, space=space(mood="die_once"), workers=2)
    lost = [e for e in result.view.events if isinstance(e, Lost)]
    assert len(lost) == 1
    assert "killed by SIGKILL" in lost[0].message
    assert not [e for e in result.view.events if isinstance(e, Failed)]
    assert result.trials.units == 30
    assert check_repeats(result.view) == 1
    assert check_replay(result.view) > 0


def test_a_trial_that_kills_its_worker_is_given_up(tmp_path: Path) -> None:
    options = {"space": space(mood=moods("die")), "budget": {"epochs": 12, "evaluations": 2}}
    result = tune(tmp_path, **options, first=[{"mood": "die"}])
    (failed,) = [e for e in result.view.events if isinstance(e, Failed) and e.trial == 1]
    assert failed.cause == "worker_died"
    assert "3 times in a row" in failed.message
    assert len([e for e in result.view.events if isinstance(e, Lost) and e.trial == 1]) == 2
    assert result.best is not None
    assert result.best.configuration["mood"] == "good"


# --- one driver, and stopping it ------------------------------------------------------------


def test_a_second_driver_is_refused(tmp_path: Path) -> None:
    refused = []

    def another(trials: Any, event: Any) -> None:
        if isinstance(event, Observed) and not refused:
            with pytest.raises(RecordError, match=f"another driver .process {os.getpid()}"):
                autotune.resume("study", folder=tmp_path)
            refused.append(True)

    tune(tmp_path, listeners=[another])
    assert refused


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_freezes_writes_and_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    def stop(trials: Any, event: Any) -> None:
        if trials.units == 7 and isinstance(event, Observed):
            os.kill(os.getpid(), number)

    monkeypatch.setenv("QUICK_SECONDS", "0.03")
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=r"autotune resume --study study") as caught:
        tune(tmp_path, workers=2, listeners=[stop])
    assert caught.value.number == number
    assert signal.getsignal(number) is before
    view = autotune.load("study", tmp_path)
    assert not view.finished
    assert view.trials.in_flight == {}
    assert 7 <= view.trials.units < 20
    assert all(trial.frozen == trial.last for trial in view.trials.all.values())
    result = autotune.resume("study", folder=tmp_path, progress=False)
    assert result.trials.units == 30
    assert result.view.events[: len(view.events)] == view.events
    assert check_repeats(result.view) == 0
    assert check_replay(result.view) > 0


def test_an_interrupted_run_trains_what_an_uninterrupted_one_does(tmp_path: Path) -> None:
    """Segments cut short go on bit for bit, so the curves are those of a quiet run."""

    def stop(trials: Any, event: Any) -> None:
        if trials.units in (4, 11) and isinstance(event, Observed):
            os.kill(os.getpid(), signal.SIGTERM)

    # a draw depends on how many decisions were made, and a segment that was cut takes another
    named = [{"learning_rate": rate} for rate in (0.003, 0.03, 0.0005, 0.09)]
    options = {"search": {**SEARCH, "policy": "random_search"}, "first": named}
    quiet = tune(tmp_path / "quiet", **options)
    with pytest.raises(Interrupted):
        tune(tmp_path / "cut", listeners=[stop], **options)
    with pytest.raises(Interrupted):
        autotune.resume("study", folder=tmp_path / "cut", progress=False, listeners=[stop])
    cut = autotune.resume("study", folder=tmp_path / "cut", progress=False)
    assert cut.curves == quiet.curves
    assert cut.test == quiet.test


def test_tuning_in_a_thread_works(tmp_path: Path) -> None:
    found: list[autotune.Result] = []
    thread = threading.Thread(target=lambda: found.append(tune(tmp_path)))
    thread.start()
    thread.join(60)
    assert found
    assert found[0].best is not None


# --- budgets --------------------------------------------------------------------------------


def test_a_budget_in_trials(tmp_path: Path) -> None:
    result = tune(tmp_path, budget={"trials": 4, "evaluations": 2})
    assert len(result.trials) == 4


def test_a_budget_in_seconds_counts_only_while_a_driver_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUICK_SECONDS", "0.05")

    def stop(trials: Any, event: Any) -> None:
        if trials.units == 2 and isinstance(event, Observed):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        tune(tmp_path, budget={"seconds": 9, "evaluations": 2}, listeners=[stop])
    before = autotune.load("study", tmp_path)
    clock = before.meta["clock"]
    assert before.trials.at <= clock < 9
    time.sleep(5)
    began = time.monotonic()
    result = autotune.resume("study", folder=tmp_path, progress=False)
    spent = time.monotonic() - began
    ats = [event.at for event in result.view.events]
    assert ats == sorted(ats)
    (restarted,) = [event.at for event in result.view.events if isinstance(event, Restarted)]
    assert 0 <= restarted - clock <= spent  # and not the five seconds between the drivers
    assert result.trials.units > before.trials.units
    assert result.reason is not None
    assert "the 9 s of the budget are spent" in result.reason
    assert ats[-1] <= clock + spent
    decided = [event for event in result.view.events if isinstance(event, Decided)]
    begun = [event.at for event in decided if isinstance(event.decision, Start | Thaw)]
    assert max(begun) < 9 + 1  # nothing is trained on a budget that is spent


# --- plugins --------------------------------------------------------------------------------


def test_what_cannot_work_is_left_out_said_and_recorded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapters = space(adapter=Plugins("adapter"), optimizer=Plugins("optimizer", include=("sgd",)))
    result = tune(tmp_path, space=adapters, progress=True, budget={"epochs": 2, "evaluations": 1})
    left_out = {name: reason for kind, name, reason in result.view.header.left_out}
    assert {"lora", "pissa", "series_bottleneck"} <= set(left_out)
    shown = capsys.readouterr().err
    assert f"left out: adapter lora: {left_out['lora']}" in shown
    chosen = result.view.header.resolved.parameters["adapter"]
    assert isinstance(chosen, Choice)
    assert list(chosen.options) == ["full"]
    rows = {row[:2]: row[2:] for row in result.view.header.plugins}
    assert rows["optimizer", "sgd"][0] == "autotune-torch"
    assert ("executor", "local") in rows
    assert ("policy", SEARCH["policy"]) in rows
    assert ("optimizer", "adamw") not in rows


def test_the_address_of_a_task_is_recorded_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parent)
    result = tune(tmp_path, "study_tasks.py:quick", budget={"epochs": 1, "evaluations": 1})
    assert result.view.header.task == ADDRESS
    best = autotune.load(result.folder).result.best
    assert best is not None
    assert best.load_model().bias.item() == best.metrics["validation_loss"]  # type: ignore[union-attr, operator]


def test_no_more_segments_are_in_flight_than_workers(finished: autotune.Result) -> None:
    flying: set[int] = set()
    for event in finished.view.events:
        match event:
            case Decided(decision=Start() | Thaw() as decision):
                flying.add(decision.trial)
                assert len(flying) <= 2
            case Frozen(trial=trial):
                flying.remove(trial)


def test_the_best_point_is_evaluated_though_the_trial_got_worse(tmp_path: Path) -> None:
    """A trial is evaluated at its best checkpoint, so the winner can be on the front."""
    result = tune(tmp_path, task=Overfitting())
    assert result.best is not None
    assert result.best.step < max(step for _, step in result.trials[result.best.trial].segments)
    assert "shifted_accuracy" in result.best.metrics
    assert "latency_ms" in result.best.metrics
    assert result.best in result.pareto


class Overfitting(Quick):
    def open(self, configuration: Any, context: Any) -> Any:
        return OverfittingRun(configuration, context)


class OverfittingRun(QuickRun):
    def train(self) -> Any:
        metrics = dict(super().train())
        with torch.no_grad():
            self.network.bias += 0.3 * max(0, self.units - 3)
        return {**metrics, "validation_loss": self.network.bias.item()}

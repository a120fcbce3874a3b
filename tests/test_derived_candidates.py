"""The final phase's derived candidates in whole studies: finalists cooled down from a checkpoint,
and the winner refined by its own gradient norms. Recorded, resumed, shown."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from studies import check_repeats, check_replay
from torch import nn
from torch.nn import functional

import autotune
from autotune.cli import main
from autotune.decide.final import best_run
from autotune.execute.store import CheckpointStore
from autotune.plugins.search import Decided, Frozen, Origin, Start
from autotune.record import FOLDER
from autotune.report import write_report
from autotune.space import Float, Plugins, Space
from autotune.study import Interrupted

GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(60, 5, generator=GENERATOR)
TARGETS = (INPUTS[:, 0] + INPUTS[:, 1].square() > 0.5).long()
HORIZON = 5
FINAL = {"candidates": 1, "seeds": 2, "share": 0.9}


def build(architecture: Any) -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2))


def task() -> autotune.TorchTask:
    return autotune.TorchTask(
        model=build,
        data=autotune.Data((INPUTS[:40], TARGETS[:40]), (INPUTS[40:], TARGETS[40:])),
        loss=functional.cross_entropy,
    )


def studied(folder: Path, **options: Any) -> autotune.Result:
    space = Space(
        {
            "optimizer": Plugins("optimizer", include=("sgd",)),
            "schedule": Plugins("schedule", include=("constant",)),
            "batch_size": 8,
            "record_gradient_norms": True,
            "unused": Float(0.0, 1.0),
        }
    )
    asked: dict[str, Any] = {
        "objectives": ["validation_loss"],
        "budget": {"epochs": 45},
        "horizon": HORIZON,
        "name": "derived",
        "folder": folder,
        "search": {"policy": "asha", "proposer": "random"},
        "workers": 1,
        "final": FINAL,
        "progress": False,
        **options,
    }
    return autotune.tune(task(), space, **asked)


def starts(result: autotune.Result) -> list[Start]:
    decided = [event.decision for event in result.view.events if isinstance(event, Decided)]
    return [d for d in decided if isinstance(d, Start) and d.origin is not None]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> autotune.Result:
    """A study whose finalist is cooled down, and whose winner is refined."""
    folder = tmp_path_factory.mktemp("studies")
    return studied(folder, final={**FINAL, "refine": 1})


def test_a_constant_finalist_is_cooled_down_from_its_checkpoint(whole: autotune.Result) -> None:
    trials = whole.trials
    assert trials.finalists is not None
    (number,) = trials.finalists.trials
    base, cooled = trials[number], trials[trials.cooldowns[number]]
    assert cooled.origin is not None
    assert (cooled.origin.how, cooled.origin.trial) == ("cooldown", number)
    step = cooled.origin.step
    assert (base.last, step) == (4, 4)  # a fifth of the horizon is kept for the cooldown
    assert cooled.configuration["schedule"]["name"] == "warmup_stable_decay"
    assert cooled.configuration["optimizer"] == base.configuration["optimizer"]
    # Its own curve: the other's up to the branch, then its own units.
    assert sorted(cooled.metrics) == [1, 2, 3, 4, 5]
    assert all(cooled.metrics[unit] == base.metrics[unit] for unit in range(1, 5))
    assert cooled.static == base.static
    # The cooldown ends at a rate near zero, of a run that had the base's seed.
    (event,) = [e for e in whole.view.events if isinstance(e, Frozen) and e.trial == cooled.number]
    store = CheckpointStore(whole.folder / "checkpoints")
    ended, began = store.load(event.checkpoint), store.load(base.checkpoint or "")
    assert ended["seed"] == began["seed"]
    assert ended["state"]["counts"]["samples"] == 200
    (group,) = ended["state"]["optimizer"]["param_groups"][:1]
    assert 0 < group["lr"] < 0.2 * group["initial_lr"]


def test_repeats_of_both_come_from_the_same_trainings(whole: autotune.Result) -> None:
    trials = whole.trials
    base = trials[trials.finalists.trials[0]]  # type: ignore[union-attr]
    cooled = trials[trials.cooldowns[base.number]]
    by_trial = {standing.trial: standing for standing in whole.standings}
    again = [trials[number] for number, _ in by_trial[cooled.number].repeats]
    assert len(again) >= 2
    for repeat in again:
        assert repeat.origin is not None
        assert trials[repeat.origin.trial].repeat_of == base.number
        assert repeat.origin.step == cooled.origin.step  # type: ignore[union-attr]
        assert repeat.configuration == cooled.configuration
    assert len(by_trial[base.number].repeats) >= len(again)
    assert trials.units <= 45


def test_the_winner_is_refined_and_wins_only_if_it_is_better(whole: autotune.Result) -> None:
    (refined,) = [s for s in starts(whole) if s.origin.how == "refinement" and s.repeat_of is None]  # type: ignore[union-attr]
    assert refined.configuration["schedule"]["name"] == "linear_decay"
    by_trial = {standing.trial: standing for standing in whole.standings}
    mine = by_trial[refined.trial]
    assert mine.origin == refined.origin
    assert len(mine.repeats) >= 2
    others = [s for s in whole.standings if s.trial != refined.trial and s.mean is not None]
    better = all(mine.mean < s.mean for s in others)  # type: ignore[operator]
    assert (whole.winner == mine) == better
    assert whole.best is not None
    assert (whole.best.trial, whole.best.step) == best_run(whole.trials)
    assert isinstance(whole.best.load_model(task()), nn.Module)


def test_every_decision_is_taken_again_and_shown(
    whole: autotune.Result, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check_replay(whole.view) > 10
    page = write_report(whole.view, whole.report).read_text()
    assert "cool trial" in page
    assert "refine trial" in page
    assert main(["best", "--folder", str(whole.folder.parent), "--study", "derived"]) == 0
    assert main(["status", "--folder", str(whole.folder.parent), "--study", "derived"]) == 0
    assert capsys.readouterr().out


def test_a_study_interrupted_within_a_derived_trial_goes_on_with_it(
    tmp_path: Path, whole: autotune.Result
) -> None:
    """Also where it has no checkpoint of its own yet, and begins from the other's again."""
    hit: list[int] = []

    def interrupt(trials: Any, event: Any) -> None:
        started = isinstance(event, Decided) and isinstance(event.decision, Start)
        if started and event.decision.origin is not None and len(hit) == 0:
            hit.append(event.decision.trial)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted):
        studied(tmp_path, final={**FINAL, "refine": 1}, listeners=[interrupt])
    result = autotune.resume("derived", task(), folder=tmp_path, progress=False)
    assert result.standings == whole.standings
    assert check_replay(result.view) > 10
    check_repeats(result.view)


STUDY = """\
name: derived
task: task.py:task
space:
  optimizer: {plugins: optimizer, include: [sgd]}
  schedule: {plugins: schedule, include: [constant]}
  batch_size: 8
  record_gradient_norms: true
  unused: {type: float, low: 0.0, high: 1.0}
objectives: [validation_loss]
horizon: 5
budget: {epochs: 45}
search: {policy: asha, proposer: random}
executor: {name: local, workers: 1}
final: {candidates: 1, seeds: 2, share: 0.9, refine: 1}
"""


def test_a_study_file_says_the_same(
    tmp_path: Path, whole: autotune.Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the command line: the same candidates, cooled down and refined, and the same winner."""
    source = Path(__file__).read_text()
    begin, end = source.index("GENERATOR ="), source.index("def studied(")
    body = source[begin:end].replace("def task()", "@autotune.task\ndef task()")
    head = source[source.index("from typing import Any") : source.index("from autotune.cli")]
    (tmp_path / "task.py").write_text(head + body)
    (tmp_path / "derived.yaml").write_text(STUDY)
    monkeypatch.chdir(tmp_path)
    assert main(["run", "derived.yaml", "--quiet"]) == 0
    result = autotune.load(tmp_path / FOLDER / "derived").result
    assert [start.origin for start in starts(result)] == [start.origin for start in starts(whole)]
    assert result.standings == whole.standings


def test_refinement_needs_norms_and_a_choice_of_schedule(tmp_path: Path) -> None:
    refine = {**FINAL, "refine": 1}
    options: dict[str, Any] = {"objectives": ["validation_loss"], "budget": {"epochs": 45}}
    options |= {"horizon": HORIZON, "folder": tmp_path, "final": refine, "progress": False}
    sgd = Plugins("optimizer", include=("sgd",))
    with pytest.raises(autotune.StudyError, match="refine needs a choice of schedule"):
        autotune.tune(task(), Space({"optimizer": sgd}), **options)
    both = Space({"optimizer": sgd, "schedule": Plugins("schedule", include=("constant",))})
    with pytest.raises(autotune.StudyError, match="add record_gradient_norms: true"):
        autotune.tune(task(), both, **options)


def test_origin_survives_the_record(whole: autotune.Result) -> None:
    assert {type(start.origin) for start in starts(whole)} == {Origin}
    assert autotune.load(whole.folder).events == whole.view.events

"""Beginning from an earlier study: what is fitted to the new space, told, recorded and kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from studies import check_replay
from study_text import write

import autotune
from autotune.cli import main
from autotune.execute.recorded_table import RecordedTable
from autotune.header import Header, StudyError
from autotune.plugins.search import Decided, Objective, Start
from autotune.space import Categorical, Float, Ordinal, Space
from autotune.study_file import load
from autotune.warm_start import CANDIDATES, CURVES, POINTS, _chosen

LOSS = Objective("validation_loss", "minimize", "curve")


class Wide(RecordedTable):
    """Answers configurations of any of the spaces here by their rate alone."""

    def nearest(self, configuration: Any) -> int:
        return int(np.abs(self.rows[:, 0] - configuration["rate"]).argmin())


def table(shift: float = 0.0) -> Wide:
    rates = np.linspace(0.01, 1.0, 100)
    ends = np.abs(np.log10(rates) + 1.0) + shift
    return Wide(
        rows=rates[:, None],
        names=("rate",),
        log=(True,),
        curves=ends[:, None] + np.exp(-np.arange(1, 7) / 2),
    )


def run(folder: Path, space: Space, name: str, task: Any = None, **options: Any) -> Any:
    asked: dict[str, Any] = {"objectives": [LOSS], "budget": {"epochs": 60}, **options}
    return autotune.tune(
        task or table(),
        space,
        horizon=6,
        folder=folder,
        name=name,
        executor="replay",
        workers=1,
        search={"policy": "asha", "proposer": "random"},
        progress=False,
        **asked,
    )


OLD = Space(
    {
        "rate": Float(0.01, 1.0, log=True, default=0.9),
        "size": Ordinal((8, 16, 64), default=16),
        "kind": Categorical(("a", "b", "c"), default="a"),
        "gone": Float(0.0, 1.0, default=0.5),
    }
)
NEW = Space(
    {
        "rate": Float(0.05, 0.5, log=True, default=0.4),
        "size": Ordinal((8, 32), default=8),
        "kind": Categorical(("a", "b"), default="a"),
        "fresh": Float(0.0, 1.0, default=0.25),
    }
)


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> autotune.Result:
    return run(tmp_path_factory.mktemp("old"), OLD, "old")


def test_trials_are_fitted_to_the_new_space_and_people_are_told(
    tmp_path: Path, old: autotune.Result, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run(tmp_path, NEW, "new", task=table(1.0), warm_start=old.folder)
    header = result.view.header
    (earlier,) = header.earlier
    assert earlier.name == "old"
    assert len(header.warm) == CANDIDATES
    starts = [
        e.decision.configuration
        for e in result.view.events
        if isinstance(e, Decided) and isinstance(e.decision, Start)
    ]
    assert starts[0] == NEW.default()
    assert starts[1 : CANDIDATES + 1] == list(header.warm)
    for configuration in header.warm:
        NEW.validate(configuration)
        assert configuration["fresh"] == 0.25
    # The curve of a configuration of which a number was moved is not that of what it became.
    for trial in earlier.trials:
        NEW.validate(trial.configuration)
        assert trial.configuration["size"] == 8
    words = "\n".join(earlier.notes)
    assert "rate: outside of 0.05 to 0.5, moved to its nearest end" in words
    assert "size: not among the values, moved to the nearest" in words
    assert "kind: 'c' is not allowed any more, left out" in words
    assert "gone: not in this study, dropped" in words
    assert "fresh: not in the earlier study, taken at its default" in words
    assert check_replay(result.view) > 10


def test_the_best_of_the_earlier_study_is_tried_first(tmp_path: Path, old: autotune.Result) -> None:
    result = run(tmp_path, OLD, "again", task=table(1.0), warm_start=old)
    assert old.best is not None
    assert result.view.header.warm[0] == old.best.training
    cold = run(tmp_path, OLD, "cold", task=table(1.0))
    best = {
        name: min(t.scores(n)[1].min() for n in range(CANDIDATES + 1))
        for name, t in (("warm", result.trials), ("cold", cold.trials))
    }
    assert best["warm"] <= best["cold"]


def test_the_earlier_study_may_be_gone_when_it_is_resumed(
    tmp_path: Path, old: autotune.Result
) -> None:
    gone = tmp_path / "gone"
    shutil.copytree(old.folder, gone)
    result = run(tmp_path, OLD, "new", warm_start=[gone])
    shutil.rmtree(gone)
    again = autotune.load("new", tmp_path)
    assert again.context == result.view.context
    assert len(again.context.earlier[0].trials) == len(result.view.header.earlier[0].trials) > 0
    assert all(len(trial.steps) <= POINTS for trial in again.context.earlier[0].trials)
    assert Header.from_plain(json.loads(json.dumps(again.header.to_plain()))) == again.header
    assert check_replay(again) > 10


def test_what_cannot_be_compared_is_refused(tmp_path: Path, old: autotune.Result) -> None:
    other = Objective("validation_loss", "maximize", "curve")
    with pytest.raises(StudyError, match="warm_start: study 'old' is driven by validation_loss"):
        run(tmp_path, OLD, "new", objectives=[other], warm_start=old)
    with pytest.raises(StudyError, match="there is no study 'nowhere'"):
        run(tmp_path, OLD, "new", warm_start="nowhere")


def test_no_more_curves_are_kept_than_needed() -> None:
    ranked = list(range(1000))
    kept = _chosen(ranked)
    assert kept[: CURVES // 2] == ranked[: CURVES // 2]
    assert len(kept) == len(set(kept)) == CURVES
    assert max(kept) > 950


def test_study_files_and_the_command_line_name_earlier_studies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = write(tmp_path)
    one.write_text(one.read_text() + "\nwarm_start: [first, second]\n")
    assert load(one).warm_start == ("first", "second")
    assert main(["run", str(one), "--folder", str(tmp_path / "studies")]) == 2
    assert "there is no study 'first'" in capsys.readouterr().err
    plain = write(tmp_path)
    options = ["--warm-start", "third", "--folder", str(tmp_path / "studies")]
    assert main(["run", str(plain), *options]) == 2
    assert "there is no study 'third'" in capsys.readouterr().err

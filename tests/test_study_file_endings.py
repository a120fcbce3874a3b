"""What a study file may say of how the search ends and of what guards it."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest
from study_text import write

from autotune.asked import as_final, as_utility
from autotune.commands import plan_of
from autotune.plugins.search import Final, Holdout, Utility
from autotune.space.yaml_text import parse
from autotune.study_file import StudyFileError, json_schema, load


def spoken(folder: Path, further: str) -> Path:
    path = write(folder)
    path.write_text(path.read_text() + f"\n{further}\n")
    return path


def test_what_it_says_reaches_the_plan(tmp_path: Path) -> None:
    further = (
        "final: {candidates: 4, seeds: 5}\n"
        "utility: {percent: 1, minutes: 2}\n"
        "holdout: {threshold: 0.1, budget: 50}"
    )
    plan = plan_of(spoken(tmp_path, further))
    assert plan.final == Final(4, 5, 0.2)
    assert plan.utility == Utility(percent=1.0, seconds=120.0)
    assert plan.holdout == Holdout(0.1, 0.01, 50)


def test_what_it_leaves_out_has_its_default(tmp_path: Path) -> None:
    described = load(write(tmp_path))
    assert as_final(described.final) == Final()
    assert as_utility(described.utility) == (None, None)
    assert (described.holdout, described.warm_start) == (None, ())
    assert as_final(load(spoken(tmp_path, "final: false")).final) is None


@pytest.mark.parametrize(
    ("further", "words"),
    [
        ("final: {seed: 3}", "final.seed: unknown key"),
        ("final: {seeds: 0}", "final.seeds: got 0, expected a whole number above 0"),
        ("final: {share: 1.5}", "final.share: got 1.5, expected a number between 0 and 1"),
        ("final: three", "expected true, false, or a mapping with candidates"),
        ("utility: {percent: 1}", "expected a mapping with improvement (or percent)"),
        ("utility: {percent: 1, epochs: -1}", "utility.epochs: got -1, expected a number above 0"),
        ("holdout: {noise: 0}", "holdout.noise: got 0, expected a number above 0"),
        ("holdout: {budget: 1.5}", "holdout.budget: got 1.5, expected a whole number above 0"),
        ("warm_start: 3", "expected the name of a study, or a list of names"),
    ],
)
def test_mistakes_are_told_with_their_line(tmp_path: Path, further: str, words: str) -> None:
    path = spoken(tmp_path, further)
    line = path.read_text().splitlines().index(further) + 1
    with pytest.raises(StudyFileError) as caught:
        load(path)
    said = str(caught.value)
    assert words in said
    assert f"{path}:{line}: " in said


def test_the_schema_knows_it(tmp_path: Path) -> None:
    path = spoken(tmp_path, "final: {seeds: 2}\nutility: {percent: 1, epochs: 3}\nwarm_start: old")
    jsonschema.validate(parse(path.read_text()).value, json_schema())
    wrong = spoken(tmp_path, "final: {sedes: 2}")
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(parse(wrong.read_text()).value, json_schema())

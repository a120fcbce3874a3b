"""Study files: what they mean, and one message with its place for every mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from study_text import STUDY, imported, write

from autotune.cli import main
from autotune.plugins.discovery import Catalogue
from autotune.plugins.search import Budget, Objective
from autotune.space import Float, Plugins, Space
from autotune.space.yaml_text import dump, parse
from autotune.study_file import StudyFileError, json_schema, load

ROOT = Path(__file__).parent.parent


def test_what_a_file_says(tmp_path: Path) -> None:
    study = load(write(tmp_path))
    assert study.name == "digits"
    assert study.task == f"{tmp_path / 'tasks' / 'digits.py'}:task"
    assert study.objectives == (
        Objective("validation_loss", "minimize", "curve"),
        Objective("shifted_accuracy", "maximize", "evaluation", bounds=(0.0, 1.0)),
        Objective("mine", "maximize", "curve", bounds=(0.0, 1.0)),
    )
    assert study.budget == Budget(units=300, trials=80, seconds=240.0, evaluations=40)
    assert (study.unit, study.horizon, study.seed) == ("epoch", 20, 0)
    assert study.first == (
        {"optimizer": {"name": "adamw", "learning_rate": 1e-3}, "batch_size": 128},
    )
    assert study.search["policy"] == {"name": "random_search"}
    assert (study.executor, study.workers, study.device) == ({"name": "local"}, 2, "cpu")
    assert isinstance(study.space.parameters["tta"], Plugins)
    assert not imported(tmp_path)


def test_its_space_resolves_with_the_overrides(tmp_path: Path) -> None:
    space = load(write(tmp_path)).space.resolve(Catalogue())
    optimizer = space.parameters["optimizer"]
    assert "lion" not in optimizer.options
    rate = optimizer.options["adamw"].parameters["learning_rate"]
    assert isinstance(rate, Float)
    assert (rate.low, rate.high, rate.log) == (1e-4, 1e-1, True)
    default = space.default()
    names = {key: value["name"] for key, value in default.items() if "name" in str(value)}
    assert names == {
        "optimizer": "adamw",
        "schedule": "constant",
        "adapter": "full",
        "tta": "none",
        "head": "linear",
    }
    assert next(slot.path for slot in space.slots if slot.evaluation) == "tta"
    assert Space.from_yaml(space.to_yaml()) == space


def test_names_alone_and_defaults(tmp_path: Path) -> None:
    text = STUDY.split("seed:")[0] + "executor: local\n"
    study = load(write(tmp_path, text.replace("epochs: 300, ", "steps: 1e3, ")))
    assert study.search == {
        "policy": {"name": "auto"},
        "proposer": {"name": "tpe"},
        "forecaster": {"name": "pfn"},
    }
    assert (study.unit, study.budget.units, study.first, study.seed) == ("step", 1000, (), 0)
    assert (study.executor, study.workers) == ({"name": "local"}, 2)


def test_a_module_address_is_checked_by_its_form_alone(tmp_path: Path) -> None:
    text = STUDY.replace("tasks/digits.py:task", "no.such.module:Tasks.digits")
    assert load(write(tmp_path, text)).task == "no.such.module:Tasks.digits"


def test_anchors_and_merges_are_fine(tmp_path: Path) -> None:
    text = STUDY.replace("hidden: {type:", "hidden: &range {type:").replace(
        "    default: linear\n", "      deep:\n        hidden: {<<: *range, high: 128}\n"
    )
    head = load(write(tmp_path, text)).space.parameters["head"]
    assert head.options["deep"].parameters["hidden"].high == 128


@pytest.mark.parametrize("path", sorted((ROOT / "search_spaces").glob("*.yaml")), ids=str)
def test_the_search_spaces_are_valid(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(path)]) == 0
    assert f"{path}: valid" in capsys.readouterr().out


MISTAKES = [
    # what is replaced, by what, the line, the key, words of the message
    ("name: digits\n", "nane: digits\n", 1, "nane", "unknown key 'nane', expected one of name,"),
    ("name: digits\n", "name: 'a b'\n", 1, "name", "got 'a b', expected up to 100 letters"),
    ("name: digits\n", "name: 7\n", 1, "name", "got 7, expected up to 100 letters"),
    ("horizon: 20\n", "", 1, "horizon", "is missing, expected a whole number above 0"),
    (
        "horizon: 20",
        "horizon: 20\nconstraints:\n  - parameters <= 1e4\n  - latency_m <= 5",
        39,
        "constraints[1]",
        "unknown metric 'latency_m', expected a metric's name (did you mean 'latency_ms <= 5'?)",
    ),
    (
        "horizon: 20",
        "horizon: 20\nconstraints: [mine = 5]",
        37,
        "constraints[0]",
        "got 'mine = 5', expected a limit, such as latency_ms <= 5",
    ),
    (
        "horizon: 20",
        "horizon: 20\nconstraints: mine < 5",
        37,
        "constraints",
        "got 'mine < 5', expected a list of limits",
    ),
    ("horizon: 20", "horizon: -1", 36, "horizon", "got -1, expected a whole number above 0"),
    ("horizon: 20", "horizon: true", 36, "horizon", "got True, expected a whole number"),
    ("horizon: 20", "horizon: [20]", 36, "horizon", "got [20], expected a whole number"),
    ("seed: 0", "seed: 0.5", 37, "seed", "got 0.5, expected a whole number from 0 on"),
    ("task: tasks/digits.py:task", "task: tasks/digits.py", 2, "task", "expected package.module"),
    ("tasks/digits.py:task", "os; system('x'):y", 2, "task", "expected package.module:object"),
    ("tasks/digits.py:task", "tasks/digit.py:task", 2, "task", "no file 'tasks/digit.py'"),
    ("tasks/digits.py:task", "tasks/digit.py:task", 2, "task", "mean 'tasks/digits.py:task'?"),
    ("tasks/digits.py:task", "tasks:task", 2, "task", None),
    ("type: integer, low: 16", "type: int, low: 16", 5, "space.architecture.width.type", "'int'"),
    ("type: integer, low: 16", "type: integr, low: 16", 5, "", "(did you mean 'integer'?)"),
    ("low: 16, ", "", 5, "space.architecture.width", "a integer needs the key 'low'"),
    ("low: 16, ", "lo: 16, ", 5, "space.architecture.width.lo", "unknown key 'lo'"),
    ("low: 16, ", "low: sixteen, ", 5, "space.architecture.width.low", "expected an integer"),
    ("high: 64, log", "high: 4, log", 5, "space.architecture.width.high", "above low (16)"),
    ("log: true, default: 32", "log: yes", 5, "space.architecture.width.log", "got 'yes'"),
    ("default: 32", "default: 65", 5, "space.architecture.width.default", "from 16 to 64"),
    ("step: 0.1", "step: 0.3", 6, "space.architecture.dropout.high", "such as 0.3"),
    ("values: [32, 64, 128]", "values: 32", 7, "space.batch_size.values", "a list of values"),
    ("values: [32, 64, 128]", "values: [32, [64]]", 7, "space.batch_size.values[1]", "got [64]"),
    ("confidence: high", "confidence: hihg", 11, "space.activation.prior.confidence", "'high'?"),
    ("center: gelu, ", "", 11, "space.activation.prior", "a prior needs the key 'center'"),
    ("center: gelu", "center: selu", 11, "space.activation.prior.center", "one of 'relu', 'gelu'"),
    ("gradient_clip_norm: 1.0", "gradient_clip_norm:", 12, "space.gradient_clip_norm", "got None"),
    ("gradient_clip_norm:", "gradient clip:", 12, "space.gradient clip", "cannot name a parameter"),
    ("plugins: optimizer", "plugins: optimiser", 14, "space.optimizer.plugins", "'optimizer'?"),
    ("plugins: optimizer", "plugins: policy", 14, "space.optimizer.plugins", "under search"),
    ("type: float, low", "tpye: float, low", 6, "space.architecture.dropout.tpye", "mean 'type'?"),
    (
        "plugins: optimizer",
        "plugin: optimizer",
        14,
        "space.optimizer.plugin",
        "(did you mean 'plugins'?)",
    ),
    ("exclude: [lion]", "exclude: lion", 15, "space.optimizer.exclude", "a list of plugin names"),
    ("exclude: [lion]", "exclude: [loin]", 15, "space.optimizer.exclude[0]", "mean 'lion'?"),
    ("exclude: [lion]", "exclud: [lion]", 15, "space.optimizer.exclud", "mean 'exclude'?"),
    ("      adamw:", "      adamww:", 17, "space.optimizer.override.adamww", "mean 'adamw'?"),
    (
        "learning_rate: {low",
        "learning_rat: {low",
        17,
        "space.optimizer.override.adamw.learning_rat",
        "mean 'learning_rate'?",
    ),
    ("low: 1e-4", "lov: 1e-4", 17, "space.optimizer.override.adamw.learning_rate.lov", "'low'?"),
    ("low: 1e-4", "low: 1", 17, "space.optimizer.override.adamw.learning_rate.high", "above low"),
    ("include: [full, lora]", "include: []", 19, "space.adapter.include", "at least one plugin"),
    ("options:\n", "option:\n", 23, "space.head.option", "unknown key 'option'"),
    ("default: linear", "default: liner", 27, "space.head.default", "(did you mean 'linear'?)"),
    ("hidden: {type", "name: {type", 26, "space.head.options.mlp.name", "'name' is reserved"),
    ("- {optimizer: sgd", "- {optimzer: sgd", 29, "forbidden[0].optimzer", "mean 'optimizer'?"),
    ("optimizer: sgd,", "optimizer: sdg,", 29, "forbidden[0].optimizer", "(did you mean 'sgd'?)"),
    ("optimizer: sgd,", "optimizer: adamw,", 29, "forbidden[0].adapter[0]", None),
    ('"> 0.5"', '"> x"', 30, "forbidden[1].optimizer.learning_rate", "a comparison with a number"),
    ("batch_size: 32}\n", "batch_size: 33}\n", 30, "forbidden[1].batch_size", "32, 64, 128"),
    ("  - validation_loss", "  - validation_los", 32, "objectives[0]", "'validation_loss'?"),
    ("  - shifted_accuracy", "  - validation_loss", 33, "objectives[1]", "every objective once"),
    (
        "direction: maximize",
        "direction: max",
        34,
        "objectives[2].direction",
        "minimize or maximize",
    ),
    ("direction: maximize, ", "", 34, "objectives[2].direction", "is missing, expected minimize"),
    ("bounds: [0, 1]", "bounds: [1, 0]", 34, "objectives[2].bounds", "expected [lower, upper]"),
    ("bounds: [0, 1]", "bounds: [1]", 34, "objectives[2].bounds", "a list of two numbers"),
    ("epochs: 300", "epoch: 300", 35, "budget.epoch", "(did you mean 'epochs'?)"),
    ("epochs: 300", "epochs: many", 35, "budget.epochs", "got 'many', expected a whole number"),
    ("minutes: 4", "minutes: 0", 35, "budget.minutes", "got 0, expected a number above 0"),
    ("minutes: 4", "minutes: .nan", 35, "budget.minutes", "got nan, expected a number above 0"),
    ("epochs: 300", "steps: 1, epochs: 300", 35, "budget.steps", "either epochs or steps"),
    ("{epochs: 300, trials: 80, minutes: 4, ", "{", 35, "budget", "would never end the search"),
    ("{epochs: 300, trials: 80, minutes: 4, evaluations: 40}", "3", 35, "budget", "got 3"),
    ("{name: adamw, learn", "{name: adamv, learn", 39, "first[0].optimizer.name", "'adamw'?"),
    ("learning_rate: 1e-3", "learning_rate: 3", 39, "first[0].optimizer.learning_rate", "got 3"),
    ("learning_rate: 1e-3", "learning_rat: 1", 39, "first[0].optimizer.learning_rat", "'learning"),
    ("    batch_size: 128", "    batch_size: 129", 40, "first[0].batch_size", "got 129"),
    ("    batch_size: 128", "    batch_sise: 128", 40, "first[0].batch_sise", "'batch_size'?"),
    ("policy: random_search", "policy: random_serch", 41, "search.policy", "'random_search'?"),
    ("policy: random_search", "polcy: random_search", 41, "search.polcy", "mean 'policy'?"),
    ("policy: random_search", "policy: {nam: a}", 41, "search.policy.name", "is missing"),
    ("policy: random_search", "policy: {name: auto, a: 1}", 41, "search.policy.a", "unknown key"),
    ("policy: random_search", "policy: 3", 41, "search.policy", "got 3, expected a policy's name"),
    ("proposer: random", "proposer: {name: random, prio: 1}", 41, "search.proposer.prio", "prio"),
    ("workers: 2", "workers: 0", 42, "executor.workers", "got 0, expected a whole number above 0"),
    ("workers: 2", "worker: 2", 42, "executor.worker", "(did you mean 'workers'?)"),
    (
        "device: cpu",
        "device: gpu",
        42,
        "executor.device",
        "cpu, cuda or auto (did you mean 'cpu'?)",
    ),
    ("{name: local", "{name: locl", 42, "executor", "(did you mean 'local'?)"),
    ("seed: 0", "seed: 0\nseed: 1", 38, "", "key 'seed' is here twice, first on line 37"),
    ("seed: 0", "seed: !!python/name:os.system", 37, "", "tag 'tag:yaml.org,2002:python/name"),
    ("seed: 0", "seed: [0", 38, "", "is not valid YAML"),
    ("seed: 0", "\tseed: 0", 37, "", "is not valid YAML"),
]


@pytest.mark.parametrize(("old", "new", "line", "key", "words"), MISTAKES)
def test_every_mistake_has_one_message_with_its_place(
    old: str,
    new: str,
    line: int,
    key: str,
    words: str | None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert STUDY.count(old) == 1
    path = write(tmp_path, STUDY.replace(old, new))
    code = main(["validate", str(path)])
    captured = capsys.readouterr()
    assert not imported(tmp_path)
    if words is None:
        # These look like mistakes and are none.
        assert (code, captured.err) == (0, "")
        return
    assert code == 2
    assert captured.out == ""
    assert captured.err.count("\n") == 1, captured.err
    assert captured.err.startswith(f"{path}:{line}: {key}"), captured.err
    assert words in captured.err


def test_independent_mistakes_are_told_together(tmp_path: Path) -> None:
    text = (
        STUDY.replace("low: 16", "lo: 16")
        .replace("seed: 0", "seed: x")
        .replace("center: gelu", "center: selu")
    )
    with pytest.raises(StudyFileError) as caught:
        load(write(tmp_path, text))
    assert [problem.line for problem in caught.value.problems] == [5, 11, 37]
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ":1: is empty, expected a mapping with name, task, space"),
        (b"# only a comment\n", ":1: is empty"),
        (b"- a list\n", ":1: got ['a list'], expected a mapping with name"),
        (b"just text", ":1: got 'just text', expected a mapping"),
        (b"a: 1\nb: \xff\xfe\n", ":2: byte 8 is not UTF-8"),
        (b"\x00\x01\x02", ":1: holds the character U+0000"),
    ],
)
def test_files_that_are_no_studies(
    content: bytes, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, content)
    assert main(["validate", str(path)]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"{path}{words}")
    assert message.count("\n") == 1


def test_a_file_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path)
    for given, words in (
        (tmp_path / "studi.yaml", f"there is no such file (did you mean {str(path)!r}?)"),
        (tmp_path, "cannot be read (Is a directory), expected a YAML file"),
        (tmp_path / "no" / "where.yaml", "there is no such file"),
    ):
        assert main(["validate", str(given)]) == 2
        assert capsys.readouterr().err == f"{given}: {words}\n"


def test_a_forbidden_default_names_the_clause(tmp_path: Path) -> None:
    text = STUDY.replace("optimizer: sgd, adapter: [lora]", "optimizer: adamw, adapter: full")
    with pytest.raises(StudyFileError, match=r":29: forbidden\[0\]: the default configuration"):
        load(write(tmp_path, text))


def test_a_broken_plugin_is_told_only_to_who_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from autotune.plugins import discovery

    real = discovery.load

    def load_but_lion(record: Any) -> Any:
        return discovery.Failure("it raised") if record.name == "lion" else real(record)

    monkeypatch.setattr(discovery, "load", load_but_lion)
    load(write(tmp_path, STUDY.replace("exclude: [lion]", "exclude: []")))
    with pytest.raises(StudyFileError, match=r":15: space.optimizer.include\[0\]: .* it raised"):
        load(write(tmp_path, STUDY.replace("exclude: [lion]", "include: [lion, adamw]")))


# --- JSON Schema ----------------------------------------------------------------------------


def errors(text: str) -> list[Any]:
    validator = jsonschema.Draft202012Validator(json_schema())
    return list(validator.iter_errors(parse(text).value))


def test_the_schema_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json_schema()
    jsonschema.Draft202012Validator.check_schema(printed)


def test_the_schema_accepts_what_is_valid() -> None:
    assert errors(STUDY) == []
    for path in (ROOT / "search_spaces").glob("*.yaml"):
        assert errors(path.read_text()) == [], path
    # A resolved space, with every kind of definition that autotune writes.
    resolved = Space.from_plain({"parameters": parse(STUDY).value["space"]}).resolve(Catalogue())
    study = {**parse(STUDY).value, "space": resolved.to_plain()["parameters"]}
    assert errors(dump(study)) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("name: digits", "nane: digits"),
        ("horizon: 20", "horizon: -1"),
        ("type: integer, low: 16", "type: int, low: 16"),
        ("low: 16, ", ""),
        ("low: 16, ", "lo: 16, "),
        ("exclude: [lion]", "exclud: [lion]"),
        ("plugins: schedule", "plugins: shedule"),
        ("confidence: high", "confidence: hihg"),
        ("gradient_clip_norm: 1.0", "gradient_clip_norm: [1.0]"),
        ("kind: curve", "kind: curv"),
        ("epochs: 300", "epoch: 300"),
        ("hidden: {type: integer,", "hidden: {type: integr,"),
        ("policy: random_search", "polcy: random_search"),
        ("horizon: 20", "horizon: 20\nconstraints: mine < 5"),
    ],
)
def test_the_schema_refuses_what_is_not(old: str, new: str) -> None:
    assert STUDY.count(old) == 1
    found = errors(STUDY.replace(old, new))
    # One complaint at one place, so that editors underline that and nothing else.
    assert len(found) >= 1
    assert len({tuple(error.absolute_path) for error in found}) == 1


# --- nothing is imported that need not be ---------------------------------------------------


def modules_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_a_space_needs_numpy_alone() -> None:
    loaded = modules_after("import autotune.space; autotune.space.Space({'a': 1}).default()")
    assert "numpy" in loaded
    assert not loaded & {"pydantic", "yaml", "scipy", "optuna", "ray"}


def test_a_study_file_is_data(tmp_path: Path) -> None:
    study = load(write(tmp_path))
    assert replace(study, seed=1).seed == 1

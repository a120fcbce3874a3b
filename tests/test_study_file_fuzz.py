"""Generated bad study files: whatever is wrong, one clear message a mistake, exit code 2, never a
traceback, and never a look at the task.

Files are spoilt in two ways: a valid file's tree at one place that must be wrong then (one
mistake, so one message, at the line where it stands; more than 300 files), and its text anywhere
(which may even leave it valid, but never breaks the command; 400 more).
"""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from study_text import STUDY, imported, write

from autotune.cli import main
from autotune.space.yaml_text import dump, parse

TREE = parse(STUDY).value


def examples(count: int) -> settings:
    """The same files in every run."""
    return settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )


OPTIONAL = {"seed", "first", "search", "executor", "forbidden"}


def validate(path: Path) -> tuple[int, str, str]:
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(["validate", str(path)])
    return code, out.getvalue(), err.getvalue()


def check_complaint(path: Path, code: int, err: str) -> list[str]:
    """The messages, each of the right form."""
    assert code == 2, err
    lines = err.splitlines()
    assert lines
    for line in lines:
        match = re.match(rf"{re.escape(str(path))}(:\d+)?: (.+)", line)
        assert match, f"no place in {line!r}"
        assert len(match[2]) < 700
    assert "Traceback" not in err
    assert not imported(path.parent)
    return lines


# --- one mistake in the tree ----------------------------------------------------------------


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of everything in a tree."""
    if path:
        yield path
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, (*path, key))


def at(tree: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


EVERYWHERE = sorted(places(TREE), key=str)
MAPPINGS = [path for path in EVERYWHERE if isinstance(at(TREE, path), dict)]
GROUPS = [
    ("space",),
    ("space", "architecture"),
    ("space", "head", "options", "mlp"),
    ("space", "head", "options", "linear"),
]


def is_open(path: tuple[Any, ...]) -> bool:
    """Whether an unknown key may stand in a mapping: it would be a parameter or an option."""
    return path in GROUPS or path == ("space", "head", "options")


WRONG_TYPE = {"wrong": {"type": ["x"]}}
"""Right nowhere: no parameter, value, name, condition, or part of one."""


@examples(150)
@given(st.sampled_from(EVERYWHERE))
def test_a_value_of_the_wrong_type(
    tmp_path_factory: pytest.TempPathFactory, place: tuple[Any, ...]
) -> None:
    tree = copy.deepcopy(TREE)
    parent = at(tree, place[:-1])
    parent[place[-1]] = copy.deepcopy(WRONG_TYPE)
    path = write(tmp_path_factory.mktemp("fuzz"), dump(tree))
    code, _, err = validate(path)
    lines = check_complaint(path, code, err)
    assert len(lines) == 1, err


@examples(100)
@given(
    st.sampled_from([path for path in MAPPINGS if not is_open(path)]),
    st.from_regex(r"[a-z_]{1,12}", fullmatch=True).map(lambda name: f"q{name}"),
    st.sampled_from([None, 1, "x", [], {}]),
)
def test_an_unknown_key(
    tmp_path_factory: pytest.TempPathFactory, place: tuple[Any, ...], name: str, value: Any
) -> None:
    tree = copy.deepcopy(TREE)
    at(tree, place)[name] = value
    text = dump(tree)
    path = write(tmp_path_factory.mktemp("fuzz"), text)
    code, _, err = validate(path)
    lines = check_complaint(path, code, err)
    assert len(lines) == 1, err
    assert name in lines[0]
    line = parse(text).line((*place, name))
    assert lines[0].startswith(f"{path}:{line}: "), err


@examples(60)
@given(
    st.sampled_from([p for p in EVERYWHERE if isinstance(at(TREE, p), int | float)]),
    st.sampled_from([-1e9, 1e19, float("nan"), float("inf"), "many", True, None, [], ""]),
)
def test_a_number_that_cannot_be(
    tmp_path_factory: pytest.TempPathFactory, place: tuple[Any, ...], value: Any
) -> None:
    tree = copy.deepcopy(TREE)
    at(tree, place[:-1])[place[-1]] = value
    path = write(tmp_path_factory.mktemp("fuzz"), dump(tree))
    code, _, err = validate(path)
    if code == 0:
        # Some are right somewhere: null for a limit that is not set, a fixed value, no step.
        assert err == ""
        assert not imported(path.parent)
    else:
        assert len(check_complaint(path, code, err)) == 1, err


@examples(80)
@given(st.sampled_from(MAPPINGS), st.data())
def test_a_misspelt_key(
    tmp_path_factory: pytest.TempPathFactory, place: tuple[Any, ...], data: st.DataObject
) -> None:
    mapping = at(TREE, place)
    keys = sorted(mapping) if place else []
    if not keys or is_open(place):
        return
    key = data.draw(st.sampled_from(keys))
    index = data.draw(st.integers(0, len(key) - 1))
    misspelt = key[:index] + data.draw(st.sampled_from("qxz")) + key[index + 1 :]
    tree = copy.deepcopy(TREE)
    renamed = {misspelt if k == key else k: v for k, v in mapping.items()}
    at(tree, place[:-1])[place[-1]] = renamed
    path = write(tmp_path_factory.mktemp("fuzz"), dump(tree))
    code, _, err = validate(path)
    lines = check_complaint(path, code, err)
    assert len(lines) == 1, err


@examples(40)
@given(st.sampled_from(sorted(TREE)))
def test_a_missing_part(tmp_path_factory: pytest.TempPathFactory, key: str) -> None:
    tree = {name: value for name, value in TREE.items() if name != key}
    path = write(tmp_path_factory.mktemp("fuzz"), dump(tree))
    code, _, err = validate(path)
    if key in OPTIONAL - {"search"}:
        assert code == 0, err
    elif key != "search":
        lines = check_complaint(path, code, err)
        assert len(lines) == 1
        assert f": {key}: is missing, expected" in lines[0]


# --- anything in the text -------------------------------------------------------------------

SNIPPETS = [
    *("\t", "\n", "  ", ":", ": ", "- ", "[", "]", "{", "}", "'", '"', "#", "&a ", "*a", "!!x "),
    *("<<: ", "? ", "|\n", ">\n", "%", "@", "`", "---\n", "...\n", "\x00", "\x85", "\ufeff", "é"),
    *("null", "true", "1e400", "-", ".nan", "0x", "\\", "!!python/name:os.system ", "\u2028"),
]


@examples(400)
@given(st.data())
def test_text_spoilt_anywhere(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    text = STUDY
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        end = min(len(text), start + data.draw(st.sampled_from([0, 0, 1, 2, 10, 200])))
        snippet = data.draw(st.sampled_from(SNIPPETS) | st.text(max_size=4))
        text = text[:start] + snippet + text[end:]
    path = write(tmp_path_factory.mktemp("fuzz"), text.encode("utf-8", "surrogatepass"))
    code, _, err = validate(path)
    if code == 0:
        assert err == ""
        assert not imported(path.parent)
    else:
        check_complaint(path, code, err)


@examples(60)
@given(st.binary(max_size=300))
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = write(tmp_path_factory.mktemp("fuzz"), content)
    code, _, err = validate(path)
    assert len(check_complaint(path, code, err)) >= 1


# --- as processes ---------------------------------------------------------------------------

PROCESSES = [
    ("name: digits", "nane: digits", ":1: nane: unknown key"),
    ("low: 16", "low: 100", ":5: space.architecture.width.high: got 64"),
    ("exclude: [lion]", "exclude: [loin]", "(did you mean 'lion'?)"),
    ("optimizer: sgd,", "optimizer: sdg,", ":29: forbidden[0].optimizer"),
    ("tasks/digits.py", "tasks/digit.py", ":2: task: there is no file"),
    ("learning_rate: 1e-3", "learning_rate: 9", ":39: first[0].optimizer.learning_rate"),
    ("policy: random_search", "policy: serch", ":41: search.policy: unknown policy"),
    ("epochs: 300", "epochs: [", "is not valid YAML"),
    ("seed: 0", "seed: !!python/object/apply:os.abort []", "is not allowed"),
    ("horizon: 20", "horizon: soon", ":36: horizon: got 'soon'"),
]


@pytest.mark.parametrize(("old", "new", "words"), PROCESSES)
def test_as_a_process(tmp_path: Path, old: str, new: str, words: str) -> None:
    assert STUDY.count(old) == 1
    path = write(tmp_path, STUDY.replace(old, new))
    command = [sys.executable, "-m", "autotune", "validate", path.name]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("study.yaml:")
    assert words in done.stderr
    assert not imported(tmp_path)

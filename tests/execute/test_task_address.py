import sys
from pathlib import Path

import execute_tasks
import pytest

from autotune.execute.task_address import load_task
from autotune.train import TaskError

TASK_FILE = """
import helper_beside_the_task
from autotune.train.task import Task, task

class Mine(Task):
    def open(self, configuration, context):
        raise NotImplementedError

class Group:
    inner = Mine()

mine = Mine()
number = helper_beside_the_task.NUMBER

@task
def made():
    return Mine()

@task
def failing():
    raise OSError("no data at /data")

@task
def wrong():
    return 3
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "helper_beside_the_task.py").write_text("NUMBER = 3")
    path = tmp_path / "my task-1.py"
    path.write_text(TASK_FILE)
    yield path
    sys.modules.pop("helper_beside_the_task", None)
    sys.path[:] = [place for place in sys.path if place != str(tmp_path)]


def test_modules_and_files_are_imported(file: Path) -> None:
    assert load_task("execute_tasks:small") is execute_tasks.small
    assert isinstance(load_task("execute_tasks:marked"), execute_tasks.SmallTask)
    assert load_task("execute_tasks:Loop").trainable is execute_tasks.Loop
    mine = load_task(f"{file}:mine")
    assert load_task("my task-1.py:mine", folder=file.parent) is mine, "imported once"
    assert isinstance(load_task(f"{file}:made"), type(mine))
    assert isinstance(load_task(f"{file}:Group.inner"), type(mine))
    assert type(mine).__module__.startswith("autotune_task_my_task_1_")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("os", "expected 'package.module:object' or 'path/to/file.py:object'"),
        ("os:", "expected"),
        (":task", "expected"),
        ("os:abort()", "expected"),
        ("os:abort", "is no task: expected a TorchTask"),
        ("os:getcwd", "is no task"),
        ("os:path", "is no task"),
        ("unittest.mock:call", "is no task"),
        ("builtins:exit", "is no task"),
        ("pathlib:Path", "is no task"),
        ("no_such_module_here:task", "there is no module 'no_such_module_here'"),
        ("execute_tasks:smal", "has no 'smal'; did you mean 'small'?"),
        ("execute_tasks:unmarked", "mark the function with @autotune.task"),
        ("execute_tasks:not_a_task", "is no task"),
        ("execute_tasks:marked_wrongly", "3.14159"),
        ("autotune.train.task:Task", "is no task"),
        ("nowhere.py:task", "there is no file"),
    ],
)
def test_everything_else_is_refused(address: str, message: str) -> None:
    with pytest.raises(TaskError) as caught:
        load_task(address)
    assert message in str(caught.value)
    assert address in str(caught.value)


def test_failures_of_the_file_are_told_with_their_cause(file: Path) -> None:
    with pytest.raises(TaskError, match="making it failed: OSError: no data at /data") as caught:
        load_task(f"{file}:failing")
    assert isinstance(caught.value.__cause__, OSError)
    with pytest.raises(TaskError, match="3 is no task"):
        load_task(f"{file}:wrong")
    with pytest.raises(TaskError, match="3 is no task"):
        load_task(f"{file}:number")
    for text, said in [
        ("import a_missing_library", "ModuleNotFoundError: No module named 'a_missing_library'"),
        ("x = = 1", r"SyntaxError.*line 1"),
        ("raise SystemExit(4)", "SystemExit: 4"),
        ("1 / 0", "ZeroDivisionError"),
    ]:
        broken = file.with_name("broken.py")
        broken.write_text(text)
        for _ in range(2):
            with pytest.raises(TaskError, match=said):
                load_task(f"{broken}:task")


def test_a_missing_dependency_of_a_module_is_not_a_missing_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "needs_more.py").write_text("import a_missing_library")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(TaskError, match="importing needs_more failed: ModuleNotFoundError"):
        load_task("needs_more:task")
    (tmp_path / "needs_more.py").write_text("")
    with pytest.raises(TaskError, match=r"there is no module 'needs_more\.part'"):
        load_task("needs_more.part:task")

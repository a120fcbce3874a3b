"""The wheel holds exactly the modules of the tree, and what they need to be found."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {"autotune": "autotune", "autotune_plugins": "plugins"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def files_in_tree() -> set[str]:
    """Paths inside the wheel of everything that the tree holds: modules and their data."""
    found = set()
    for package, folder in FOLDERS.items():
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                found.add(f"{package}/{path.relative_to(ROOT / folder).as_posix()}")
    return found


def modules_in_tree() -> set[str]:
    return {path for path in files_in_tree() if path.endswith(".py")}


def test_every_folder_of_modules_is_a_listed_package() -> None:
    in_tree = {str(Path(path).parent).replace("/", ".") for path in modules_in_tree()}
    assert sorted(PROJECT["tool"]["setuptools"]["packages"]) == sorted(in_tree)


def test_every_package_has_an_init() -> None:
    in_tree = modules_in_tree()
    for package in PROJECT["tool"]["setuptools"]["packages"]:
        assert f"{package.replace('.', '/')}/__init__.py" in in_tree


def test_every_entry_point_is_in_the_tree() -> None:
    in_tree = modules_in_tree()
    groups = PROJECT["project"]["entry-points"]
    assert groups
    for entries in groups.values():
        for name, value in entries.items():
            module, _, attribute = value.partition(":")
            assert f"{module.replace('.', '/')}.py" in in_tree, name
            assert attribute


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a clean export of the tree, in which an older build has left its traces."""
    export = tmp_path_factory.mktemp("export")
    for name in ["pyproject.toml", "setup.py", "README.md"]:
        shutil.copy(ROOT / name, export)
    for folder in FOLDERS.values():
        shutil.copytree(
            ROOT / folder, export / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    stale = export / "build" / "lib" / "autotune"
    stale.mkdir(parents=True)
    (stale / "deleted_long_ago.py").write_text("raise RuntimeError\n")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    subprocess.run(
        [*command, "--no-build-isolation", "--wheel-dir", export / "wheels", export],
        check=True,
        timeout=300,
    )
    (built,) = (export / "wheels").glob("*.whl")
    return built


def test_the_wheel_holds_exactly_the_tree(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == files_in_tree()


def test_the_wheel_says_how_plugins_are_found(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (path,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        text = archive.read(path).decode()
    for group, entries in PROJECT["project"]["entry-points"].items():
        assert f"[{group}]" in text
        for name, value in entries.items():
            assert f"{name} = {value}" in text
    assert "autotune = autotune.cli:main" in text

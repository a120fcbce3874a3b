"""Who may import whom (the design's rules), read from the source of every module: imports
inside functions and for type checkers count as well."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ENGINE = ROOT / "autotune"
BUNDLED = ROOT / "plugins"

LOWER = {
    "space": set(),
    "pareto": set(),
    "plugins": {"space"},
    "plugins.conformance": {"space", "plugins", "train"},
    "decide": {"space", "pareto", "plugins"},
    "pfn": {"space", "plugins"},
    "train": {"space", "plugins"},
    "execute": {"space", "plugins", "train"},
    "study_file": {"space", "plugins"},
    "record": {"space", "plugins"},
}
"""What each part of the lower floors may import, beside itself."""

JOINING = {
    "study",
    "ahead",
    "jobs",
    "keeping",
    "leases",
    "begin",
    "checks",
    "declared_costs",
    "result",
    "header",
    "surroundings",
    "task_faults",
    "warm_start",
    "winner",
}
"""They join the lower floors, and may import all of those and each other."""

TOP = {
    "report",
    "export",
    "integrations",
    "api",
    "asked",
    "extension",
    "cli",
    "commands",
    "__init__",
    "__main__",
}
"""They sit on everything."""

FORBIDDEN_NAMES = {
    "sgd",
    "adamw",
    "lion",
    "adabelief",
    "cosine",
    "linear_decay",
    "warmup_stable_decay",
    "lora",
    "pissa",
    "series_bottleneck",
    "batch_norm_statistics",
    "tent",
    "lame",
}
"""The engine knows no method by name ("none", "full" and "constant" are words too)."""


def part_of(module: str) -> str:
    """`autotune.train.loop` -> `train`; the conformance kit is a part of its own."""
    parts = module.split(".")
    if parts[1:3] == ["plugins", "conformance"]:
        return "plugins.conformance"
    return parts[1] if len(parts) > 1 else "__init__"


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path, tree: ast.AST) -> Iterator[str]:
    """Dotted names of everything a module imports, anywhere in it."""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package[: len(package) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            # `from autotune import study` imports a module, `from autotune.space import Float`
            # a name; as parts both are right.
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            function = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            function = node.func.id if isinstance(node.func, ast.Name) else function
            name = node.args[0]
            if function in {"import_module", "__import__"} and isinstance(name, ast.Constant):
                yield str(name.value)


def sources(folder: Path) -> list[Path]:
    found = sorted(folder.rglob("*.py"))
    assert found, f"no modules under {folder}"
    return found


def test_every_part_has_a_place() -> None:
    parts = {part_of(module_name(path)) for path in sources(ENGINE)}
    homeless = parts - set(LOWER) - JOINING - TOP
    assert not homeless, f"say in this file what {sorted(homeless)} may import"


def allowed(part: str) -> set[str]:
    if part in LOWER:
        return LOWER[part] | {part}
    if part in JOINING:
        return set(LOWER) | JOINING
    return set(LOWER) | JOINING | TOP


@pytest.mark.parametrize("path", sources(ENGINE), ids=module_name)
def test_nothing_imports_upward(path: Path) -> None:
    tree = ast.parse(path.read_text(), str(path))
    part = part_of(module_name(path))
    for name in imported(path, tree):
        assert name.split(".")[0] != "autotune_plugins", f"{path}: {name}"
        if name.split(".")[0] == "autotune":
            if module_name(path) == "autotune.plugins" and "conformance" in name:
                continue  # `autotune.plugins.check`, loaded when asked for
            assert part_of(name) in allowed(part), f"{path}: {part} must not import {name}"


@pytest.mark.parametrize("path", sources(BUNDLED), ids=lambda path: path.stem)
def test_bundled_plugins_know_only_the_contracts(path: Path) -> None:
    for name in imported(path, ast.parse(path.read_text(), str(path))):
        top, *rest = name.split(".")
        if top == "autotune":
            assert rest[:1] in (["plugins"], ["space"]), f"{path}: {name}"


def docstrings(tree: ast.AST) -> set[int]:
    """The nodes, by id, that are string statements: docstrings."""
    return {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }


@pytest.mark.parametrize("path", sources(ENGINE), ids=module_name)
def test_the_engine_names_no_method(path: Path) -> None:
    tree = ast.parse(path.read_text(), str(path))
    harmless = docstrings(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and id(node) not in harmless:
            assert node.value not in FORBIDDEN_NAMES, f"{path}:{node.lineno}: {node.value!r}"


@pytest.mark.parametrize(
    ("source", "place", "found"),
    [
        ("def f():\n    from autotune import study", "train/loop.py", "autotune.study"),
        ("from ..execute import store", "train/loop.py", "autotune.execute.store"),
        ("from . import task", "train/__init__.py", "autotune.train.task"),
        ("import importlib\nimportlib.import_module('autotune.cli')", "pareto.py", "autotune.cli"),
    ],
)
def test_the_reader_of_imports_sees(source: str, place: str, found: str) -> None:
    assert found in list(imported(ENGINE / place, ast.parse(source)))

"""Copies the definitions that some names need, and nothing else, out of importable modules.

Given roots such as (module of a plugin, its class), it follows names through the sources of the
packages that are to be left behind, keeps of each module the statements that are reached, and
rewrites imports among them. It knows no plugin: what a third party wrote is copied the same way.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from autotune.header import StudyError
from autotune.plugins import Plugin

_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_DESCRIBING = ("space", "supports")
"""Methods by which a plugin describes itself to a search; training needs none of them."""


@dataclass
class _Module:
    """A module's source and which of its top-level statements are wanted."""

    name: str
    source: str
    package: str
    wanted: set[int] = field(default_factory=set)
    imports: dict[str, _Import] = field(default_factory=dict)

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.source)

    @cached_property
    def lines(self) -> list[str]:
        return self.source.splitlines()

    @cached_property
    def postponed(self) -> bool:
        """Whether annotations are never evaluated."""
        return any(
            isinstance(node, ast.ImportFrom) and node.module == "__future__"
            for node in self.tree.body
        )

    @cached_property
    def bindings(self) -> dict[str, list[int]]:
        """Which statements give a name its value."""
        found: dict[str, list[int]] = {}
        for index, node in enumerate(self.tree.body):
            if not isinstance(node, ast.Import | ast.ImportFrom) and not _for_types_only(node):
                for name in _bound(node):
                    found.setdefault(name, []).append(index)
        return found

    @cached_property
    def imported(self) -> dict[str, _Import]:
        """What the module's own imports bind."""
        found = {}
        for node in self.tree.body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                for item in _imports(node, self.package):
                    if item.module != "__future__":
                        found[item.bound] = item
        return found


@dataclass(frozen=True)
class _Import:
    """``from module import name as bound``, or ``import module as bound`` without a name."""

    module: str
    name: str | None
    bound: str


def copied(
    roots: Iterable[tuple[str, str]],
    inside: frozenset[str],
    package: str,
    replaced: Mapping[tuple[str, str], str],
) -> tuple[dict[str, str], dict[str, str]]:
    """Sources that define the roots without the packages they come from.

    Args:
        roots: (module, name) of what is wanted.
        inside: top-level packages whose code is copied; everything else stays an import.
        package: name of the package that the copies will form.
        replaced: other source for single definitions.

    Returns:
        Source by file name, and file name (without ``.py``) by module.

    Raises:
        StudyError: a module is not written in Python, or in a way that cannot be followed.
    """
    copier = _Copier(inside, package, replaced)
    for module, name in roots:
        copier.want(module, name)
    files = {module: copier.file(module) for module in copier.modules}
    return {f"{files[m.name]}.py": copier.text(m) for m in copier.modules.values()}, files


class _Copier:
    def __init__(
        self, inside: frozenset[str], package: str, replaced: Mapping[tuple[str, str], str]
    ) -> None:
        self.inside = inside
        self.package = package
        self.replaced = replaced
        self.modules: dict[str, _Module] = {}
        self._files: dict[str, str] = {}

    def is_inside(self, module: str) -> bool:
        return module.partition(".")[0] in self.inside

    def module(self, name: str) -> _Module:
        if name not in self.modules:
            spec = importlib.util.find_spec(name)
            if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
                raise StudyError(
                    f"the module {name!r} is not written in Python, so it cannot be copied into "
                    f"an export"
                )
            source = Path(spec.origin).read_text(encoding="utf-8")
            is_package = spec.submodule_search_locations is not None
            package = name if is_package else name.rpartition(".")[0]
            self.modules[name] = _Module(name, source, package)
            for index, node in enumerate(self.modules[name].tree.body):
                if _acts(node):
                    self._take(self.modules[name], index)
        return self.modules[name]

    def file(self, module: str) -> str:
        if module not in self._files:
            short = module.removeprefix("autotune_plugins.").removeprefix("autotune.")
            name = short.replace(".", "_").lstrip("_")
            while name in self._files.values():
                name += "_"
            self._files[module] = name
        return self._files[module]

    def want(self, module_name: str, name: str) -> None:
        """Keep what defines `name` in a module, and all that it needs."""
        module = self.module(module_name)
        if name in module.bindings:
            for index in module.bindings[name]:
                self._take(module, index)
        elif name in module.imported:
            if name not in module.imports:
                module.imports[name] = module.imported[name]
                self._follow(module.imported[name])
        elif name not in ("__name__", "__file__", "__doc__"):
            value = getattr(importlib.import_module(module_name), name, None)
            home = getattr(value, "__module__", None)
            if home is None or home == module_name or not self.is_inside(home):
                raise StudyError(
                    f"{module_name} makes {name!r} in a way that an export cannot follow"
                )
            module.imports[name] = _Import(home, name, name)
            self.want(home, name)

    def _follow(self, item: _Import) -> None:
        if not self.is_inside(item.module):
            return
        if item.name is None:
            raise StudyError(
                f"an export cannot follow 'import {item.module}'; "
                f"expected 'from {item.module} import ...'"
            )
        if item.name == "*":
            raise StudyError(f"an export cannot follow 'from {item.module} import *'")
        if self._is_module(item):
            whole = self.module(f"{item.module}.{item.name}")
            for name in [*whole.bindings, *whole.imported]:
                self.want(whole.name, name)
        else:
            self.want(item.module, item.name)

    def _is_module(self, item: _Import) -> bool:
        """Whether ``from module import name`` imports a module of that package."""
        try:
            spec = importlib.util.find_spec(item.module)
            if spec is None or spec.submodule_search_locations is None:
                return False
            return importlib.util.find_spec(f"{item.module}.{item.name}") is not None
        except ModuleNotFoundError:
            return False

    def _take(self, module: _Module, index: int) -> None:
        if index in module.wanted:
            return
        module.wanted.add(index)
        node: ast.AST = module.tree.body[index]
        name = getattr(node, "name", None)
        if (module.name, name) in self.replaced:
            node = ast.parse(self.replaced[module.name, str(name)])
        dropped = self._dropped(module, node)
        needed, mentioned = _names(node, module.postponed, dropped)
        for used in sorted(needed):
            if used in module.bindings or used in module.imported:
                self.want(module.name, used)
        for used in sorted(mentioned - needed):
            # Names that only annotations use: outside imports cost nothing and keep them true.
            item = module.imported.get(used)
            if item is not None and not self.is_inside(item.module):
                self.want(module.name, used)
        for inner in ast.walk(node):
            if isinstance(inner, ast.Import | ast.ImportFrom) and not _within(inner, dropped):
                for item in _imports(inner, module.package):
                    self._follow(item)

    def _dropped(self, module: _Module, node: ast.AST) -> list[ast.AST]:
        """A plugin's methods that describe it, unless its other code uses them."""
        if not isinstance(node, ast.ClassDef):
            return []
        found = getattr(importlib.import_module(module.name), node.name, None)
        if not (isinstance(found, type) and issubclass(found, Plugin)):
            return []
        candidates = [
            part
            for part in node.body
            if isinstance(part, ast.FunctionDef) and part.name in _DESCRIBING
        ]
        used = {
            inner.attr
            for inner in ast.walk(node)
            if isinstance(inner, ast.Attribute) and not _within(inner, candidates)
        }
        return [part for part in candidates if part.name not in used]

    # --- writing ----------------------------------------------------------------------------

    def text(self, module: _Module) -> str:
        """The module's copy."""
        parts = [f"# From {module.name}, unchanged but for what is left out.\n"]
        if module.postponed:
            parts.append("from __future__ import annotations\n")
        within = [item for item in module.imports.values() if self.is_inside(item.module)]
        outside = [item for item in module.imports.values() if not self.is_inside(item.module)]
        parts += [
            "\n".join(self._import_lines(group)) + "\n" for group in (outside, within) if group
        ]
        previous = False
        for index, node in enumerate(module.tree.body):
            if index in module.wanted:
                space = "\n" if isinstance(node, _DEFINITIONS) else ""
                parts.append(space + self._statement(module, node))
                previous = True
            else:
                if previous and _is_text(node):
                    parts[-1] = parts[-1].rstrip("\n") + "\n" + _source(module, node)
                previous = False
        return "\n".join(parts)

    def _import_lines(self, items: Iterable[_Import]) -> list[str]:
        """Import statements, those from one module as one."""
        names: dict[str, list[str]] = {}
        for item in items:
            before, found, name = self._import_line(item).partition(" import ")
            names.setdefault(before, []).extend([name] if found else [])
        ordered = sorted(names.items(), key=lambda entry: (bool(entry[1]), entry[0]))
        return [
            f"{before} import {', '.join(sorted(found))}" if found else before
            for before, found in ordered
        ]

    def _import_line(self, item: _Import) -> str:
        if item.name is None:
            top = item.module.partition(".")[0]
            return f"import {item.module}" + ("" if item.bound == top else f" as {item.bound}")
        renamed = "" if item.bound == item.name else f" as {item.bound}"
        if not self.is_inside(item.module):
            return f"from {item.module} import {item.name}{renamed}"
        if self._is_module(item):
            file = self.file(f"{item.module}.{item.name}")
            renamed = "" if item.bound == file else f" as {item.bound}"
            return f"from {self.package} import {file}{renamed}"
        return f"from {self.package}.{self.file(item.module)} import {item.name}{renamed}"

    def _statement(self, module: _Module, node: ast.stmt) -> str:
        replacement = self.replaced.get((module.name, str(getattr(node, "name", None))))
        if replacement is not None:
            return replacement
        first, last = _span(module, node)
        lines: list[str | None] = list(module.lines[first:last])
        dropped = self._dropped(module, node)
        for part in dropped:
            begin, end = _span(module, part)
            while end - first < len(lines) and lines[end - first] == "":
                end += 1
            lines[begin - first : end - first] = [None] * (end - begin)
        for inner in ast.walk(node):
            if isinstance(inner, ast.Import | ast.ImportFrom) and not _within(inner, dropped):
                items = list(_imports(inner, module.package))
                if any(self.is_inside(item.module) for item in items):
                    begin, end = inner.lineno - 1 - first, (inner.end_lineno or 0) - first
                    margin = " " * inner.col_offset
                    new = "\n".join(margin + self._import_line(item) for item in items)
                    lines[begin:end] = [new, *[None] * (end - begin - 1)]
        return "\n".join(line for line in lines if line is not None).rstrip() + "\n"


def _imports(node: ast.Import | ast.ImportFrom, package: str) -> Iterator[_Import]:
    for alias in node.names:
        if isinstance(node, ast.Import):
            yield _Import(alias.name, None, alias.asname or alias.name.partition(".")[0])
        else:
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            yield _Import(base, alias.name, alias.asname or alias.name)


def _bound(node: ast.AST) -> Iterator[str]:
    """Names that a top-level statement binds, inside its branches too."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
        return
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id
    if isinstance(node, ast.alias):
        yield node.asname or node.name.partition(".")[0]
    for child in ast.iter_child_nodes(node):
        yield from _bound(child)


def _names(node: ast.AST, postponed: bool, dropped: Iterable[ast.AST]) -> tuple[set[str], set[str]]:
    """Names that running a statement needs, and those that its annotations mention."""
    needed: set[str] = set()
    mentioned: set[str] = set()
    left_out = {id(part) for part in dropped}

    def visit(part: ast.AST, annotation: bool) -> None:
        if id(part) in left_out:
            return
        if isinstance(part, ast.Name):
            (mentioned if annotation else needed).add(part.id)
        for name, value in ast.iter_fields(part):
            within = annotation or (postponed and name in ("annotation", "returns"))
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    visit(child, within)

    visit(node, False)
    return needed, mentioned


def _within(node: ast.AST, parts: Iterable[ast.AST]) -> bool:
    return any(node is inner for part in parts for inner in ast.walk(part))


def _for_types_only(node: ast.AST) -> bool:
    if not isinstance(node, ast.If):
        return False
    test = node.test
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def _is_text(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _acts(node: ast.AST) -> bool:
    """Whether a statement does something without binding a name: such as a registration."""
    if isinstance(node, ast.Import | ast.ImportFrom) or _is_text(node) or _for_types_only(node):
        return False
    return not any(True for _ in _bound(node))


def _span(module: _Module, node: ast.AST) -> tuple[int, int]:
    """The lines of a definition, its decorators and the comments right above it included."""
    assert isinstance(node, ast.stmt)
    decorators = getattr(node, "decorator_list", [])
    first = min([node.lineno, *[decorator.lineno for decorator in decorators]]) - 1
    while first and module.lines[first - 1].strip().startswith("#"):
        first -= 1
    return first, node.end_lineno or node.lineno


def _source(module: _Module, node: ast.AST) -> str:
    first, last = _span(module, node)
    return "\n".join(module.lines[first:last]) + "\n"

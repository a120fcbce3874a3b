"""Distributions made on the spot, as pip leaves them behind."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from autotune.plugins import discovery

Install = Callable[..., None]

HEALTHY = """
from autotune.plugins import Optimizer
from autotune.space import Float, Space
import torch

class Healthy(Optimizer):
    name = {name!r}
    summary = "Plain descent."
    reference = "Cauchy 1847"

    @classmethod
    def space(cls):
        return Space({{"learning_rate": Float(1e-4, 1.0, log=True, default=0.1)}})

    def build(self, named_parameters):
        return torch.optim.SGD([p for _, p in named_parameters], lr=0.1)
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """install(distribution, {name: source}, kind group, version): as pip leaves it behind."""
    monkeypatch.syspath_prepend(str(tmp_path))
    modules: list[str] = []
    discovery._load.cache_clear()

    def install(
        distribution: str,
        plugins: dict[str, str],
        group: str = "autotune.optimizers",
        version: str = "1.0",
    ) -> None:
        safe = distribution.replace("-", "_")
        info = tmp_path / f"{safe}-{version}.dist-info"
        info.mkdir()
        metadata = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
        (info / "METADATA").write_text(metadata)
        lines = [f"[{group}]"]
        for name, source in plugins.items():
            module = f"{safe}_{name}".replace("-", "_")
            modules.append(module)
            (tmp_path / f"{module}.py").write_text(source)
            lines.append(f"{name} = {module}:Healthy")
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n")

    yield install
    for module in modules:
        sys.modules.pop(module, None)

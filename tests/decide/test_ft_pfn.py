from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from autotune.decide.forecasters import ft_pfn
from autotune.decide.scale import Scale
from autotune.plugins.base import PluginError


@pytest.fixture
def _package(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the package were installed; nothing of it is imported before the weights are read."""
    found = importlib.util.find_spec

    def find(name: str, *rest: Any) -> Any:
        return found("json") if name == "ifbo" else found(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", find)


def test_without_the_package_it_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PluginError, match="pip install ifbo"):
        ft_pfn.FTPFN()


@pytest.mark.usefixtures("_package")
def test_without_weights_it_says_how_to_convert_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ft_pfn.WEIGHTS, raising=False)
    with pytest.raises(PluginError, match="not downloaded"):
        ft_pfn.FTPFN()


@pytest.mark.usefixtures("_package")
def test_a_pickle_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(2)}, tmp_path / "weights.pt")
    monkeypatch.setenv(ft_pfn.WEIGHTS, str(tmp_path / "weights.pt"))
    with pytest.raises(PluginError, match="pickles are not loaded"):
        ft_pfn.FTPFN()


@pytest.mark.usefixtures("_package")
def test_other_tensors_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / "weights.safetensors")
    monkeypatch.setenv(ft_pfn.WEIGHTS, str(tmp_path / "weights.safetensors"))
    with pytest.raises(PluginError, match=r"criterion\.borders"):
        ft_pfn.FTPFN()


def test_bars_are_one_distribution() -> None:
    generator = np.random.default_rng(0)
    borders = np.sort(generator.random(21))
    forecast = ft_pfn.BarForecast(
        Scale(-1.0, 2.0), borders, generator.dirichlet(np.ones(20), size=3), None
    )
    for probability in (0.05, 0.4, 0.95):
        quantile = forecast.quantile(probability)
        assert forecast.probability_below(quantile) == pytest.approx([probability] * 3)
        density = np.exp(forecast.log_density(quantile))
        rise = forecast.probability_below(quantile + 1e-7)
        rise = rise - forecast.probability_below(quantile - 1e-7)
        assert density == pytest.approx(rise / 2e-7, rel=1e-4)
    edges = np.linspace(borders[0], borders[-1], 20001)
    z = 0.5 * (edges[1:] + edges[:-1])
    values = forecast._scale.restore(z)
    mass = [np.diff([forecast.probability_below(v)[0] for v in forecast._scale.restore(edges)])]
    assert forecast.mean()[0] == pytest.approx(float((mass[0] * values).sum()), abs=1e-3)

"""The bank of curve shapes that forecasts are mixed from.

A shape g falls from g(0) = 1 to g(1) = 0 over the share x of the horizon; a curve is
``start * g(x) + end * (1 - g(x))``, so a shape says when a trial gets from its start to its end,
not how far. Families: power, exponential, logarithmic and Hill (Domhan et al. 2015, IJCAI, table
1), each as it is and with tails that turn back after a minimum (overfitting, collapse).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from autotune.plugins.search import FloatArray

_TURNS = (0.15, 0.35, 0.6)
_RETURNS = (0.08, 0.3)


@dataclass(frozen=True)
class Bank:
    """Shapes on a grid of cells.

    Args:
        values: g of every shape at the end of every cell, shape (shapes, cells).
        weight: prior probability of every shape, shape (shapes,).
    """

    values: FloatArray
    weight: FloatArray


def _families(x: FloatArray) -> dict[str, list[FloatArray]]:
    """Falling functions of x, 1 at 0, shape (cells,) each, by family."""
    power = [
        (1 + x / scale) ** -exponent
        for scale in np.geomspace(0.003, 1.0, 7)
        for exponent in (0.25, 0.5, 1.0, 2.0)
    ]
    exponential = [
        np.exp(-((x / scale) ** exponent))
        for scale in np.geomspace(0.01, 2.0, 9)
        for exponent in (0.5, 1.0, 1.5)
    ]
    logarithmic = [
        1 - np.log1p(x / scale) / np.log1p(1 / scale) for scale in np.geomspace(3e-4, 3.0, 9)
    ]
    hill = [
        1 / (1 + (x / scale) ** exponent)
        for scale in np.geomspace(0.02, 1.0, 8)
        for exponent in (1.0, 2.0, 4.0)
    ]
    return {"power": power, "exponential": exponential, "logarithmic": logarithmic, "hill": hill}


@lru_cache(maxsize=16)
def bank(cells: int) -> Bank:
    """All shapes, at ``x = 1 / cells, ..., 1``. Families are equally likely; three quarters of
    the prior are without a tail."""
    x = np.arange(cells + 1) / cells
    values, weights = [], []
    for members in _families(x).values():
        for member in members:
            fallen = (member - member[-1]) / (member[0] - member[-1])
            values.append(fallen)
            weights.append(0.75 / len(members))
            for turn in _TURNS:
                for back in _RETURNS:
                    tailed = fallen + back * np.clip(x - turn, 0, None) / (1 - turn)
                    values.append((tailed - tailed[-1]) / (tailed[0] - tailed[-1]))
                    weights.append(0.25 / len(members) / len(_TURNS) / len(_RETURNS))
    weight = np.array(weights)
    return Bank(np.array(values)[:, 1:], weight / weight.sum())

"""What the ifBO paper measured: table 1 of arXiv 2404.16795, from its authors' notebook.

Log-likelihood and mean squared error are medians over tasks and 100 contexts each; seconds, of
training and forecasting on one CPU, are the mean of the three suites' medians.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Figures:
    """One cell of the table."""

    log_likelihood: float
    squared_error: float
    seconds: float


_SECONDS = {
    400: (17.686, 16.860, 0.225),
    800: (33.480, 64.809, 0.541),
    1000: (41.956, 59.949, 0.719),
    1400: (56.576, 112.168, 1.130),
    1800: (73.435, 166.491, 1.715),
}
"""Of DPL, DyHPO and FT-PFN, by number of observations."""

_SUITES = {
    "lcbench_surrogate": {
        400: ((-14.577, 0.007), (-0.481, 0.042), (1.876, 0.005)),
        800: ((-13.291, 0.007), (-0.426, 0.031), (2.044, 0.004)),
        1000: ((-11.983, 0.007), (-0.368, 0.012), (2.118, 0.004)),
        1400: ((-11.333, 0.007), (-0.361, 0.011), (2.137, 0.003)),
        1800: ((-9.182, 0.007), (-0.365, 0.009), (2.199, 0.003)),
    },
    "taskset": {
        400: ((-26.011, 0.005), (-0.465, 0.009), (2.934, 0.004)),
        800: ((-21.779, 0.005), (-0.419, 0.008), (2.975, 0.004)),
        1000: ((-20.350, 0.004), (-0.381, 0.008), (3.016, 0.004)),
        1400: ((-17.760, 0.004), (-0.374, 0.008), (3.042, 0.004)),
        1800: ((-13.712, 0.004), (-0.381, 0.008), (3.057, 0.004)),
    },
}


def of(suite: str, observations: int) -> dict[str, Figures]:
    """The published figures by surrogate; empty where the paper has none. LCBench's stand beside
    our surrogate tables of it."""
    cells = _SUITES.get(suite, {}).get(observations, ())
    return {
        name: Figures(likelihood, error, seconds)
        for name, (likelihood, error), seconds in zip(
            ("DPL", "DyHPO", "FT-PFN"), cells, _SECONDS.get(observations, ()), strict=False
        )
    }

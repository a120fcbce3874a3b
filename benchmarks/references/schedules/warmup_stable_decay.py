"""Warm-up, stable, decay."""

import math

from autotune.plugins import Progress
from references.curves import pointwise, share, warmup
from references.record import Hyperparameters, Schedule


def factor(h: Hyperparameters, progress: Progress) -> float:
    """Eq. 1 of arXiv 2405.18392: constant, then f(n, N, N_decay) over the last share. A warm-up
    that is longer than the constant phase goes on until it meets the decay."""
    horizon = progress.horizon_samples
    x = share(progress, (1 - h["decay_fraction"]) * horizon, horizon)
    left = {
        "linear": 1 - x,
        "1-sqrt": 1 - math.sqrt(x),
        "cosine": (1 + math.cos(math.pi * x)) / 2,
        "1-square": 1 - x**2,
    }[h["decay_shape"]]
    low = h["final_factor"]
    return min(warmup(progress, h["warmup_samples"]), low + (1 - low) * left)


REFERENCE = Schedule(
    source="Hägele et al. 2024 (arXiv 2405.18392), eq. 1 and section 4 (1-sqrt)",
    controls=pointwise(factor),
    differences="Hägele et al. are followed in shapes, default shape and length of the decay; "
    "MiniCPM decays exponentially over the last tenth. Where warm-up and decay overlap, which "
    "they leave open, the lower factor holds.",
    settings={"warmup_samples": 37},
)

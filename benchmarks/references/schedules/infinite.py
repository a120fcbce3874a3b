"""The infinite schedule: warm-up, cooldown, constant, anneal."""

import math

from autotune.plugins import Progress
from references.curves import pointwise, share, warmup
from references.record import Hyperparameters, Schedule


def factor(h: Hyperparameters, progress: Progress) -> float:
    """The four phases of arXiv 2403.08763, section 7.4, relative to the maximal rate. The inverse
    square root 1/sqrt(1 + a x) has the steepness a with which it ends at the constant rate."""
    constant, begin = h["constant_factor"], h["warmup_samples"]
    x = share(progress, begin, begin + h["cooldown_samples"])
    rate = {
        "cosine": constant + (1 - constant) / 2 * (1 + math.cos(math.pi * x)),
        "linear": 1 + (constant - 1) * x,
        "inverse_square_root": 1 / math.sqrt(1 + (1 / constant**2 - 1) * x),
    }[h["cooldown_shape"]]
    if h["anneal"]["name"] == "exponential":
        horizon = progress.horizon_samples
        y = share(progress, (1 - h["anneal"]["fraction"]) * horizon, horizon)
        rate *= (h["anneal"]["final_factor"] / rate) ** y if y > 0 else 1.0
    return warmup(progress, begin) * rate


REFERENCE = Schedule(
    source="Ibrahim et al. 2024 (arXiv 2403.08763), section 7.4; Singh et al. 2025 "
    "(arXiv 2503.02844), section 3",
    controls=pointwise(factor),
    differences="The papers' inverse square root has a steepness to choose and is stretched to "
    "meet the constant rate; here the steepness is the one that needs no stretching. The rest is "
    "theirs.",
    settings={"warmup_samples": 37, "cooldown_samples": 120},
)

"""One cycle, in the form of torch's OneCycleLR."""

import math
from itertools import pairwise

from autotune.plugins import Progress
from references.curves import pointwise
from references.record import Hyperparameters, Schedule


def factor(h: Hyperparameters, progress: Progress) -> float:
    """Piecewise between the rates that OneCycleLR names, with the share of the horizon for its
    step number."""
    low = 1 / h["initial_division"]
    last = low / h["final_division"]
    rise = h["rising_fraction"]
    if h["phases"] == 2:
        knots = [(0.0, low), (rise, 1.0), (1.0, last)]
    else:
        knots = [(0.0, low), (rise, 1.0), (2 * rise, low), (1.0, last)]
    x = progress.samples / progress.horizon_samples
    for (begin, first), (end, second) in pairwise(knots):
        if x <= end:
            share = (x - begin) / (end - begin)
            if h["shape"] == "cosine":
                share = (1 - math.cos(math.pi * share)) / 2
            return first + (second - first) * share
    return last


REFERENCE = Schedule(
    source="Smith & Topin 2018 (arXiv 1708.07120), section 3, as torch's OneCycleLR states it",
    controls=pointwise(factor),
    differences="The paper's cycle has two equal legs, then falls far below its start in a short "
    "third phase (phases=3); torch's default folds that fall into the second leg (phases=2). Both "
    "are offered, with a share for the rise, as in torch. torch reaches peak and end one step "
    "earlier, since it counts T - 1 steps from the first to the last; here they stand at their "
    "shares of the horizon.",
)

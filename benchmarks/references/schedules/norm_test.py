"""The norm test and its kin: batch sizes that grow with the gradients' variance."""

import math
from collections.abc import Sequence

from autotune.plugins import Control, Progress, Signals
from references.curves import share, warmup
from references.record import Hyperparameters, Schedule

MEASURED = 128


def wanted(test: Hyperparameters, s: Signals) -> float:
    """The batch size with which the test just holds: eq. 5 of arXiv 2402.11215 (norm), eqs. 2.4
    and 3.5 of arXiv 1710.11258 (inner product, orthogonality), the norm test by coordinates."""
    square = s.gradient_norm**2
    if test["name"] == "norm":
        return s.per_sample_gradient_variance / (test["eta"] ** 2 * square)
    if test["name"] == "coordinate_wise":
        return s.coordinate_variance_ratio / test["eta"] ** 2
    sizes = {}
    if test["name"] in ("inner_product", "augmented"):
        sizes["along"] = s.inner_product_variance / (test["theta"] ** 2 * square**2)
    if test["name"] in ("orthogonality", "augmented"):
        sizes["across"] = s.orthogonal_variance / (test["nu"] ** 2 * square)
    return max(sizes.values())


def controls(
    h: Hyperparameters, progresses: Sequence[Progress], signals: Sequence[Signals]
) -> list[Control]:
    """The size never falls, is tested every `interval` steps and stays below its limit."""
    size, asked, found = progresses[0].batch_size, False, []
    for progress, signal in zip(progresses, signals, strict=True):
        if asked:
            limit = h["largest_batch_size"]
            size = max(size, min(limit, math.ceil(wanted(h["test"], signal))))
        asked = progress.steps % h["interval"] == 0
        x = share(progress, 0, progress.horizon_samples)
        left = {"none": 1.0, "linear": 1 - x, "cosine": (1 + math.cos(math.pi * x)) / 2}
        found.append(
            Control(
                factor=warmup(progress, h["warmup_samples"]) * left[h["decay"]],
                batch_size=size,
                measured_samples=MEASURED if asked else 0,
            )
        )
    return found


REFERENCE = Schedule(
    source="Lau, Liu, Kolar 2024 (arXiv 2402.11215), eqs. 5 and 8; Bollapragada, Byrd, Nocedal "
    "2018 (arXiv 1710.11258), eqs. 2.4 and 3.5",
    controls=controls,
    settings={"warmup_samples": 37, "interval": 5},
    differences="Papers and code put the batch's gradient and variance in the place of the "
    "expected ones: followed. The code tests tensor by tensor, the papers (followed) the whole "
    "gradient. Papers and code look at the whole batch at every step, this at no more than 128 "
    "samples every so many steps.",
)

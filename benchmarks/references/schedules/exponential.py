"""Exponential decay by epochs, down to a floor."""

from autotune.plugins import Progress
from references.curves import pointwise, warmup
from references.record import Hyperparameters, Schedule


def factor(h: Hyperparameters, progress: Progress) -> float:
    """gamma^epoch as torch's ExponentialLR, between epochs too, not below BigNAS's constant."""
    epochs = progress.samples / progress.samples_per_epoch
    return warmup(progress, h["warmup_samples"]) * max(h["decay"] ** epochs, h["final_factor"])


REFERENCE = Schedule(
    source="torch ExponentialLR's formula; floor: Yu et al. 2020 (arXiv 2003.11142), section 3.2",
    controls=pointwise(factor),
    differences="torch's rate falls once an epoch; here it falls at every step, and the two agree "
    "where epochs begin.",
    settings={"warmup_samples": 37},
)

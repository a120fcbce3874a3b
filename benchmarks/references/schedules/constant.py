"""A constant rate after a linear warm-up."""

from references.curves import pointwise, warmup
from references.record import Schedule

REFERENCE = Schedule(
    source="Goyal et al. 2017 (arXiv 1706.02677), section 2.2: gradual warm-up",
    controls=pointwise(lambda h, progress: warmup(progress, h["warmup_samples"])),
    differences="The paper's warm-up begins at the rate of a single worker; here it begins at "
    "next to none.",
    settings={"warmup_samples": 37},
)

"""REX, the reflected exponential."""

from references.curves import decaying
from references.record import Schedule

REFERENCE = Schedule(
    source="Chen, Wolfe, Kyrillidis 2022 (arXiv 2107.04197), section 3: z/(1/2 + z/2), z = 1 - t/T",
    controls=decaying(lambda h, x: (1 - x) / (0.5 + 0.5 * (1 - x))),
    differences="The paper has no warm-up: warmup_fraction 0.",
)

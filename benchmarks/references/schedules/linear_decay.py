"""Linear decay, from the paper on schedule refinement."""

from references.curves import decaying
from references.record import Schedule

REFERENCE = Schedule(
    source="Defazio et al. 2023 (arXiv 2310.07831), eq. 1: 1 - t/T",
    controls=decaying(lambda h, x: 1 - (1 - h["final_factor"]) * x),
)

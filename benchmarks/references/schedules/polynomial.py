"""The 'poly' schedule of DeepLab."""

from references.curves import decaying
from references.record import Schedule

REFERENCE = Schedule(
    source="Chen et al. 2018 (arXiv 1606.00915), section 4.1.1: (1 - t/T)^power",
    controls=decaying(
        lambda h, x: h["final_factor"] + (1 - h["final_factor"]) * (1 - x) ** h["power"]
    ),
)

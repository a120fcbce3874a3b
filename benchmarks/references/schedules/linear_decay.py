"""Linear decay and its refinement, from the paper on it."""

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import median_filter

from references.curves import decaying
from references.record import Schedule


def refined(norms: Sequence[float], norm: str, width: int) -> Sequence[float]:
    """Algorithm 1: G~ = median_filter(G, width, padding = (nearest, reflect)); w_t = G~_t^-2 of
    l2 norms, G~_t^-1 of l1 norms (section 4); eta_t = w_t sum_{p > t} w_p, over its largest."""
    reach = width // 2
    steps = np.asarray(norms)
    before, after = np.full(reach, steps[0]), steps[::-1][:reach]
    padded = np.concatenate([before, steps, after])
    smooth = median_filter(padded, size=width)[reach : reach + len(steps)]
    weights = smooth ** {"l2": -2.0, "l1": -1.0}[norm]
    eta = [w * weights[t + 1 :].sum() for t, w in enumerate(weights)]
    return [value / max(eta) for value in eta]


REFERENCE = Schedule(
    source="Defazio et al. 2023 (arXiv 2310.07831), eq. 1: 1 - t/T; refined: Algorithm 1",
    controls=decaying(lambda h, x: 1 - (1 - h["final_factor"]) * x),
    refined=refined,
)

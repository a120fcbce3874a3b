"""The random-matrix rule, for Adam and its kin."""

from references.record import Scaling
from references.scalings.random_matrix import REASON, SOURCE, followed_at

REFERENCE = Scaling(
    source=f"{SOURCE}, and section 5: adaptive methods' rates go with the root of it",
    pairs=followed_at("random_matrix_adaptive", lambda ratio: ratio**0.5),
    tolerance=1e-3,
    reason=REASON,
)

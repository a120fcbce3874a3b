"""The linear rule, for SGD."""

from references.record import Scaling
from references.scalings.batch import followed_at

REFERENCE = Scaling(
    source="Goyal et al. 2017 (arXiv 1706.02677), section 2.1: k times the batch, k times the rate",
    pairs=followed_at("linear", lambda k: k),
)

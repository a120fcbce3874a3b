"""The square-root rule."""

from references.record import Scaling
from references.scalings.batch import followed_at

REFERENCE = Scaling(
    source="Krizhevsky 2014 (arXiv 1404.5997), section 5: k times the batch, "
    "sqrt(k) times the rate",
    pairs=followed_at("square_root", lambda k: k**0.5),
)

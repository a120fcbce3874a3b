"""AdaGrad: torch's own, its plain loop."""

import torch

from references.record import Reference, library

REFERENCE = Reference(
    source=f"torch {torch.__version__.split('+')[0]} Adagrad(foreach=False, fused=False)",
    trajectory=library(
        lambda groups, h: torch.optim.Adagrad(
            groups, lr=h["learning_rate"], eps=h["epsilon"], foreach=False, fused=False
        ),
        decay=None,
    ),
    differences="torch sums the squares in the parameters' own type, the plugin in float32 where "
    "that is half precision: alike in float64.",
)

"""RAdam: torch's own, its plain loop."""

import torch

from references.record import Reference, library

REFERENCE = Reference(
    source=f"torch {torch.__version__.split('+')[0]} RAdam(decoupled_weight_decay=True)",
    trajectory=library(
        lambda groups, h: torch.optim.RAdam(
            groups,
            lr=h["learning_rate"],
            betas=(h["beta1"], h["beta2"]),
            eps=h["epsilon"],
            decoupled_weight_decay=True,
            foreach=False,
        )
    ),
)

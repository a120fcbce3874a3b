"""NAdam: torch's own, its plain loop."""

import torch

from references.record import Reference, library

REFERENCE = Reference(
    source=f"torch {torch.__version__.split('+')[0]} NAdam(decoupled_weight_decay=True)",
    trajectory=library(
        lambda groups, h: torch.optim.NAdam(
            groups,
            lr=h["learning_rate"],
            betas=(h["beta1"], h["beta2"]),
            eps=h["epsilon"],
            momentum_decay=h["momentum_decay"],
            decoupled_weight_decay=True,
            foreach=False,
        )
    ),
)

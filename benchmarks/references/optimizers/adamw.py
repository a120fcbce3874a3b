"""AdamW: torch's own, its plain loop."""

import torch

from references.record import Reference, library

REFERENCE = Reference(
    source=f"torch {torch.__version__.split('+')[0]} AdamW(foreach=False, fused=False)",
    trajectory=library(
        lambda groups, h: torch.optim.AdamW(
            groups,
            lr=h["learning_rate"],
            betas=(h["beta1"], h["beta2"]),
            eps=h["epsilon"],
            foreach=False,
            fused=False,
        )
    ),
    differences="The paper multiplies the decay by the schedule alone, torch (followed) by the "
    "learning rate too.",
)

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
    differences="The paper trusts the second average from a length of 4 on, the authors' code and "
    "torch (followed) from 5 on. The code leaves the steps before that out by default; paper and "
    "torch (followed) take them without adaptivity. Decay is torch's, decoupled.",
)

"""References of optimizers: each module defines `REFERENCE`, a `references.record.Reference`."""

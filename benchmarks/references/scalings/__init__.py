"""References of how rates are carried over between widths and batch sizes: each module defines
`REFERENCE`, a `references.record.Scaling`."""

"""References of schedules: each module defines `REFERENCE`, a `references.record.Schedule`."""

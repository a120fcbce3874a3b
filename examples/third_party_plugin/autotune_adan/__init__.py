"""The optimizer Adan, and its description for autotune."""

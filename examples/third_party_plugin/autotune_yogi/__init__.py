"""The optimizer Yogi, and its description for autotune."""

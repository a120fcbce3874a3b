"""Searches replayed on recorded curves: what they cost, what they found, how they compare."""

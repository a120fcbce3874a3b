"""Policies: what the next free worker trains."""

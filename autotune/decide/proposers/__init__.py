"""Proposers: where new configurations come from."""

"""Arm bandits: which family of a choice (optimizers, adapters) the next segment goes to."""

"""Bundled optimizers, one file a method."""

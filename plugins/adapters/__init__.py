"""Bundled adapters, one file a method."""

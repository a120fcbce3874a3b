"""Bundled learning-rate and batch-size schedules, one file a method."""

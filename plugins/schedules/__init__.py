"""Bundled learning-rate schedules, one file a method; all are pure functions of progress."""

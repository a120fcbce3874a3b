"""Bundled test-time adaptation methods, one file a method."""

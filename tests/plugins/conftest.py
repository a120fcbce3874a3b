"""The fixtures of this folder."""

from installed_plugins import install

__all__ = ["install"]

"""Spaces: what may be chosen, and configurations: one choice of it. Knows no plugin."""

from autotune.space.choices import Choice, Plugins
from autotune.space.codec import Configuration, Slot
from autotune.space.errors import MISSING, SpaceError
from autotune.space.levels import join
from autotune.space.parameters import Categorical, Constant, Float, Integer, Ordinal, Prior
from autotune.space.space import Catalogue, Space

__all__ = [
    "MISSING",
    "Catalogue",
    "Categorical",
    "Choice",
    "Configuration",
    "Constant",
    "Float",
    "Integer",
    "Ordinal",
    "Plugins",
    "Prior",
    "Slot",
    "Space",
    "SpaceError",
    "join",
]

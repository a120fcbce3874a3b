"""What every plugin is, whatever its kind.

A plugin is a class behind an entry point. The class describes itself (name, summary, reference,
space, what it supports); an object of the class is one choice of it: ``AdamW({"learning_rate":
1e-3, ...})``. Nothing here imports a plugin or the engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

from autotune.space import Configuration, Space

API_VERSION = 1
"""The plugin contract this engine speaks. A plugin that declares another is refused."""


class PluginError(Exception):
    """A plugin that was named cannot be used; the message says which, why, and what to do."""


@dataclass(frozen=True)
class ModelInfo:
    """What `Plugin.supports` may look at: facts about the user's model and task.

    Args:
        pretrained: whether the task brings pretrained weights.
        layer_types: count of modules by class name, e.g. ``{"Linear": 3, "BatchNorm2d": 2}``.
        parameter_shapes: shape of every parameter by its dotted name.
        classification: whether the model returns class logits of shape (batch, classes).
        class_targets: whether every target is the index of a class, of which the model returns
            logits: (batch, classes), or (batch, ..., classes) or (batch, classes, ...), as of
            language models and of segmentation.
        shifted: whether the task has a shifted stream to adapt to.
        head: name prefixes of freshly initialised parts that train under every adapter.
        forward_flops: floating-point operations of a forward pass, a sample; 0 where unknown.
        rates_carry_over: whether learning rates are meant for another width of the model and are
            to be carried over to its own (muP).
    """

    pretrained: bool
    layer_types: Mapping[str, int]
    parameter_shapes: Mapping[str, tuple[int, ...]]
    classification: bool = True
    class_targets: bool = True
    shifted: bool = True
    head: tuple[str, ...] = ()
    forward_flops: float = 0.0
    rates_carry_over: bool = False

    def has(self, *layer_types: str) -> bool:
        """Whether the model contains a module of any of the named classes."""
        return any(self.layer_types.get(name, 0) for name in layer_types)


class Plugin:
    """Base of every plugin.

    A subclass sets `name`, `summary` and `reference`, and overrides `space` and `supports`
    where it has hyperparameters or limits. `configuration` holds a value for every active
    hyperparameter of `space()`.
    """

    kind: ClassVar[str]
    api_version: ClassVar[int] = API_VERSION
    name: ClassVar[str]
    summary: ClassVar[str]
    reference: ClassVar[str]
    preferred: ClassVar[bool] = False
    """Whether a space begins with it where the user names no default of its kind."""

    def __init__(self, configuration: Mapping[str, Any] | None = None) -> None:
        defaults = deepcopy(_defaults(type(self)))  # type: ignore[arg-type]
        self.configuration: dict[str, Any] = {**defaults, **(configuration or {})}

    @classmethod
    def space(cls) -> Space:
        """The plugin's own hyperparameters, with ranges, scale, default and prior."""
        return Space({})

    @classmethod
    def supports(cls, model_info: ModelInfo) -> str | None:
        """None if the plugin works on such a model, else the reason why not, for people."""
        return None


@cache
def _defaults(plugin: type[Plugin]) -> Configuration:
    """The space's default, found once: a plugin is made whenever a trial is thawed."""
    return plugin.space().default()

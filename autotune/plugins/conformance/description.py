"""What holds for plugins of every kind: their description, space and configurations."""

from __future__ import annotations

import copy
import json
import pickle
import zlib
from collections.abc import Mapping
from typing import Any

import cloudpickle
import numpy as np

from autotune.plugins import discovery
from autotune.plugins.base import ModelInfo, Plugin, PluginError
from autotune.plugins.conformance import laboratory
from autotune.plugins.conformance.comparing import Fault, NotApplicable, difference, within_remit
from autotune.space import Space, SpaceError

SAMPLES = 50

STRANGE_MODELS = (
    ModelInfo(pretrained=False, layer_types={}, parameter_shapes={}),
    ModelInfo(
        pretrained=True,
        layer_types={"Exotic": 1},
        parameter_shapes={"w": (3,)},
        classification=False,
        class_targets=False,
        shifted=False,
    ),
)


def configurations(plugin: type[Plugin], count: int) -> list[dict[str, Any]]:
    """The default configuration and draws from the space, the same ones every time."""
    space = plugin.space()
    default = space.default()
    if not default:
        return [default]
    rng = np.random.default_rng(zlib.crc32(plugin.name.encode()))
    return [default, *(space.sample(rng) for _ in range(count - 1))]


def check_words(plugin: type[Plugin]) -> None:
    """It is a class of its kind, with a name, a summary and a reference."""
    cause = discovery.fault(plugin, plugin.kind, plugin.name)
    if cause is not None:
        raise Fault(f"{plugin.__module__}:{plugin.__qualname__} {cause}")


def check_space(plugin: type[Plugin]) -> None:
    """The space is valid, the same at every call; default and samples lie inside it and come
    through encoding and storage unharmed."""
    with within_remit("space"):
        space, again = plugin.space(), plugin.space()
    if not isinstance(space, Space):
        raise Fault(f"space() returns {type(space).__name__}, not a Space")
    if space.to_plain() != again.to_plain():
        raise Fault("space() gives another space at the second call")
    if Space.from_plain(json.loads(json.dumps(space.to_plain()))).to_plain() != space.to_plain():
        raise Fault("the space does not come back from its plain form")
    try:
        space.validate(space.default())
    except SpaceError as error:
        raise Fault(f"the default lies outside the space: {error}") from error
    rng = np.random.default_rng(0)
    for configuration in [space.default(), *(space.sample(rng) for _ in range(SAMPLES))]:
        space.validate(configuration)
        values, mask = space.encode(configuration)
        back = space.decode(values)
        revalued, remask = space.encode(back)
        if not (np.array_equal(mask, remask) and np.allclose(values, revalued, atol=1e-9)):
            raise Fault(f"{configuration} comes back from its encoding as {back}")


def check_construction(plugin: type[Plugin]) -> None:
    """It can be made from its default and from any configuration of its space, which it leaves
    as it was; and its class reaches another process. One that says it cannot be used here (by a
    PluginError: a package it needs is missing) is not checked further."""
    try:
        plugin()
    except PluginError as error:
        raise NotApplicable(str(error)) from error
    for configuration in [{}, *configurations(plugin, 10)]:
        given = copy.deepcopy(configuration)
        with within_remit("making it"):
            made = plugin(configuration)
        if configuration != given:
            raise Fault(f"making it changes the configuration it is given: {given}")
        expected = {**plugin.space().default(), **given}
        if made.configuration != expected:
            raise Fault(
                f"made from {given} its configuration is {made.configuration}, not {expected}"
            )
    try:
        pickle.loads(cloudpickle.dumps(plugin))
    except Exception as error:
        raise Fault(
            f"its class cannot be sent to another process: {type(error).__name__}: {error}"
        ) from error


def check_supports(plugin: type[Plugin]) -> None:
    """`supports` answers None or a reason, for every model, and always the same."""
    for info in (*(bench.info() for bench in laboratory.BENCHES), *STRANGE_MODELS):
        reason = plugin.supports(info)
        if reason is not None and not (isinstance(reason, str) and reason.strip()):
            raise Fault(f"supports gives {reason!r}; expected None or a reason in words")
        where = difference({"reason": reason}, {"reason": plugin.supports(info)})
        if where is not None:
            raise Fault(f"supports gives another answer the second time ({where})")


CHECKS = (check_words, check_space, check_construction, check_supports)


def unsupported(plugin: type[Plugin]) -> Mapping[str, str]:
    """Why the plugin works on no model of the laboratory, by bench; empty if it works on one."""
    reasons = {bench.name: plugin.supports(bench.info()) for bench in laboratory.BENCHES}
    refused = {name: reason for name, reason in reasons.items() if reason is not None}
    return refused if len(refused) == len(laboratory.BENCHES) else {}

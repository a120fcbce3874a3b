"""Which layers an adapter changes, and what it freezes. Shared by all adapters but ``full``."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from autotune.plugins import AdapterContext, ModelInfo, PluginError
from autotune.space import Categorical

LINEAR: tuple[type[nn.Module], ...] = (nn.Linear, NonDynamicallyQuantizableLinear)
"""Linear layers; the second is the output projection inside ``nn.MultiheadAttention``."""


@dataclass(frozen=True)
class Target:
    """A layer to adapt, with its dotted name."""

    name: str
    module: nn.Module


def targets_parameter() -> Categorical:
    """Which of the layers that an adapter can work on it does work on, counted in the order in
    which the model registers them.

    Besides these words a study may fix it to a regular expression, matched in full against the
    layers' dotted names. Where tuning a part of the layers helps depends on the shift (Lee et
    al., Surgical Fine-Tuning, arXiv 2210.11466).
    """
    return Categorical(("all", "first_half", "later_half"), default="all")


def why_not(model_info: ModelInfo, layer_types: Sequence[str]) -> str | None:
    """The reason why an adapter of such layers cannot work on the model, or None."""
    if not model_info.pretrained:
        return (
            "it needs pretrained weights to adapt, and the task brings none "
            "(see the argument 'pretrained' of TorchTask)"
        )
    listed = ", ".join(layer_types)
    if not model_info.has(*layer_types):
        return f"the model has no layer of a type it can adapt ({listed})"
    body = AdapterContext(head=model_info.head, generator=torch.Generator())
    if not any(
        len(shape) > 1 and not body.in_head(name)
        for name, shape in model_info.parameter_shapes.items()
    ):
        return f"every layer it could adapt ({listed}) belongs to the head {model_info.head}"
    return None


def freeze_body(model: nn.Module, context: AdapterContext) -> None:
    """Leave only the head trainable. What the user's model had frozen stays frozen, and a
    weight that head and body share belongs to the head."""
    head = {
        id(parameter)
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if context.in_head(name)
    }
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.requires_grad and id(parameter) in head)


def find_targets(
    model: nn.Module,
    context: AdapterContext,
    layer_types: Sequence[type[nn.Module]],
    selection: str,
    adapter: str,
    accepts: Callable[[nn.Module], bool] = lambda module: True,
) -> list[Target]:
    """The layers to adapt, in the model's order.

    A layer counts if its type is exactly one of `layer_types` (a subclass may compute something
    else), it is outside the head, it shares no weight with another layer (a change of one would
    change the other), and `accepts` agrees.

    Raises:
        PluginError: if no layer is left, or `selection` matches none.
    """
    users = Counter(
        id(parameter)
        for module in model.modules()
        for parameter in module._parameters.values()
        if parameter is not None
    )
    found = [
        Target(name, module)
        for name, module in model.named_modules()
        if type(module) in layer_types
        and not context.in_head(name)
        and not _shares_a_weight(module, users)
        and accepts(module)
    ]
    if not found:
        types = ", ".join(layer_type.__name__ for layer_type in layer_types)
        raise PluginError(
            f"adapter {adapter!r} found no layer to adapt: expected one of {types} outside the "
            f"head {context.head}, with weights of its own and in the usual form"
        )
    return _select(found, selection, adapter)


def _shares_a_weight(module: nn.Module, users: Counter[int]) -> bool:
    return any(
        parameter is not None and users[id(parameter)] > 1
        for parameter in module._parameters.values()
    )


def _select(found: list[Target], selection: str, adapter: str) -> list[Target]:
    if selection == "all":
        return found
    if selection == "first_half":
        return found[: math.ceil(len(found) / 2)]
    if selection == "later_half":
        return found[len(found) // 2 :]
    try:
        pattern = re.compile(selection)
    except re.error as error:
        raise PluginError(
            f"adapter {adapter!r}: targets {selection!r} is neither 'all', 'first_half' nor "
            f"'later_half', and no regular expression: {error}"
        ) from error
    chosen = [target for target in found if pattern.fullmatch(target.name)]
    if not chosen:
        names = ", ".join(repr(target.name) for target in found)
        raise PluginError(
            f"adapter {adapter!r}: targets {selection!r} matches no layer; there are {names}"
        )
    return chosen


def uniform(
    shape: Sequence[int], bound: float, generator: torch.Generator, like: Tensor
) -> nn.Parameter:
    """New weights, uniform in ``[-bound, bound]``, of `like`'s device and type."""
    values = torch.empty(tuple(shape), device=generator.device)
    values.uniform_(-bound, bound, generator=generator)
    return nn.Parameter(values.to(device=like.device, dtype=like.dtype))


def normal(shape: Sequence[int], generator: torch.Generator, like: Tensor) -> nn.Parameter:
    """New weights, standard normal, of `like`'s device and type."""
    values = torch.empty(tuple(shape), device=generator.device)
    values.normal_(generator=generator)
    return nn.Parameter(values.to(device=like.device, dtype=like.dtype))


def zeros(shape: Sequence[int], like: Tensor) -> nn.Parameter:
    """New weights, zero, of `like`'s device and type."""
    return nn.Parameter(torch.zeros(tuple(shape), device=like.device, dtype=like.dtype))

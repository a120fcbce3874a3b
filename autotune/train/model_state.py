"""Freeze and thaw of a model: parameters, buffers, modes, and what differs from its base."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from autotune.train.pretrained import Pretrained
from autotune.train.state import StateError, from_plain, same_bits, to_plain
from autotune.train.tensors import describe


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by its dotted name, buffers that no `state_dict` would keep
    included; a tensor with several names appears under its first."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def base_names(model: nn.Module, pretrained: Pretrained | None) -> dict[str, str]:
    """For each tensor of an adapted model that is still, bit for bit, one of the pretrained
    tensors: the pretrained tensor's name. An adapter may have renamed it."""
    if pretrained is None:
        return {}
    candidates: dict[tuple[Any, ...], list[str]] = {}
    for name, tensor in pretrained.tensors.items():
        candidates.setdefault((tensor.dtype, tensor.shape), []).append(name)
    found = {}
    for name, tensor in named_tensors(model).items():
        copy = tensor.detach().cpu()
        likely = candidates.get((tensor.dtype, tensor.shape), [])
        # its own name first, and the one it ends with, before a mere equal in content
        for base in sorted(likely, key=lambda base: _distance(base, name)):
            if same_bits(copy, pretrained.tensors[base]):
                found[name] = base
                break
    return found


def freeze_model(
    model: nn.Module, bases: Mapping[str, str], pretrained: Pretrained | None
) -> dict[str, Any]:
    """The model's state. A tensor that equals, bit for bit, the pretrained one it started from
    (`bases`) is kept by that one's name; every other is kept whole."""
    tensors: dict[str, Tensor] = {}
    unchanged: dict[str, str] = {}
    for name, tensor in named_tensors(model).items():
        copy = to_plain(tensor, f"model.{name}")
        base = pretrained.tensors[bases[name]] if pretrained and name in bases else None
        if base is not None and same_bits(copy, base):
            unchanged[name] = bases[name]
        else:
            tensors[name] = copy
    modules = dict(model.named_modules())
    return {
        "tensors": tensors,
        "unchanged": unchanged,
        "pretrained": pretrained.digest if pretrained is not None else None,
        "training": [name for name, module in modules.items() if module.training],
        "trainable": [name for name, p in model.named_parameters() if p.requires_grad],
        "extra": {
            name: to_plain(module.get_extra_state(), f"model.{name}.extra_state")
            for name, module in modules.items()
            if type(module).get_extra_state is not nn.Module.get_extra_state
        },
    }


@torch.no_grad()
def thaw_model(model: nn.Module, state: Mapping[str, Any], pretrained: Pretrained | None) -> None:
    """Put a state of `freeze_model` into a model built the same way.

    Raises:
        StateError: the model has other parameters, or the pretrained weights have changed.
    """
    unchanged = state["unchanged"]
    if unchanged and (pretrained is None or pretrained.digest != state["pretrained"]):
        raise StateError(
            "the pretrained weights are not those that this checkpoint was made from; "
            "restore the study's pretrained folder"
        )
    tensors = dict(state["tensors"])
    if pretrained is not None:
        tensors |= {name: pretrained.tensors[base] for name, base in unchanged.items()}
    own = named_tensors(model)
    parameters = dict(model.named_parameters())
    missing = sorted(name for name in parameters if name not in tensors)
    if missing:
        raise StateError(f"the checkpoint has no {missing[0]!r}, which the model has")
    for name, value in tensors.items():
        target = own.get(name)
        if target is not None and target.shape == value.shape and target.dtype == value.dtype:
            target.copy_(value)
        elif target is not None and name in parameters:
            raise StateError(
                f"the checkpoint has {name!r} as {describe(value)}; the model has it as "
                f"{describe(target)}"
            )
        else:
            _set_buffer(model, name, value)
    modules = dict(model.named_modules())
    training, trainable = set(state["training"]), set(state["trainable"])
    for name, module in modules.items():
        module.training = name in training
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in trainable)
    for name, extra in state["extra"].items():
        modules[name].set_extra_state(from_plain(extra))


def _set_buffer(model: nn.Module, name: str, value: Tensor) -> None:
    """A buffer that took its shape while training, as running sums do."""
    place, _, leaf = name.rpartition(".")
    try:
        module = model.get_submodule(place)
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        if leaf not in module._buffers:
            raise AttributeError(leaf)
        module._buffers[leaf] = value.to(device, copy=True)
    except AttributeError:
        raise StateError(f"the checkpoint has {name!r}, which the model has not") from None


def _distance(base: str, name: str) -> int:
    if base == name:
        return 0
    return 1 if name.endswith(base.rpartition(".")[2]) else 2

"""Pretrained weights: made once for each architecture of a study, then read from its folder."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from autotune.train.generators import derive_seed, isolated
from autotune.train.state import as_bytes
from autotune.train.task import TaskError

Pretrain = Callable[[Mapping[str, Any]], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Pretrained:
    """Weights by name, on the CPU, and a digest of their content."""

    tensors: Mapping[str, Tensor]
    digest: str


def architecture_digest(architecture: Mapping[str, Any]) -> str:
    """A name for an architecture that is the same in every process."""
    text = json.dumps(architecture, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def pretrained_weights(
    make: Pretrain, architecture: Mapping[str, Any], folder: Path | None
) -> Pretrained:
    """The weights for an architecture: those in ``folder/pretrained``, made now if there are
    none. Of several processes that want the same weights, one makes them and the others wait.

    `make` runs with its own seeded generators, so that the weights depend on nothing but the
    architecture. Without a folder they are made and kept nowhere.
    """
    if folder is None:
        return _digested(_made(make, architecture))
    place = Path(folder) / "pretrained"
    place.mkdir(parents=True, exist_ok=True)
    path = place / f"{architecture_digest(architecture)}.safetensors"
    if not path.exists():
        with FileLock(f"{path}.lock"):
            if not path.exists():
                _write(_made(make, architecture), path)
    return _digested(load_file(path))


def load_pretrained(model: nn.Module, weights: Pretrained, head: tuple[str, ...]) -> None:
    """Copy the weights into the model; only parts of the head may be missing.

    Raises:
        TaskError: names weights that are missing, unknown, or of another shape.
    """
    own = model.state_dict()
    unknown = sorted(set(weights.tensors) - set(own))
    if unknown:
        raise TaskError(
            f"pretrained() returned {_some(unknown)}, which the model does not have; "
            f"it has {_some(sorted(own))}"
        )
    for name, tensor in weights.tensors.items():
        if tensor.shape != own[name].shape:
            raise TaskError(
                f"pretrained() returned {name!r} of shape {list(tensor.shape)}; the model has "
                f"{list(own[name].shape)}. Leave it out and name it in head=(...) if it is new"
            )
    missing = [
        name
        for name in own
        if name not in weights.tensors
        and not any(name == prefix or name.startswith(prefix + ".") for prefix in head)
    ]
    if missing:
        raise TaskError(
            f"pretrained() returned no {_some(missing)}; parts that start fresh must be named "
            f"in head=(...), which is {head!r}"
        )
    model.load_state_dict(dict(weights.tensors), strict=False)


def _made(make: Pretrain, architecture: Mapping[str, Any]) -> dict[str, Tensor]:
    seed = derive_seed("pretrained", architecture_digest(architecture))
    with isolated(seed, torch.device("cpu")), torch.enable_grad():
        weights = make(architecture)
    if not isinstance(weights, Mapping):
        raise TaskError(
            f"pretrained() returned {type(weights).__name__}; expected a state_dict, "
            "a mapping of names to tensors"
        )
    for name, tensor in weights.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise TaskError(
                f"pretrained() returned {type(tensor).__name__} under {name!r}; expected a tensor"
            )
    return {
        name: tensor.detach().to("cpu", copy=True).contiguous().clone()
        for name, tensor in weights.items()
    }


def _write(weights: dict[str, Tensor], path: Path) -> None:
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        save_file(weights, temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _digested(tensors: Mapping[str, Tensor]) -> Pretrained:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {list(tensors[name].shape)}".encode())
        digest.update(as_bytes(tensors[name]).numpy().data)
    return Pretrained(tensors, digest.hexdigest()[:16])


def _some(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:4])
    return shown + (f" and {len(names) - 4} more" if len(names) > 4 else "")

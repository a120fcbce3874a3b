"""Reads and writes the network's weights: safetensors, with what made them in the header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from autotune.pfn.network import CurveNetwork, Size

SHIPPED = Path(__file__).with_name("weights.safetensors")
"""The weights that come with the package; `weights.md` beside them is their model card."""

FORMAT = 1


def save(path: Path, network: CurveNetwork, card: Mapping[str, Any]) -> None:
    """Write weights in float32, whole or not at all.

    Args:
        card: plain values about how they were made.
    """
    from safetensors.torch import save_file

    header = {"format": FORMAT, "size": network.size.to_plain(), "card": dict(card)}
    tensors = {
        name: tensor.detach().to("cpu", torch.float32).contiguous()
        for name, tensor in network.state_dict().items()
    }
    temporary = path.with_suffix(".partial")
    save_file(tensors, temporary, metadata={"autotune": json.dumps(header, sort_keys=True)})
    temporary.replace(path)


def load(path: Path = SHIPPED) -> CurveNetwork:
    """A network with the weights of a file, for evaluation.

    Raises:
        ValueError: if the file is no such file, naming it and what is wrong.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    card = read_header(path)
    try:
        network = CurveNetwork(Size(**card["size"]))
        network.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: these weights do not fit the curve network: {error}") from error
    return network.eval().requires_grad_(False)


def read_header(path: Path = SHIPPED) -> dict[str, Any]:
    """``format``, ``size`` and ``card`` of a file of weights.

    Raises:
        ValueError: if the file is no such file, naming it and what is wrong.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("autotune")
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: no weights of a curve network can be read: {error}") from error
    header = json.loads(text) if text is not None else None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ValueError(
            f"{path}: expected weights written by autotune.pfn.train in format {FORMAT}"
        )
    return header


@lru_cache(maxsize=2)
def shared(path: Path = SHIPPED) -> CurveNetwork:
    """The network of a file, loaded once a process. Nobody may change it."""
    return load(path)

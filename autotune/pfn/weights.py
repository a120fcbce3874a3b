"""Reads and writes the network's weights: safetensors, with what made them in the header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from autotune.pfn.network import CurveNetwork, Size
from autotune.pfn.spaces import SLOTS

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


def model_card(path: Path) -> str:
    """What a file of weights is and where it comes from, as Markdown."""
    header = read_header(path)
    card, size = header["card"], header["size"]
    held = card["held_out"]
    return f"""# Model card: {path.name}

The weights of the curve network (`autotune.pfn`), which forecasts learning curves of any metric
from all curves of a study. Written by `python -m autotune.pfn.train`.

- Network: one token a curve, {size["layers"]} layers of width {size["width"]}, {size["heads"]}
  heads, {size["bins"]} bins; float32, {path.stat().st_size / 1e6:.1f} MB.
{_trained(card)}
- Trained on no recorded curve.
- On artificial studies held out, means over queries: log-likelihood {held["log_likelihood"]:.3f}
  nats, squared error {held["squared_error"]:.5f}, {held["below_5"]:.1%} of outcomes below the
  5 % quantile, {held["above_95"]:.1%} above the 95 % quantile.
- On recorded curves: `python benchmarks/forecasters.py` measures it.
- Limits: it sees {SLOTS} hyperparameters at once, forecasts within the horizon only, and its
  histogram has {size["bins"]} bins on the scaled metric.
"""


def _trained(card: Mapping[str, Any]) -> str:
    """A line of the model card for every run that trained these weights, the first one first."""
    whole = "the whole schedule" if card["data_sets"] >= card["of_data_sets"] else "cut short"
    drawn = f"{card['data_sets']:,} artificial studies drawn from `autotune.pfn.prior` with seed"
    line = f"""- Trained on: {drawn}
  {card["seed"]} ({whole}: {card["of_data_sets"]:,} planned), in {card["minutes"]} minutes on:
  {card["hardware"]}."""
    begun_with = card.get("begun_with")
    return line if begun_with is None else f"{_trained(begun_with)}\n{line}"
